"""A grid: appearances x motions x prompts x seeds, and concepts that are learned first, as jobs for the engine.

A video is known by the digest of its recipe, an adaptation by its key in the library, a concept by what it is learned
from and how. So what is done is found again, by whichever grid it was made. Test-time training is done once for all
prompts and seeds of a pair, as long as they differ in nothing that it depends on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, get_args

from customttt import backbones, learn, machine, media, planner, threads, workshop
from customttt.concept import Concept, Kind
from customttt.config import Defaults, SampleConfig, TrainConfig, check_seed, digest, parse_aspect
from customttt.errors import CustomTTTError, NotFoundError, UsageError
from customttt.learn import Inputs, Wording
from customttt.library import ADAPTED, WEIGHTS, Library
from customttt.limits import MAX_JOBS
from customttt.many.bench import Adapt, Learn, Order, Render
from customttt.many.engine import Job, Outcome
from customttt.many.spec import AppearanceLesson, GridSpec, MotionLesson
from customttt.measure.ledger import Ledger
from customttt.pairs import Pair, check_base
from customttt.planner import Adapter
from customttt.recipe import VideoRecipe, check_prompt, kind_of, listed, phrase_of, training_prompt
from customttt.wish import Settings
from customttt.workshop import Plan

KINDS: tuple[Kind, ...] = get_args(Kind)
LEARN, ADAPT, VIDEO = "learn", "adapt", "video"
PIXEL_BYTES = 0.15
"""Of a video file for each pixel of each frame as it is shown: 0.10 for those of `tiny` (ours)."""


@dataclass(frozen=True)
class Combination:
    """One video."""

    appearance: str
    motion: str
    prompt: str
    seed: int

    @property
    def title(self) -> str:
        scene = f' "{self.prompt}"' if self.prompt else ""
        return f"{self.appearance} {self.motion}{scene}, seed {self.seed}"


@dataclass(frozen=True)
class Preparation:
    """A concept that is learned first; its pictures or its clip are read again when it is."""

    kind: Kind
    name: str
    asked: AppearanceLesson | MotionLesson
    key: str
    """Of its run."""
    known: bool
    frames: int
    sides: tuple[int, int]
    """(height, width)."""
    config: TrainConfig

    @property
    def title(self) -> str:
        return f"{self.kind} '{self.name}'"


@dataclass(frozen=True)
class Foretold:
    """What a grid will take."""

    missing: Mapping[str, int]
    """How many jobs of each kind are not done."""
    seconds: Mapping[str, float]
    """Of one job of each kind, on average, by one worker."""
    memory: int
    """Bytes at the peak, for each worker."""
    free: int
    disk: int
    """Bytes that are added to the disk."""

    @property
    def total(self) -> float:
        """Seconds of one worker."""
        return sum(self.missing[kind] * self.seconds[kind] for kind in self.missing)


@dataclass
class Pace:
    """How long the rest of a grid takes: as foretold at first, then as measured."""

    foretold: Foretold
    workers: int = 1
    ended: Counter[str] = field(default_factory=Counter)
    measured: dict[str, list[float]] = field(default_factory=dict)
    """By kind: how many were done, and their seconds."""

    def note(self, outcome: Outcome) -> None:
        """A job has ended."""
        if outcome.state == "known":
            return
        self.ended[outcome.job.kind] += 1
        if outcome.state == "done":
            number, seconds = self.measured.get(outcome.job.kind, (0, 0.0))
            self.measured[outcome.job.kind] = [number + 1, seconds + outcome.seconds]

    @property
    def left(self) -> float:
        """Seconds; kinds of which none is done yet are as much slower than foretold as the others were."""
        real = sum(seconds for _, seconds in self.measured.values())
        told = sum(number * self.foretold.seconds[kind] for kind, (number, _) in self.measured.items())
        slower = real / told if told else 1.0

        def each(kind: str) -> float:
            number, seconds = self.measured.get(kind, (0, 0.0))
            return seconds / number if number else self.foretold.seconds[kind] * slower

        rest = {kind: max(number - self.ended[kind], 0) for kind, number in self.foretold.missing.items()}
        return sum(number * each(kind) for kind, number in rest.items()) / self.workers


@dataclass
class Grid:
    """A grid on one base, and what its jobs mean. See `planned`."""

    library: Library
    base: str
    fingerprint: str
    defaults: Defaults
    spec: GridSpec
    folder: Path
    threads: int = 1
    """Of the CPU for each video, whoever makes it, as they decide the last bits; 0: on a GPU."""
    axes: dict[Kind, list[str]] = field(default_factory=dict)
    """The names of which every appearance is composed with every motion; further subjects are not among them."""
    concepts: dict[Kind, dict[str, Concept]] = field(default_factory=dict)
    """By name; one that is not learned yet is as in `named`."""
    named: dict[Kind, dict[str, Concept]] = field(default_factory=dict)
    """What jobs are named by: those that the grid learns have the key of their run in place of their weights'."""
    lessons: dict[tuple[Kind, str], Preparation] = field(default_factory=dict)

    @classmethod
    def planned(cls, library: Library, spec: GridSpec, folder: Path, count: int = 1) -> Grid:
        """Find every concept, and read every picture and clip that is to be learned from; nothing is loaded.

        `count` is of CPU threads. Raises UsageError, NotFoundError, MediaError, DamagedError, AlreadyExistsError for a
        name that is taken by another concept, or BaseUnavailableError.
        """
        _check_count(library, spec)
        for prompt in spec.prompts:
            check_prompt(prompt)
        for seed in spec.all_seeds():
            check_seed(seed)
        base = _base(library, spec)
        known = backbones.identify(base), backbones.defaults(base)
        count = count if machine.device().type == "cpu" else 0
        grid = cls(library, base, *known, spec, folder, count)
        backbones.check_subjects(base, 1 + len(spec.others))
        for kind in KINDS:
            grid.named[kind] = {}
            grid.axes[kind] = grid._axis(kind)
            names = dict.fromkeys([*grid.axes[kind], *spec.beside(kind)])
            grid.concepts[kind] = {name: grid._taught(kind, name) for name in names}
        grid._check_names()
        grid.recipe(next(grid.cells(*grid._first))).check_frames()  # raises for what no recipe can have
        return grid

    # -- what there is

    @property
    def counts(self) -> dict[str, int]:
        """Jobs of each kind."""
        videos = len(self.pairs) * len(self.spec.prompts) * self.spec.how_many_seeds()
        return {LEARN: len(self.lessons), ADAPT: len(self._adaptations), VIDEO: videos}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every appearance with every motion."""
        return list(product(self.axes["appearance"], self.axes["motion"]))

    def cells(self, appearance: str, motion: str) -> Iterator[Combination]:
        """The videos of a pair."""
        for prompt in self.spec.prompts:
            for seed in self.spec.all_seeds():
                yield Combination(appearance, motion, prompt, seed)

    def jobs(self) -> Iterator[Job]:
        """Every job, after those that it needs."""
        for lesson in self.lessons.values():
            yield Job(lesson.key, LEARN, lesson.title, (), lesson)
        for pair in self.pairs:
            needs: tuple[str, ...] = ()
            for number, turn in enumerate(self._turns(*pair)):
                concepts = [(kind_of(slot), one.name) for slot, one in turn.ingredients.items()]
                taught = tuple(self.lessons[one].key for one in concepts if one in self.lessons)
                if self._adapts:
                    key = turn.adaptation_key()
                    if (whose := self._adaptations[key])[0] == (*pair, number):  # once, for the first that needs it
                        title = f"test-time training of {turn.appearance.name} {turn.motion.name}"
                        yield Job(key, ADAPT, title, taught, whose)
                    taught = (key,)
                needs += taught
            for cell in self.cells(*pair):
                yield Job(name_of(self._recipe(cell, self.named)), VIDEO, cell.title, tuple(dict.fromkeys(needs)), cell)

    def recipe(self, cell: Combination) -> VideoRecipe:
        """That of a video, of the concepts as they are known now. Raises UsageError or BaseUnavailableError."""
        return self._recipe(cell, self.concepts)

    def _recipe(self, cell: Combination, concepts: Mapping[Kind, Mapping[str, Concept]]) -> VideoRecipe:
        pair = self._pair(cell.appearance, cell.motion, concepts)
        recipe = pair.recipe(cell.prompt, self.base, self.fingerprint, self.defaults)
        return replace(self._settings(cell.appearance).again(recipe), seed=cell.seed, threads=self.threads)

    def _pair(self, appearance: str, motion: str, concepts: Mapping[Kind, Mapping[str, Concept]]) -> Pair:
        looks, moves = concepts["appearance"], concepts["motion"]
        others = ((looks[one], moves[other] if other else None) for one, other in self.spec.others)
        return Pair(looks[appearance], moves[motion], tuple(others), tuple(moves[one] for one in self.spec.then))

    def _settings(self, appearance: str) -> Settings:
        """Those of videos of an appearance: places are of whoever is in them."""
        settings, there = self.spec.settings, (appearance, *self.spec.beside("appearance"))
        places = {name: place for name, place in settings.places.items() if name in there}
        return settings.model_copy(update={"places": places})

    def _check_names(self) -> None:
        """Raise UsageError for the place of who is in no video, and for a motion that would come after itself."""
        if twice := next((name for name in self.spec.then if name in self.axes["motion"]), None):
            raise UsageError(f"'{twice}' comes after every motion of this grid, and cannot be one of them, too.")
        names = list(self.concepts["appearance"])
        if unknown := [name for name in self.spec.settings.places if name not in names]:
            raise UsageError(f"'{unknown[0]}' is no subject of this grid; a place can be given to {listed(names)}.")

    def path(self, cell: Combination, recipe: VideoRecipe) -> Path:
        """Where its video goes; the name holds the recipe's digest."""
        name = f"{cell.appearance}-{cell.motion}-seed{cell.seed}-{name_of(recipe)[:12]}.mp4"
        return self.folder / name

    # -- what jobs mean (engine.Foreman)

    def known(self, job: Job) -> Any:
        return self._known(job, self._video)

    def order(self, job: Job) -> Order:
        if job.kind == LEARN:
            return Learn(self._plan(job.what.kind, job.what.name, job.what.asked))
        if job.kind == ADAPT:
            return Adapt(self._turn(*job.what[0]))
        recipe = self.recipe(job.what)
        return Render(recipe, self.path(job.what, recipe).absolute())

    def keep(self, job: Job, value: Any) -> Any:  # noqa: ARG002 what was made is in its place
        if job.kind == LEARN:
            self.concepts[job.what.kind][job.what.name] = self.library.get(job.what.name, job.what.kind)
        if job.kind != VIDEO:
            return True
        recipe = self.recipe(job.what)
        path = self.path(job.what, recipe)
        self._note(recipe, path)
        return path

    # -- what it takes

    def forecast(self) -> Foretold:
        """Count what is missing, and foretell time, memory and disk. Raises BaseUnavailableError or UsageError."""
        missing = dict.fromkeys(self.counts, 0)
        for job in self.jobs():
            missing[job.kind] += self._known(job, self._made) is None
        nothing = Foretold(missing, dict.fromkeys(missing, 0.0), 0, 0, 0)
        with threads.using(self.threads):
            return _foretold(self, missing) if any(missing.values()) else nothing

    # -- below: how it is found

    @property
    def _first(self) -> tuple[str, str]:
        """A pair of it."""
        return self.axes["appearance"][0], self.axes["motion"][0]

    @cached_property
    def _adapts(self) -> bool:
        """Whether there is test-time training."""
        return self._pair_recipe(*self._first).ttt.steps > 0

    @cached_property
    def _adaptations(self) -> dict[str, list[tuple[str, str, int]]]:
        """By key: the pairs whose videos need it, and in which of their turns; none without test-time training.

        A motion that comes after every other is adapted to each appearance once.
        """
        needed: dict[str, list[tuple[str, str, int]]] = {}
        for pair in self.pairs if self._adapts else ():
            for number, turn in enumerate(self._turns(*pair)):
                needed.setdefault(turn.adaptation_key(), []).append((*pair, number))
        return needed

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger(self.library.made)

    def _pair_recipe(self, appearance: str, motion: str) -> VideoRecipe:
        return self.recipe(Combination(appearance, motion, self.spec.prompts[0], 0))

    def _turns(self, appearance: str, motion: str) -> list[VideoRecipe]:
        """What a pair's videos are, one turn after the other, of the concepts that jobs are named by."""
        return self._recipe(next(self.cells(appearance, motion)), self.named).turns

    def _turn(self, appearance: str, motion: str, number: int) -> VideoRecipe:
        """What a pair's videos are in one turn, of the concepts as they are known now."""
        return self._pair_recipe(appearance, motion).turns[number]

    def _axis(self, kind: Kind) -> list[str]:
        """The names of a kind: of concepts that are there, and of those that are to be learned."""
        asked = self.spec.names(kind)
        if asked is None:
            fitting = [one for one in self.library.concepts(kind) if one.base_fingerprint == self.fingerprint]
            asked = list(dict.fromkeys([*getattr(self.spec.learn, kind), *(one.name for one in fitting)]))
            own = self.spec.beside(kind) if kind == "appearance" else self.spec.then
            asked = [name for name in asked if name not in own]
        if not asked:
            raise NotFoundError(
                f"The grid has no {kind}: nothing of that kind was learned on '{self.base}'; "
                f"'customttt learn-{kind}' does that, or the grid's file with [learn.{kind}.NAME]."
            )
        return asked

    def _taught(self, kind: Kind, name: str) -> Concept:
        lessons: Mapping[str, Any] = getattr(self.spec.learn, kind)
        if name not in lessons:
            concept = self.library.get(name, kind)
            check_base(concept, self.base, self.fingerprint)
            self.library.weights(name)  # verified once, and again where it is used
            self.named[kind][name] = concept
            return concept
        plan = self._plan(kind, name, lessons[name])
        learned = plan.learned(self.library)
        if learned is None:
            self.library.check_free(name)
        frames, sides = _measures(plan.inputs)
        self.lessons[kind, name] = Preparation(
            kind, name, lessons[name], plan.key, learned is not None, frames, sides, plan.config
        )
        self.named[kind][name] = _to_be(plan, self.defaults)
        return learned or self.named[kind][name]

    def _plan(self, kind: Kind, name: str, asked: AppearanceLesson | MotionLesson) -> Plan:
        """How a concept is learned, and from what, read now. Raises UsageError, NotFoundError or MediaError."""
        phrase = asked.phrase.strip() or phrase_of(name)
        prompt = asked.prompt or training_prompt(kind, phrase)
        check_prompt(phrase, "The phrase")
        check_prompt(prompt)
        config = workshop.settings(self.library, self.base, kind, asked.changes())
        inputs = self._inputs(asked)
        return Plan(Wording(name, phrase, prompt), inputs, self.base, self.fingerprint, config)

    def _inputs(self, asked: AppearanceLesson | MotionLesson) -> Inputs:
        sample = self.defaults.sample
        if isinstance(asked, AppearanceLesson):
            return media.read_pictures(self.spec.paths(asked.images), sample.sides, asked.fit)
        (path,) = self.spec.paths(asked.clip)
        sample = workshop.for_clip(self.base, sample, path, parse_aspect(asked.aspect)).but(num_frames=asked.frames)
        return media.read_clip(path, sample.num_frames, sample.fps, sample.sides, asked.start, asked.end)

    def _known(self, job: Job, made: Callable[[Combination], Path | None]) -> Any:
        """What a job was to give, if it was done; `made` finds the video of a cell."""
        if job.kind == LEARN:
            return job.what.known or None
        if job.kind == VIDEO:
            return made(job.what)
        there = self.library.adapted(self._turn(*job.what[0]).adaptation_key())
        cells = (cell for appearance, motion, _ in job.what for cell in self.cells(appearance, motion))
        return there or all(made(cell) for cell in cells) or None

    def _video(self, cell: Combination) -> Path | None:
        """The video of a cell, as `_made`; then it is in this grid's folder, and noted."""
        place = self._made(cell)
        if place is None:
            return None
        recipe = self.recipe(cell)
        path = self.path(cell, recipe)
        if place != path:
            _put(place, path)
        elif self._ledger.get(name_of(recipe)) is None:  # the process that wrote it was killed before it could
            self._note(recipe, path)
        return path

    def _made(self, cell: Combination) -> Path | None:
        """Where the video of a cell is, if it was made, by whichever grid, and is as it was."""
        recipe = self.recipe(cell)
        path = self.path(cell, recipe)
        noted = self._ledger.get(name_of(recipe))
        if noted is None:
            return path if path.is_file() and _is_of(path, recipe) else None
        places = (path, Path(noted["path"]))
        return next((place for place in places if _sha256(place) == noted["sha256"]), None)

    def _note(self, recipe: VideoRecipe, path: Path) -> None:
        with suppress(OSError):  # a library that cannot be written costs other grids' time alone
            self._ledger.put(name_of(recipe), path=str(path.absolute()), sha256=_sha256(path))


