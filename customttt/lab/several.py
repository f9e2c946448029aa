"""Two or three subjects in one video, measured on `tiny`: `python -m customttt.lab.several --out runs/several`.

Ten combinations of held-out subjects, each with a held-out movement of its own, and each way to keep them apart, in the
same noise; the judge says who is there, where, in whose looks, and how each moves. It knows two in a frame; of three it
is shown a third of the frame at a time, the rest of which is the empty scene. Everything is kept in `--out`, so a
killed run goes on; a strip of the frames of each video is in `seen`. It prints a table with 95 % intervals over
combinations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations, product
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from customttt import media, opening, regions
from customttt.config import digest
from customttt.lab import score
from customttt.lab.experiment import MOVEMENTS, SCENES, SUBJECTS
from customttt.lab.lessons import Content, School, indices, render
from customttt.library import Library
from customttt.measure import metrics, sheets, stats
from customttt.measure.ledger import Ledger
from customttt.recipe import ABREAST, Ingredient, Subject, VideoRecipe
from customttt.tiny import judge, world
from customttt.tiny.demo import CLIP_NOUN, CLIP_SCENE
from customttt.tiny.world import Look
from customttt.video import Video, to_frames, to_video
from customttt.workshop import Workshop

Actor = tuple[str, Look, str]
"""A noun, its look and its movement."""


def _plain(recipe: VideoRecipe) -> VideoRecipe:
    return replace(recipe, ttt=recipe.ttt.but(steps=0))


WAYS: Mapping[str, Callable[[VideoRecipe], VideoRecipe]] = MappingProxyType({
    "direct": _plain,
    "placed": lambda recipe: _plain(recipe).side_by_side(),
    "by words": lambda recipe: replace(_plain(recipe), apart=True),
    "test-time training": lambda recipe: recipe,
    "test-time training, placed": VideoRecipe.side_by_side,
    "test-time training, by words": lambda recipe: replace(recipe, apart=True),
})  # fmt: skip
"""How several subjects are put into one video; without test-time training unless the name says so."""
ALONE = "alone, without test-time training"
"""Each subject and its movement in a video of its own: what the others are held against."""
TRUTH = "the world's own"
"""Each subject's part of the frame out of the world's own clip of it: what the measures can be at most."""
MEASURES = {
    "all": "all subjects there",
    "swapped": "in another's look",
    "identity": "identity similarity of each",
    "track": "correlation of each track",
    "movement": "movement of each right",
    "sides": "in order from left to right",
    "scene": "scene right",
}


@dataclass(frozen=True)
class Case:
    """One video, or in the way ALONE one of each subject."""

    combination: int
    scene: str
    seed: int
    subjects: int = 2

    @property
    def actors(self) -> tuple[Actor, ...]:
        return tuple(_actor(self.combination + number) for number in range(self.subjects))

    @property
    def places(self) -> list[Float[Tensor, "f h w"]]:
        """What part of the frame each has, from left to right."""
        shape = world.FRAMES, world.SIZE, world.SIZE
        return [regions.region(place, shape) for place in ABREAST[self.subjects]]


def _actor(number: int) -> Actor:
    return *SUBJECTS[number % len(SUBJECTS)], MOVEMENTS[number % len(MOVEMENTS)]


def truth(cell: Case) -> media.Frames:
    """The world's own clip of each actor, as much of it as its place shows."""
    video = torch.zeros(1, 3, world.FRAMES, world.SIZE, world.SIZE)
    for (noun, look, movement), place in zip(cell.actors, cell.places, strict=True):
        own = render([Content(noun, movement, cell.scene, look)], cell.seed, vary=0.0).video
        video += place * own.roll(-regions.to_the_middle(place), -1)
    return to_frames(video)


class View(NamedTuple):
    """What the judge sees of a video."""

    actors: list[judge.Seen]
    """In the order of the cell's."""
    are_there: bool
    """Whether there are as many as there should be; of three it is not told."""
    in_order: bool
    """Whether they stand from left to right as they are named."""


