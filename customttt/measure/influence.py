"""Prompt influence: what a video shows when only some blocks of a base read another prompt.

CustomTTT's analysis (project page and supplement): V_{p*->i, p->j!=i} is the video whose cross-attention of block i
reads the prompt p*, and that of all other blocks p. The more the video shows of p*, the more block i carries.
Ours: the score of V_p against p* (the null) is subtracted, scores have intervals, and a smallest set of blocks is
chosen by greedy forward selection; movement can be scored by tracks, as CLIP hardly sees it; and all blocks read p* in
a part of the denoising alone, which tells how noisy the latents are when it is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count, pairwise, product
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from customttt.backbones import Backbone
from customttt.config import SampleConfig, digest
from customttt.errors import UsageError
from customttt.measure import metrics, stats, tracks
from customttt.measure.ledger import Ledger
from customttt.progress import Progress, Report, silent
from customttt.sampling import denoise
from customttt.video import Video, to_frames

PARTS = 4
"""Of the denoising, in each of which all blocks read p*."""
TOGETHER = 4
"""Videos that go through a CPU at once; a GPU is busy with one."""
Layers = frozenset[int]
Shares = tuple[float, float]
"""From where to where in the denoising: 0 the first step, 1 the last."""
WHOLE: Shares = (0.0, 1.0)
NULL: Layers = frozenset()
"""No block reads p*."""


@dataclass(frozen=True)
class PromptPair:
    """A prompt and the one that some blocks read instead."""

    prompt: str
    starred: str

    def __post_init__(self) -> None:
        if self.prompt.strip() == self.starred.strip():
            raise UsageError(f"Both prompts are {self.prompt!r}; the second must say something else.")


Scorer = Callable[[Video, Sequence[Layers], PromptPair, int], Sequence[float]]
"""(videos of one pair and seed, whose sets of blocks read p*, the pair, the seed) to how much each shows of what p*
says; higher is more."""


def check_layers(base: str, able: Iterable[int], layer_sets: Sequence[Layers]) -> None:
    """Raise UsageError for a block that is not one of those `able` to read a prompt."""
    known = sorted(set(able))
    if bad := sorted(NULL.union(*layer_sets).difference(known)):
        those = ", ".join(map(str, known))
        raise UsageError(f"Layer {bad[0]} of {base} reads no prompt; those that do are {those}.")


@torch.no_grad()
def render_swapped(
    backbone: Backbone,
    pair: PromptPair,
    layer_sets: Sequence[Layers],
    sample: SampleConfig,
    seed: int,
    report: Report = silent,
    within: Shares = WHOLE,
) -> Float[Tensor, "b 3 f h w"]:
    """V_{p*->layers, p->others} of the same noise for every set of blocks; the empty set is V_p, the null.

    Outside of these shares of the steps all blocks read p.
    """
    check_layers(backbone.name, backbone.readers, layer_sets)
    shape = backbone.latent_shape(sample.num_frames, *sample.sides)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed)).to(backbone.device)
    prompt, starred, empty = (backbone.embed([text]) for text in (pair.prompt, pair.starred, ""))
    path = backbone.schedule.path(sample.num_inference_steps)
    begin, end = (round(share * sample.num_inference_steps) for share in within)
    videos, together = [], _together(backbone)
    for start in range(0, len(layer_sets), together):
        some = layer_sets[start : start + together]
        rows, latents = (len(some), -1, -1), noise.expand(len(some), *shape)
        reading = backbone.reading(some, starred.expand(*rows), sample.num_frames)
        for steps, context in (
            (path[: begin + 1], nullcontext()),
            (path[begin : end + 1], reading),
            (path[end:], nullcontext()),
        ):
            with context:
                latents = denoise(
                    backbone, latents, prompt.expand(*rows), empty.expand(*rows),
                    guidance_scale=sample.guidance_scale, path=steps, report=report,
                )  # fmt: skip
        videos.append(backbone.decode(latents).cpu())
    return torch.cat(videos)


def _together(backbone: Backbone) -> int:
    return TOGETHER if backbone.device.type == "cpu" else 1


def by_texts(shows: Callable[[Video, str, str], Sequence[float]]) -> Scorer:
    """By what reads p and p* itself, as the judge of `tiny` does."""
    return lambda videos, _, pair, __: shows(videos, pair.prompt, pair.starred)


def by_clip(model: metrics.Features) -> Scorer:
    """CLIP-T of each video and p*, which the supplement's Table 2 has for subjects and for movements [S]."""

    def score(videos: Video, _: Sequence[Layers], pair: PromptPair, __: int) -> list[float]:
        text = model.text_features([pair.starred])[0]
        return [metrics.text_alignment(model.image_features(to_frames(video[None])), text) for video in videos]

    return score


def by_tracks(backbone: Backbone) -> Scorer:
    """Motion fidelity of each video to that of the same noise whose every block reads p* (ours)."""
    able = frozenset(backbone.readers)
    truths: dict[tuple[PromptPair, int], metrics.Tracks] = {}

    def follow(video: Float[Tensor, "3 f h w"]) -> metrics.Tracks:
        return torch.from_numpy(tracks.follow(to_frames(video[None])))

    def score(videos: Video, layer_sets: Sequence[Layers], pair: PromptPair, seed: int) -> list[float]:
        made = [follow(video) for video in videos]
        if able in layer_sets:
            truths[pair, seed] = made[list(layer_sets).index(able)]
        elif (pair, seed) not in truths:  # scored before a kill
            truths[pair, seed] = follow(render_swapped(backbone, pair, [able], backbone.defaults.sample, seed)[0])
        return [metrics.motion_fidelity(one, truths[pair, seed]) for one in made]

    return score