def name_of(recipe: VideoRecipe) -> str:
    """The digest of all that tells a video apart: threads decide its last bits alone, and make no other video of it."""
    return digest({key: value for key, value in recipe.to_dict().items() if key != "threads"})


def _check_count(library: Library, spec: GridSpec) -> None:
    """Raise UsageError for more jobs than a grid has; nothing is counted out."""
    sizes = [len(library.concepts(kind)) if (names := spec.names(kind)) is None else len(names) for kind in KINDS]
    sizes += [len(spec.prompts), spec.how_many_seeds()]
    videos = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    if videos > MAX_JOBS:
        raise UsageError(
            f"The grid has {' x '.join(f'{size:,}' for size in sizes)} = {videos:,} videos; at most {MAX_JOBS:,} are "
            "made at once. Give fewer."
        )


def _base(library: Library, spec: GridSpec) -> str:
    """The one that is asked for; else that of the concepts named; else of all, or what suits this machine."""
    if spec.base:
        return backbones.choose_base(spec.base)[0]
    lessons: Mapping[Kind, Mapping[str, Any]] = {kind: getattr(spec.learn, kind) for kind in KINDS}
    asked = [(kind, name) for kind in KINDS for name in (*(spec.names(kind) or ()), *spec.beside(kind))]
    if named := [library.get(name, kind) for kind, name in asked if name not in lessons[kind]]:
        return named[0].base
    every = [one for kind in KINDS if spec.names(kind) is None for one in library.concepts(kind)]
    bases = {one.base_fingerprint: one.base for one in every}
    if len(bases) > 1:
        raise UsageError(f"The library has concepts of {len(bases)} bases ({', '.join(bases.values())}); give --base.")
    return every[0].base if every else backbones.choose_base(None)[0]