def view(video: Video, opinion: judge.Opinion, cell: Case) -> View:
    """Who of two, of whom the judge's opinion is, or of three in their thirds is rather which actor by its noun."""
    nouns = [judge.NAMES["noun"].index(noun) for noun, _, _ in cell.actors]
    if cell.subjects == 2:
        seen = list(opinion.in_order([(nouns[0], nouns[1])]))
        across = [float(one.position[0, :, 0].mean()) for one in seen]
        return View(seen, bool(opinion.two[0] > judge.SURE), across[0] < across[1])
    windows = [judge.load().look(one) for one in _windows(video, cell)]
    best = max(
        permutations(range(cell.subjects)),
        key=lambda order: sum(float(windows[k].noun[0, noun]) for k, noun in zip(order, nouns, strict=True)),
    )
    return View([windows[k] for k in best], True, best == tuple(range(cell.subjects)))


def _windows(video: Video, cell: Case) -> list[Video]:
    """The video with all but one place as the world paints the scene where nobody is."""
    nobody = indices([Content(CLIP_NOUN, "", cell.scene)])
    nobody.noun[:] = world.ABSENT
    scene = world.render(nobody, torch.Generator().manual_seed(cell.seed), vary=0.0).video
    return [place * video + (1 - place) * scene for place in cell.places]


def judged(frames: media.Frames, cell: Case) -> dict[str, float]:
    """MEASURES of a video of all; of each: the mean over them."""
    video = to_video(frames)
    whole, looks = judge.load().look(video), [look for _, look, _ in cell.actors]
    seen, are_there, in_order = view(video, whole, cell)
    scores, swapped = judged_each(seen, cell), 0
    for one, (noun, look, _) in zip(seen, cell.actors, strict=True):
        others = [_like(one, noun, other) for other in looks if other != look]
        swapped += max(others, default=-1.0) > _like(one, noun, look)
    return scores | {
        "all": float(are_there and scores["all"]),
        "swapped": swapped / len(seen),
        "sides": float(in_order),
        "scene": float(whole.names("scene") == [cell.scene]),
    }


def judged_alone(videos: Sequence[media.Frames], cell: Case) -> dict[str, float]:
    """The same of videos of one subject each, as far as they can say it."""
    seen = [judge.load().look(to_video(frames)) for frames in videos]
    return judged_each(seen, cell) | {"scene": fmean(one.names("scene") == [cell.scene] for one in seen)}


def judged_each(seen: Sequence[judge.Seen], cell: Case) -> dict[str, float]:
    """Those of the MEASURES that are of each subject by itself."""
    of = list(zip(seen, cell.actors, strict=True))
    return {
        "all": float(all(one.names("noun") == [noun] for one, (noun, _, _) in of)),
        "identity": fmean(_like(one, noun, look) for one, (noun, look, _) in of),
        "track": fmean(_track(one, movement) for one, (_, _, movement) in of),
        "movement": fmean(one.names("movement") == [movement] for one, (_, _, movement) in of),
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
        if way == TRUTH:
            return judged(truth(cell), cell)
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
        """Of all subjects, as the base composes them."""
        (first, *others), backbone = map(self._learned, cell.actors), self.shop.backbone
        settings = backbone.defaults
        return VideoRecipe(
            first[0], first[1], cell.scene, backbone.name, backbone.fingerprint, settings.ttt,
            settings.sample.but(magnify=1), cell.seed, threads=1, others=tuple(Subject(*one) for one in others),
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
    parser.add_argument("--subjects", type=int, default=2, choices=[*ABREAST])
    parser.add_argument("--combinations", type=int, default=10)
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=[ALONE, *WAYS], choices=[TRUTH, ALONE, *WAYS])
    given = parser.parse_args()
    shop = Workshop(*opening.open_accelerated(given.base), Library(given.out, forgets=False), say=_said)
    run, scores = Trials(shop, given.out), {way: dict[Case, dict[str, float]]() for way in given.ways}
    every = product(range(given.seeds), SCENES[: given.scenes], range(given.combinations))
    for seed, scene, combination in every:
        cell = Case(combination, scene, seed, given.subjects)
        for way in given.ways:
            scores[way][cell] = run.measured(cell, way)
            _said(f"{way}; {cell}: {scores[way][cell]}")
    print("\n".join(table(scores)))


def _said(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
