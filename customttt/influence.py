"""Prompt influence: what a video shows when only some blocks of the U-Net read another prompt.

CustomTTT's analysis (project page and supplement): V_{p*->i, p->j!=i} is the video whose cross-attention of block i
reads the prompt p*, and that of all other blocks p. The more the video shows of p*, the more block i carries.
Ours: the score of V_p against p* (the null) is subtracted, scores have intervals, and a smallest set of blocks is
chosen by greedy forward selection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from customttt import diffusion, stats
from customttt.backbones import Backbone, PromptEmbeds, Video
from customttt.config import SampleConfig
from customttt.errors import UsageError
from customttt.sampling import denoise
from customttt.train import Report, silent

BLOCKS = range(9)
Layers = frozenset[int]
Scorer = Callable[[Video, str, str], Sequence[float]]
"""(videos, p, p*) to how much of what p* says and p does not each video shows; higher is more."""


@dataclass(frozen=True)
class Pair:
    """A prompt and the one that some blocks read instead."""

    prompt: str
    starred: str

    def __post_init__(self) -> None:
        if self.prompt.strip() == self.starred.strip():
            raise UsageError(f"Both prompts are {self.prompt!r}; the second must say something else.")


def readers(backbone: Backbone) -> dict[int, list[nn.Module]]:
    """The spatial cross-attentions of every numbered block that has some."""
    found: dict[int, list[nn.Module]] = {}
    for layer in BLOCKS:
        try:
            names = backbone.targets("appearance", [layer])
        except UsageError:  # this block reads no text
            continue
        places = [name.removesuffix(".to_k") for name in names if name.endswith("attn2.to_k")]
        found[layer] = [backbone.unet.get_submodule(place) for place in places]
    return found


@contextmanager
def reading(
    backbone: Backbone, layer_sets: Sequence[Layers], starred_embeds: PromptEmbeds, num_frames: int
) -> Iterator[None]:
    """While this lasts, video k of a batch reads p* in the blocks of `layer_sets[k]` and its own prompt elsewhere.

    `starred_embeds` is (b l d), one row a video; rows of the batch beyond b (those of the empty prompt) are left alone.
    """
    starred = starred_embeds.repeat_interleave(num_frames, 0)

    def swap(layer: int) -> Callable[..., tuple[Any, dict[str, Any]]]:
        mask = torch.tensor([layer in layers for layers in layer_sets]).repeat_interleave(num_frames)
        rows = mask.nonzero()[:, 0].to(starred.device)

        def hook(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            read = kwargs["encoder_hidden_states"].clone()
            read[rows] = starred[rows].to(read.dtype)
            return args, {**kwargs, "encoder_hidden_states": read}

        return hook

    handles = [
        module.register_forward_pre_hook(swap(layer), with_kwargs=True)
        for layer, modules in readers(backbone).items()
        if any(layer in layers for layers in layer_sets)
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_layers(backbone: Backbone, layers: Layers) -> None:
    """Raise UsageError for a block that does not exist or reads no text."""
    known = readers(backbone)
    if bad := sorted(layers - known.keys()):
        able = ", ".join(map(str, known))
        raise UsageError(f"Layer {bad[0]} of {backbone.name} reads no prompt; those that do are {able}.")


@torch.no_grad()
def render(
    backbone: Backbone,
    pair: Pair,
    layer_sets: Sequence[Layers],
    sample: SampleConfig,
    seed: int,
    report: Report = silent,
    batch_size: int = 4,
) -> Float[Tensor, "b 3 f h w"]:
    """V_{p*->layers, p->others} of the same noise for every set of blocks; the empty set is V_p, the null."""
    for layers in layer_sets:
        check_layers(backbone, layers)
    shape = backbone.latent_shape(sample.num_frames, sample.size)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed)).to(backbone.device)
    prompt, starred, empty = (backbone.embed([text]) for text in (pair.prompt, pair.starred, ""))
    timesteps = diffusion.inference_timesteps(backbone.schedule, sample.num_inference_steps).tolist()
    videos = []
    for start in range(0, len(layer_sets), batch_size):
        some = layer_sets[start : start + batch_size]
        rows = len(some), -1, -1
        with reading(backbone, some, starred.expand(*rows), sample.num_frames):
            latents = denoise(
                backbone, noise.expand(len(some), *shape), prompt.expand(*rows), empty.expand(*rows),
                guidance_scale=sample.guidance_scale, timesteps=timesteps, report=report,
            )  # fmt: skip
        videos.append(backbone.decode(latents).cpu())
    return torch.cat(videos)


@dataclass(frozen=True)
class Influence:
    """How much each set of blocks carries: score minus null, over pairs and seeds."""

    layers: tuple[int, ...]
    effect: stats.Estimate


Effects = Mapping[Layers, Sequence[float]]


@dataclass
class Study:
    """Effects of sets of blocks over pairs and seeds; what was measured once is not rendered again."""

    backbone: Backbone
    pairs: Sequence[Pair]
    scorer: Scorer
    seeds: int = 3
    report: Report = silent

    def __post_init__(self) -> None:
        if not self.pairs:
            raise UsageError("There is no pair of prompts to measure with.")
        self._null: dict[tuple[Pair, int], float] = {}
        self._effects: dict[Layers, list[float]] = {}

    def measure(self, layer_sets: Sequence[Layers]) -> list[Influence]:
        """One estimate a set, in their order; intervals are over pairs, whose seeds do not count as independent."""
        new = [layers for layers in dict.fromkeys(layer_sets) if layers not in self._effects]
        for layers in new:
            self._effects[layers] = []
        for pair in self.pairs if new else ():
            for seed in range(self.seeds):
                self._render(pair, seed, new)
        return [Influence(tuple(sorted(layers)), self._estimate(layers)) for layers in layer_sets]

    def _render(self, pair: Pair, seed: int, new: Sequence[Layers]) -> None:
        known = (pair, seed) in self._null
        wanted = [*([] if known else [frozenset[int]()]), *new]
        sample = self.backbone.defaults.sample
        scores = list(self.scorer(render(self.backbone, pair, wanted, sample, seed, self.report), *_texts(pair)))
        if not known:
            self._null[pair, seed] = scores.pop(0)
        for layers, score in zip(new, scores, strict=True):
            self._effects[layers].append(score - self._null[pair, seed])

    def _estimate(self, layers: Layers) -> stats.Estimate:
        groups = [pair.starred + pair.prompt for pair in self.pairs for _ in range(self.seeds)]
        return stats.mean(self._effects[layers], groups)

    def per_layer(self) -> list[Influence]:
        """Each block alone, and all of them together at the end."""
        able = list(readers(self.backbone))
        return self.measure([*(frozenset([layer]) for layer in able), frozenset(able)])

    def page(self, effects: Sequence[Influence]) -> list[Layers]:
        """The project page's four columns: all blocks but the strongest, it alone, with the second strongest, all."""
        able = frozenset(readers(self.backbone))
        alone = sorted((one for one in effects if len(one.layers) == 1), key=lambda one: -one.effect.value)
        first, second = (frozenset(one.layers) for one in alone[:2])
        return [able - first, first, first | second, able]

    def select(self, share: float = 0.9) -> list[Influence]:
        """Greedy forward selection: growing sets, up to the first with `share` of the effect of all blocks."""
        able = frozenset(readers(self.backbone))
        goal = share * self.measure([able])[0].effect.value
        chosen: Layers = frozenset()
        steps: list[Influence] = []
        while chosen != able:
            found = self.measure([chosen | {layer} for layer in sorted(able - chosen)])
            steps.append(max(found, key=lambda one: one.effect.value))
            chosen = frozenset(steps[-1].layers)
            if steps[-1].effect.value >= goal:
                break
        return steps


def _texts(pair: Pair) -> tuple[str, str]:
    return pair.prompt, pair.starred