@dataclass(frozen=True)
class Influence:
    """How much a set of blocks carries, in a part of the denoising: score minus null, over pairs and seeds."""

    layers: tuple[int, ...]
    effect: stats.Estimate
    within: Shares = WHOLE


@dataclass
class Measurement:
    """The effects of sets of blocks over pairs and seeds; what is in the ledger is not rendered again."""

    backbone: Backbone
    pairs: Sequence[PromptPair]
    scorer: Scorer
    seeds: int = 3
    report: Report = silent
    ledger: Ledger = field(default_factory=Ledger)
    by: str = ""
    """What the scorer is called in the ledger."""
    kept: Callable[[], object] = lambda: None
    """Told that scores are in the ledger."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise UsageError("There is no pair of prompts to measure with.")

    def measure(self, layer_sets: Sequence[Layers], within: Shares = WHOLE) -> list[Influence]:
        """One estimate a set, in their order; intervals are over pairs, whose seeds do not count as independent,
        or over the seeds of the only pair."""
        if within != WHOLE:
            self.measure([NULL])
        wanted = dict.fromkeys([NULL, *layer_sets] if within == WHOLE else layer_sets)
        missing = {
            of: new
            for of in self._all()
            if (new := [layers for layers in wanted if self.ledger.get(self._key(of, layers, within)) is None])
        }
        report = self._whole([len(new) for new in missing.values()])
        sample = self.backbone.defaults.sample
        for (pair, seed), new in missing.items():
            videos = render_swapped(self.backbone, pair, new, sample, seed, report, within)
            whole = new if within == WHOLE else [NULL] * len(new)  # none of them reads p* throughout
            for layers, score in zip(new, self.scorer(videos, whole, pair, seed), strict=True):
                self.ledger.put(self._key((pair, seed), layers, within), score=float(score))
            self.kept()
        return [Influence(tuple(sorted(layers)), self._effect(layers, within), within) for layers in layer_sets]

    def _all(self) -> list[tuple[PromptPair, int]]:
        return list(product(self.pairs, range(self.seeds)))

    def _key(self, of: tuple[PromptPair, int], layers: Layers, within: Shares) -> str:
        pair, seed = of
        sample = self.backbone.defaults.sample.changed()
        made: list[Any] = [self.backbone.fingerprint, sample, self.by, pair.prompt, pair.starred, seed, sorted(layers)]
        return f"score-{digest(made if within == WHOLE else [*made, within])[:16]}"

    def _score(self, of: tuple[PromptPair, int], layers: Layers, within: Shares) -> float:
        return float((self.ledger.get(self._key(of, layers, within)) or {})["score"])

    def _effect(self, layers: Layers, within: Shares) -> stats.Estimate:
        """Score minus null."""
        effects = [self._score(of, layers, within) - self._score(of, NULL, WHOLE) for of in self._all()]
        return stats.mean(effects, [pair.starred + pair.prompt for pair, _ in self._all()])

    def _whole(self, sets: Sequence[int]) -> Report:
        """Counts the steps of so many sets a pair and seed as those of one phase."""
        batches = sum(ceil(some / _together(self.backbone)) for some in sets)
        done, total = count(1), batches * self.backbone.defaults.sample.num_inference_steps
        return lambda _: self.report(Progress("measuring blocks", next(done), total))

    def per_layer(self) -> list[Influence]:
        """Each block alone, and all of them together at the end."""
        able = self.backbone.readers
        return self.measure([*(frozenset([layer]) for layer in able), frozenset(able)])

    def per_part(self) -> list[Influence]:
        """All blocks, in each of PARTS of the denoising, the noisiest first."""
        able = frozenset(self.backbone.readers)
        edges = pairwise(part / PARTS for part in range(PARTS + 1))
        return [one for within in edges for one in self.measure([able], within)]

    def page(self, effects: Sequence[Influence], shown: Sequence[Layers] = ()) -> list[Layers]:
        """The project page's four columns: all blocks but those of the first set, the sets, all blocks.

        Without sets `shown`: the strongest block alone, and with the second strongest.
        """
        able = frozenset(self.backbone.readers)
        alone = sorted((one for one in effects if len(one.layers) == 1), key=lambda one: -one.effect.value)
        first, second = (frozenset(one.layers) for one in alone[:2])
        sets = list(shown) or [first, first | second]
        return [able - sets[0], *sets, able]

    def select(self, share: float = 0.9) -> list[Influence]:
        """Greedy forward selection: growing sets, up to the first with `share` of the effect of all blocks."""
        able = frozenset(self.backbone.readers)
        goal = share * self.measure([able])[0].effect.value
        layers = NULL
        steps: list[Influence] = []
        while layers != able:
            larger_sets = self.measure([layers | {layer} for layer in sorted(able - layers)])
            steps.append(max(larger_sets, key=lambda one: one.effect.value))
            layers = frozenset(steps[-1].layers)
            if steps[-1].effect.value >= goal:
                break
        return steps