def _measures(inputs: Inputs) -> tuple[int, tuple[int, int]]:
    """(frames, (height, width))."""
    frames = inputs.frames if isinstance(inputs, media.Clip) else [inputs[0].pixels]
    height, width, _ = frames[0].shape
    return len(frames), (height, width)


def _to_be(plan: Plan, own: Defaults) -> Concept:
    """What stands for a concept until it is learned."""
    config = plan.config
    return Concept(
        name=plan.words.name, kind=plan.kind, phrase=plan.words.phrase, prompt=plan.words.prompt, base=plan.base,
        base_fingerprint=plan.fingerprint, layers=config.layers, rank=config.rank, steps=config.steps,
        learning_rate=config.learning_rate, seed=config.seed, sources=(), inputs=learn.digest_of(plan.inputs),
        losses=(), files={WEIGHTS: plan.key}, versions={}, created=datetime.now(UTC), seconds=0,
        aspect=learn.aspect_of(plan.inputs, own.sample),
    )  # fmt: skip


def _is_of(path: Path, recipe: VideoRecipe) -> bool:
    """Whether a file says of itself that it was made by this recipe."""
    try:
        return VideoRecipe.from_dict(media.read_recipe(path)) == recipe
    except CustomTTTError:
        return False


def _sha256(path: Path) -> str:
    """Of a file; empty where there is none that can be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _put(source: Path, path: Path) -> None:
    """Let a video of another grid be in this one's folder, too, where possible without taking room again."""
    with media.placed(path) as aside:
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)


