"""Two subjects in one video, measured on `tiny`: `python -m customttt.lab.several --out runs/several`.

Ten combinations of two held-out subjects, each with a held-out movement of its own, and each way to keep them apart, in
the same noise; the judge says who is there, where, in whose looks, and how each moves. Everything is kept in `--out`,
so a killed run goes on; a strip of the frames of each video is in `seen`. It prints a table with 95 % intervals over
combinations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from customttt import media, opening
from customttt.config import digest
from customttt.lab import score
from customttt.lab.experiment import MOVEMENTS, SCENES, SUBJECTS
from customttt.lab.lessons import Content, School, render
from customttt.library import Library
from customttt.measure import metrics, sheets, stats
from customttt.measure.ledger import Ledger
from customttt.recipe import Ingredient, Subject, VideoRecipe
from customttt.tiny import judge
from customttt.tiny.demo import CLIP_NOUN, CLIP_SCENE
from customttt.tiny.world import Look
from customttt.video import to_video
from customttt.workshop import Workshop

Actor = tuple[str, Look, str]
"""A noun, its look and its movement."""
SIDES = ("left", "right")


def _plain(recipe: VideoRecipe) -> VideoRecipe:
    return replace(recipe, ttt=recipe.ttt.but(steps=0))


def _placed(recipe: VideoRecipe) -> VideoRecipe:
    names = [one.appearance.name for one in recipe.subjects]
    return recipe.placed(dict(zip(names, SIDES, strict=True)))


WAYS: Mapping[str, Callable[[VideoRecipe], VideoRecipe]] = MappingProxyType({
    "direct": _plain,
    "placed": lambda recipe: _placed(_plain(recipe)),
    "by words": lambda recipe: replace(_plain(recipe), apart=True),
    "test-time training": lambda recipe: recipe,
    "test-time training, placed": _placed,
    "test-time training, by words": lambda recipe: replace(recipe, apart=True),
})  # fmt: skip
"""How two subjects are put into one video; without test-time training unless the name says so."""
ALONE = "alone, without test-time training"
"""Each subject and its movement in a video of its own: what the others are held against."""
MEASURES = {
    "both": "both subjects there",
    "swapped": "in the other's look",
    "identity": "identity similarity of each",
    "track": "correlation of each track",
    "movement": "movement of each right",
    "sides": "first left, second right",
    "scene": "scene right",
}


@dataclass(frozen=True)
class Case:
    """One video, or in the way ALONE one of each subject."""

    combination: int
    scene: str
    seed: int

    @property
    def actors(self) -> tuple[Actor, Actor]:
        first, second = self.combination, self.combination + 1
        return _actor(first), _actor(second)


def _actor(number: int) -> Actor:
    return *SUBJECTS[number % len(SUBJECTS)], MOVEMENTS[number % len(MOVEMENTS)]


def judged(frames: media.Frames, cell: Case) -> dict[str, float]:
    """MEASURES of a video of both; of each: the mean of the two."""
    (noun, look, movement), (other, other_look, other_movement) = cell.actors
    opinion = judge.load().look(to_video(frames))
    seen = opinion.in_order([(judge.NAMES["noun"].index(noun), judge.NAMES["noun"].index(other))])
    right = [one.names("noun") == [name] for one, name in zip(seen, (noun, other), strict=True)]
    own = [_like(one, noun, look) for one, (noun, look, _) in zip(seen, cell.actors, strict=True)]
    others = [_like(seen[0], noun, other_look), _like(seen[1], other, look)]
    moved = [seen[0].names("movement") == [movement], seen[1].names("movement") == [other_movement]]
    across = [float(one.position[0, :, 0].mean()) for one in seen]
    return {
        "both": float(opinion.two[0] > 0.5 and all(right)),
        "swapped": sum(theirs > mine for mine, theirs in zip(own, others, strict=True)) / 2,
        "identity": sum(own) / 2,
        "track": sum(_track(one, how) for one, (_, _, how) in zip(seen, cell.actors, strict=True)) / 2,
        "movement": sum(moved) / 2,
        "sides": float(across[0] < across[1]),
        "scene": float(opinion.names("scene") == [cell.scene]),
    }


def judged_alone(videos: Sequence[media.Frames], cell: Case) -> dict[str, float]:
    """The same of two videos, one of each subject, as far as they can say it."""
    seen = [judge.load().look(to_video(frames)) for frames in videos]
    of = list(zip(seen, cell.actors, strict=True))
    return {
        "both": float(all(one.names("noun") == [noun] for one, (noun, _, _) in of)),
        "identity": sum(_like(one, noun, look) for one, (noun, look, _) in of) / 2,
        "track": sum(_track(one, movement) for one, (_, _, movement) in of) / 2,
        "movement": sum(one.names("movement") == [movement] for one, (_, _, movement) in of) / 2,
        "scene": sum(one.names("scene") == [cell.scene] for one in seen) / 2,
    }


def _like(seen: judge.Seen, noun: str, look: Look) -> float:
    return float((seen.identity @ _reference(noun, look))[0])


@cache
def _reference(noun: str, look: Look) -> Float[Tensor, " d"]:
    return score.references([(noun, look)])[0]


def _track(seen: judge.Seen, movement: str) -> float:
    track = seen.position[0]
    truth = render([Content(CLIP_NOUN, movement, CLIP_SCENE)], 0, num_frames=len(track), vary=0.0)
    return metrics.correlation(track, truth.pose[0, 0, :, :2])


@dataclass(frozen=True)
class Trials:
    """A workshop whose library is in the folder where everything is kept."""

    shop: Workshop
    out: Path

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.out / "ledger.jsonl")

    def measured(self, cell: Case, way: str) -> dict[str, float]:
        """MEASURES: what the judge says of a cell; nothing is made twice."""
        recipe = self._recipe(cell)
        recipes = self._alone(recipe) if way == ALONE else [WAYS[way](recipe)]
        ledger, key = self.ledger, digest([one.to_dict() for one in recipes])[:24]
        if (known := ledger.get(key)) is None:
            videos = [self.shop.compose(one) for one in recipes]
            scores = judged_alone(videos, cell) if way == ALONE else judged(videos[0], cell)
            self._keep(f"{way} {cell.combination} {cell.seed} {key}", videos)
            ledger.put(key, scores=scores, way=way, of=[cell.combination, cell.scene, cell.seed])
            return scores
        return dict(known["scores"])

    def _keep(self, title: str, videos: Sequence[media.Frames]) -> None:
        """A row of frames each video, to be looked at."""
        path = self.out / "seen" / f"{title.replace(',', '').replace(' ', '-')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        media.write_png(path, sheets.contact_sheet([("", frames) for frames in videos], videos[0].shape[2]))

    def _recipe(self, cell: Case) -> VideoRecipe:
        """Of both subjects, as the base composes them."""
        (first, second), backbone = map(self._learned, cell.actors), self.shop.backbone
        settings = backbone.defaults
        return VideoRecipe(
            first[0], first[1], cell.scene, backbone.name, backbone.fingerprint, settings.ttt,
            settings.sample.but(magnify=1), cell.seed, threads=1, others=(Subject(*second),),
        )  # fmt: skip

    def _alone(self, recipe: VideoRecipe) -> list[VideoRecipe]:
        return [
            _plain(replace(recipe, appearance=one.appearance, motion=one.motion or recipe.motion, others=()))
            for one in recipe.subjects
        ]

    def _learned(self, actor: Actor) -> tuple[Ingredient, Ingredient]:
        noun, look, movement = actor
        school, own = School(self.shop, self.shop.say), self.shop.backbone.defaults
        appearance = school.learned("appearance", Content(noun, "", "", look), own.appearance)
        motion = school.learned("motion", Content(CLIP_NOUN, movement, CLIP_SCENE), own.motion)
        return Ingredient.of(appearance), Ingredient.of(motion)


def table(scores: Mapping[str, Mapping[Case, Mapping[str, float]]]) -> Iterator[str]:
    """Markdown: a row each way, a column each measure, its mean and 95 % interval over combinations."""
    yield f"| way | n | {' | '.join(MEASURES.values())} |"
    yield f"|---|---|{'---|' * len(MEASURES)}"
    for way, cells in scores.items():
        if not cells:
            continue
        groups = [str(cell.combination) for cell in cells]
        values = [[one.get(measure) for one in cells.values()] for measure in MEASURES]
        shown = [f"{stats.mean(known, groups):.2f}" if (known := _whole(some)) else "" for some in values]
        yield f"| {way} | {len(cells)} | {' | '.join(shown)} |"


def _whole(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m customttt.lab.several", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything that is made")
    parser.add_argument("--base", default="tiny", help="tiny, or the folder of an exported checkpoint")
    parser.add_argument("--combinations", type=int, default=10)
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=[ALONE, *WAYS], choices=[ALONE, *WAYS])
    given = parser.parse_args()
    shop = Workshop(*opening.open_accelerated(given.base), Library(given.out, forgets=False), say=_said)
    run, scores = Trials(shop, given.out), {way: dict[Case, dict[str, float]]() for way in given.ways}
    every = product(range(given.seeds), SCENES[: given.scenes], range(given.combinations))
    for seed, scene, combination in every:
        cell = Case(combination, scene, seed)
        for way in given.ways:
            scores[way][cell] = run.measured(cell, way)
            _said(f"{way}; {cell}: {scores[way][cell]}")
    print("\n".join(table(scores)))


def _said(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