def _foretold(grid: Grid, missing: Mapping[str, int]) -> Foretold:
    """Jobs of one kind take different times only where videos have another shape, or LoRAs other layers or ranks."""
    first, _ = grid._first
    samples = {name: grid._pair_recipe(first, name).sample for name in grid.axes["motion"]}
    predictions = grid._pair_recipe(*grid._first).predictions
    shared = grid.spec.beside("motion")  # who moves as another does has no LoRA of its own for it
    looks = {_adapter(grid.concepts["appearance"][name]): name for name in grid.axes["appearance"]}
    moves = {(_adapter(grid.concepts["motion"][name]), samples[name], name in shared): name for name in samples}
    ttt = grid._pair_recipe(*grid._first).ttt
    kinds = [(_adapters(grid, *names), samples[names[1]]) for names in product(looks.values(), moves.values())]
    adapting = [planner.composing(grid.base, adapters, ttt, sample, 0) for adapters, sample in kinds]
    still, (pair, _) = ttt.but(steps=0), kinds[0]
    rendering = [planner.composing(grid.base, pair, still, sample, 1, predictions) for sample in {*samples.values()}]
    lessons = [one for one in grid.lessons.values() if not one.known]
    learning = [planner.learning(grid.base, one.kind, one.config, one.frames, one.sides) for one in lessons]
    forecasts = [*rendering, *(adapting if missing[ADAPT] else ()), *learning]
    return Foretold(
        missing,
        {
            LEARN: _mean([one.seconds for one in learning]),
            ADAPT: _mean([one.seconds for one in adapting]),
            VIDEO: _mean([one.seconds for one in rendering]) * (1 + len(grid.spec.then)),
        },
        max(one.memory for one in forecasts),
        rendering[0].free,
        _disk(grid, missing, [adapters for adapters, _ in kinds], [*samples.values()]),
    )


def _disk(
    grid: Grid, missing: Mapping[str, int], kinds: Sequence[Mapping[str, Adapter]], samples: Sequence[SampleConfig]
) -> int:
    """Bytes of what is to be learned, of the adapted LoRAs that are kept, and of the videos."""
    new = [one for one in grid.lessons.values() if not one.known]
    learned = sum(planner.lora_bytes(grid.base, Adapter(one.kind, one.config.layers, one.config.rank)) for one in new)
    pair = max(sum(planner.lora_bytes(grid.base, one) for one in adapters.values()) for adapters in kinds)
    shown = _mean([one.num_frames * prod(one.sides) * one.magnify**2 for one in samples])
    return int(learned + min(missing[ADAPT], ADAPTED) * pair + missing[VIDEO] * shown * PIXEL_BYTES)


def _adapters(grid: Grid, appearance: str, motion: str) -> dict[str, Adapter]:
    """The LoRAs of a pair's videos, by name; of one turn of them."""
    pair = replace(grid._pair(appearance, motion, grid.concepts), then=())
    return {slot: _adapter(one) for slot, one in pair.concepts.items()}


def _adapter(concept: Concept) -> Adapter:
    return Adapter(concept.kind, concept.layers, concept.rank)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
