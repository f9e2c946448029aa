"""The study's cells: pairings, scenes and seeds, what every arm learns and renders for them, and what the judge says.

Every arm renders from the same noise. Every concept, adaptation and cell is kept in a folder: a killed run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from customttt import learn, media, opening
from customttt.backbones import Backbone
from customttt.concept import Kind
from customttt.config import TrainConfig, digest
from customttt.errors import IncompleteError
from customttt.lab import score
from customttt.lab.arms import BLOCKS, TABLES, Arm
from customttt.lab.lessons import Content, School, clip, pictures, render, wording
from customttt.library import Library
from customttt.many import engine
from customttt.many.crews import Processes
from customttt.many.engine import Job, Outcome
from customttt.measure import influence, metrics, rivals, stats
from customttt.measure.ledger import Ledger
from customttt.progress import Say, silent
from customttt.recipe import Ingredient, Rival, VideoRecipe
from customttt.tiny import judge
from customttt.tiny.demo import CLIP_NOUN, CLIP_SCENE
from customttt.tiny.world import PLAIN, Look
from customttt.video import to_video
from customttt.workshop import Workshop

SUBJECTS = [
    ("koala", Look("purple", "crown")), ("dog", Look("blue", "top hat")), ("cat", Look("green", "bow")),
    ("penguin", Look("pink", "top hat")), ("tiger", Look("red", "crown")), ("frog", PLAIN), ("octopus", PLAIN),
    ("robot", PLAIN), ("elephant", PLAIN),
]  # fmt: skip
"""Five held-out looks and four held-out nouns."""
MOVEMENTS = [
    "swimming", "circling", "shaking", "somersaulting", "diving", "flying", "zigzagging", "bouncing", "dancing",
    "climbing",
]  # fmt: skip
SCENES = ["on Mars", "in the snow", "at night", "on the beach", "in the forest"]
MEASURES = {
    "identity": "subject: identity similarity",
    "subject": "subject right",
    "track": "movement: correlation of the track",
    "movement": "movement right",
    "scene": "scene right",
    "all": "all three right",
}
INFLUENCE: dict[Kind, list[influence.PromptPair]] = {
    "appearance": [
        influence.PromptPair("A koala.", "A tiger."), influence.PromptPair("A dog.", "A penguin."),
        influence.PromptPair("A fox.", "A panda."), influence.PromptPair("A cat.", "A teddy bear."),
        influence.PromptPair("A rabbit.", "A fox."), influence.PromptPair("A car.", "A koala."),
    ],
    "motion": [
        influence.PromptPair("A dog is jumping.", "A dog is running."),
        influence.PromptPair("A fox is sliding.", "A fox is rising."),
        influence.PromptPair("A koala is falling.", "A koala is swinging."),
        influence.PromptPair("A panda is standing still.", "A panda is jumping."),
        influence.PromptPair("A cat is running.", "A cat is growing."),
        influence.PromptPair("A tiger is rising.", "A tiger is sliding."),
    ],
}  # fmt: skip
"""Prompts, and what some blocks read instead: another subject, or another movement of the same."""
LEARNING_STEP, TTT_STEP = 1 / 15, 1 / 3
"""How long a step of learning and one of test-time training take beside a video, for the time left alone."""
LEARN, TEACH, ADAPT, RENDER = "learning", "teaching", "test-time training", "rendering"
KINDS: tuple[Kind, Kind] = ("appearance", "motion")
Subject = tuple[str, Look]


@dataclass(frozen=True)
class Cell:
    """One video of the study."""

    pairing: int
    scene: str
    seed: int

    @property
    def subject(self) -> Subject:
        return SUBJECTS[self.pairing % len(SUBJECTS)]

    @property
    def movement(self) -> str:
        return MOVEMENTS[self.pairing]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    pairings: int = len(MOVEMENTS)
    scenes: int = len(SCENES)
    seeds: int = 3
    steps: int | None = None
    """Of learning; None: the base's own."""
    ttt_steps: int | None = None
    """Of test-time training, where an arm has any; None: the arm's own."""
    prompts: int | None = None
    """Pairs of prompts for the influence of each block; None: all."""

    def cells(self) -> list[Cell]:
        """The first seed of everything comes first: a run that is stopped early says something of all pairings."""
        return [
            Cell(pairing, scene, seed)
            for seed in range(self.seeds)
            for scene in SCENES[: self.scenes]
            for pairing in range(self.pairings)
        ]


QUICK = Size(pairings=2, scenes=1, seeds=1, steps=12, ttt_steps=3, prompts=1)


@dataclass(frozen=True)
class Task:
    """A job of the study: for a cell by an arm of a table, whose function of a recipe cannot be sent to a process."""

    cell: Cell
    table: str
    name: str
    cost: float
    """How many videos take as long."""
    kind: Kind | None = None
    """Of a concept that is learned."""


@dataclass(frozen=True)
class Study:
    """A run: the base, what is measured, and the folder where everything is kept."""

    backbone: Backbone
    accelerator: Accelerator
    out: Path
    size: Size
    say: Say = print

    def run(self, tables: Sequence[str], share: tuple[int, int] = (1, 1), workers: int = 1) -> None:
        """Render and score what is missing, in this process or in several.

        `share` (i, n) is the i-th of n runs on the same folder, as on several machines. Raises IncompleteError where
        something failed, after everything else.
        """
        jobs = list(self._jobs(tables, share))
        left = {job.key: job.what.cost for job in jobs}
        began, whole, bad = time.monotonic(), sum(left.values()), list[Outcome]()
        with self._crew(workers) as crew:
            for number, outcome in enumerate(engine.run(jobs, self, crew), 1):
                del left[outcome.job.key]
                rest = sum(left.values())
                minutes = (time.monotonic() - began) / (whole - rest) * rest / 60
                self.say(f"{number} of {len(jobs)}: {outcome.job.title}; {minutes:.0f} minutes left")
                bad += [outcome] if outcome.why else []
        if bad:
            raise IncompleteError(f"{len(bad)} jobs failed; the first: {bad[0].job.title}: {bad[0].why}")
        for kind in KINDS[share[0] - 1 :: share[1]] if BLOCKS in tables else ():
            self.measure_influence(kind)

    @contextmanager
    def _crew(self, workers: int) -> Iterator[engine.Crew]:
        if workers == 1:
            yield engine.Alone(lambda: self.do)
            return
        with Processes(partial(opened, self.backbone.name, self.out, self.size), workers) as crew:
            yield crew

    def _jobs(self, tables: Sequence[str], share: tuple[int, int]) -> Iterator[Job]:
        """What is missing: each video after what is learned for it, which those that come first need for the others."""
        arms = [(table, name) for table in tables if table in TABLES for name in TABLES[table]]
        mine = [cell for cell in self.size.cells() if cell.pairing % share[1] == share[0] - 1]
        known = set[str]()
        for cell, (table, name) in product(mine, arms):
            arm = TABLES[table][name]
            key = self.video(cell, arm).stem
            if key in known or self.scores(cell, arm) is not None:
                continue  # arms of two tables may be the same
            needs: tuple[str, ...] = ()
            for before, (task, kind, cost) in self._missing(cell, arm).items():
                if before not in known:
                    known.add(before)
                    what = Task(cell, table, name, cost, kind)
                    yield Job(before, task, f"{task} for {arm.title}; {cell}", needs if task == ADAPT else (), what)
                needs += (before,)
            known.add(key)
            yield Job(key, RENDER, f"{arm.title}; {cell}", needs, Task(cell, table, name, 1.0))

    def _missing(self, cell: Cell, arm: Arm) -> dict[str, tuple[str, Kind | None, float]]:
        """What has to be learned for a video, by name: how, of which kind, and how many videos take as long."""
        costs = {kind: self._config(kind, arm).steps * LEARNING_STEP for kind in KINDS}
        if arm.rival:
            rival = self._rival(cell, arm.rival)
            return {} if self.shop.library.adapted(rival.key) else {rival.key: (TEACH, None, sum(costs.values()))}
        names = {kind: self._school.name(kind, self._content(kind, cell), self._config(kind, arm)) for kind in KINDS}
        missing: dict[str, tuple[str, Kind | None, float]] = {
            name: (LEARN, kind, costs[kind]) for kind, name in names.items() if not self._school.known(name)
        }
        recipe = self._recipe(cell, arm)
        name = self._adaptation(cell, arm, recipe)
        done = not recipe.ttt.steps or self.ledger.get(name)
        return missing if done else missing | {name: (ADAPT, None, recipe.ttt.steps * TTT_STEP)}

    # -- what jobs mean (engine.Foreman)

    def known(self, job: Job) -> Any:
        """Whether another run on this folder has done it since."""
        if job.kind == LEARN:
            return self._school.known(job.key)
        if job.kind == TEACH:
            return self.shop.library.adapted(job.key)
        return self.ledger.get(job.key)

    def order(self, job: Job) -> tuple[str, Task]:
        return job.kind, job.what

    def keep(self, job: Job, value: Any) -> Any:  # noqa: ARG002 all is kept in the folder
        return True

    def do(self, order: tuple[str, Task]) -> None:
        """Do a job; what it makes is kept in the folder."""
        kind, task = order
        cell, arm = task.cell, TABLES[task.table][task.name]
        if task.kind:
            self._school.learned(task.kind, self._content(task.kind, cell), self._config(task.kind, arm))
        elif kind == RENDER:
            self._render(cell, arm)
        else:
            self._taught(cell, arm, self._recipe(cell, arm))

    def measure_influence(self, kind: Kind) -> None:
        """What each block carries alone, and the smallest set that carries nine tenths; measured once."""
        pairs, name = self._influence(kind, self.size.seeds)
        if self.ledger.get(name) is None:
            self.say(f"prompt influence of the {kind}")
            scorer = influence.by_texts(judge.shows)
            measured = influence.Measurement(
                self.backbone, pairs, scorer, self.size.seeds, ledger=self.ledger, by="judge"
            )
            effects = {"alone": measured.per_layer(), "chosen": measured.select()}
            self.ledger.put(name, **{key: [asdict(one) for one in some] for key, some in effects.items()})

    def carried(self, kind: Kind) -> dict[str, list[influence.Influence]] | None:
        """What `measure_influence` found over these seeds, or over the most known; None where it has not."""
        names = (self._influence(kind, seeds)[1] for seeds in range(self.size.seeds, 0, -1))
        known = next((kept for name in names if (kept := self.ledger.get(name))), None)
        return known and {
            key: [influence.Influence(tuple(one["layers"]), stats.Estimate(**one["effect"])) for one in some]
            for key, some in known.items()
        }

    def _influence(self, kind: Kind, seeds: int) -> tuple[list[influence.PromptPair], str]:
        """The pairs of prompts, and what the measurement is kept under."""
        pairs = INFLUENCE[kind][: self.size.prompts]
        return pairs, f"influence-{kind}-{len(pairs)}-{seeds}-{self.backbone.fingerprint}"

    @cached_property
    def ledger(self) -> Ledger:
        """Everything that was measured. Beside a copy of this file alone, a run goes on from there."""
        return Ledger(self.out / "ledger.jsonl")

    def scores(self, cell: Cell, arm: Arm) -> dict[str, float] | None:
        """What the judge says of a video; None where it is not made yet."""
        known = self.ledger.get(self.video(cell, arm).stem)
        return known and dict(known["scores"])

    def video(self, cell: Cell, arm: Arm) -> Path:
        """Where a cell's video is kept: named by all that makes it."""
        recipe = self._recipe(cell, arm)
        ttt = recipe.ttt.changed() if recipe.ttt.steps else {}
        short = recipe.to_dict() | {"ttt": ttt, "sample": recipe.sample.changed()}
        parts = [short, self._configs(arm), arm.rival]
        key = digest(parts)[:16]
        return self.out / "cells" / f"{cell.pairing}-{cell.seed}-{key}.mp4"

    def seconds(self, cell: Cell, arm: Arm) -> float | None:
        """CPU seconds of test-time training; None where there is none."""
        recipe = self._recipe(cell, arm)
        known = self.ledger.get(self._adaptation(cell, arm, recipe)) if recipe.ttt.steps else None
        return float(known["seconds"]) if known else None

    def _recipe(self, cell: Cell, arm: Arm) -> VideoRecipe:
        """An arm's, named by truth instead of by weights, so that it is known before anything is learned."""
        noun, _ = cell.subject
        settings = self.backbone.defaults
        recipe = arm.change(VideoRecipe(
            Ingredient(self._content("appearance", cell).file_name, noun, ""),
            Ingredient(cell.movement, cell.movement, ""), cell.scene,
            self.backbone.name, self.backbone.fingerprint, settings.ttt, settings.sample.but(magnify=1), cell.seed,
        ))  # fmt: skip
        return replace(recipe, ttt=recipe.ttt.but(steps=self.size.ttt_steps)) if recipe.ttt.steps else recipe

    def _render(self, cell: Cell, arm: Arm) -> None:
        recipe, path = self._recipe(cell, arm), self.video(cell, arm)
        frames = self.shop.compose(recipe, self._taught(cell, arm, recipe))
        path.parent.mkdir(parents=True, exist_ok=True)
        media.write_video(path, frames, recipe.sample.fps, recipe.to_dict())
        self.ledger.put(path.stem, arm=arm.title, of=asdict(cell), scores=judged(frames, cell))

    @cached_property
    def _materials(self) -> list[rivals.Material]:
        """By pairing: what a rival learns from, its pictures and its clip, in the budget of all others."""
        return [self._material(Cell(pairing, "", 0)) for pairing in range(self.size.pairings)]

    def _material(self, cell: Cell) -> rivals.Material:
        sample, anyone = self.backbone.defaults.sample, Arm("a rival")
        seen, moves = pictures(*cell.subject), clip(cell.movement, num_frames=sample.num_frames, fps=sample.fps)
        words = {kind: wording(kind, self._content(kind, cell)) for kind in KINDS}
        return rivals.Material(
            learn.manifest(self.backbone, seen, words["appearance"], self._config("appearance", anyone)),
            learn.manifest(self.backbone, moves, words["motion"], self._config("motion", anyone)),
            seen, moves, self.backbone.defaults,
        )  # fmt: skip

    def _rival(self, cell: Cell, rival: str) -> Rival:
        return Rival(rival, self._materials[cell.pairing].key(rival))

    def _taught(self, cell: Cell, arm: Arm, recipe: VideoRecipe) -> rivals.MethodWeights:
        """What a video is rendered with; how long test-time training took is kept in the ledger."""
        if arm.rival:
            return self.shop.teach(self._rival(cell, arm.rival), self._materials[cell.pairing])
        appearance, motion = (
            self._school.learned(kind, self._content(kind, cell), self._config(kind, arm)) for kind in KINDS
        )
        real = replace(recipe, appearance=Ingredient.of(appearance), motion=Ingredient.of(motion))
        began, known = time.process_time(), self.shop.library.adapted(real.adaptation_key())
        loras = self.shop.adapt(real)
        if recipe.ttt.steps and not known:
            self.ledger.put(self._adaptation(cell, arm, recipe), seconds=time.process_time() - began)
        return rivals.MethodWeights(loras)

    def _adaptation(self, cell: Cell, arm: Arm, recipe: VideoRecipe) -> str:
        """The name of test-time training in the ledger: all that makes it, known before anything is learned."""
        prompts = [recipe.joint_prompt, *recipe.teacher_prompts.values()]
        settings = recipe.ttt.changed(), recipe.sample.changed(), self._configs(arm)
        parts = [recipe.base_fingerprint, recipe.appearance.name, recipe.motion.name, prompts, settings]
        return f"{cell.pairing}-{digest(parts)[:16]}"

    def _config(self, kind: Kind, arm: Arm) -> TrainConfig:
        """How an arm learns."""
        config: TrainConfig = getattr(self.backbone.defaults, kind)
        return config.but(**{"steps": self.size.steps, **arm.learning.get(kind, {})})

    def _configs(self, arm: Arm) -> list[dict[str, Any]]:
        return [self._config(kind, arm).changed() for kind in KINDS]

    @cached_property
    def shop(self) -> Workshop:
        """Its library, in the folder, holds all that was learned."""
        return Workshop(self.backbone, self.accelerator, Library(self.out, forgets=False))

    @property
    def _school(self) -> School:
        return School(self.shop, self.say)

    def _content(self, kind: Kind, cell: Cell) -> Content:
        """What a concept of the pairing is learned from."""
        noun, look = cell.subject
        return Content(noun, "", "", look) if kind == "appearance" else Content(CLIP_NOUN, cell.movement, CLIP_SCENE)


def opened(base: str, out: Path, size: Size) -> Callable[[Any], None]:
    """What does a study's jobs in a process of its own."""
    return Study(*opening.open_accelerated(base), out, size, silent).do


def judged(frames: media.Frames, cell: Cell) -> dict[str, float]:
    """MEASURES of one video. A subject is right where its noun is, and no other look of that noun is more similar."""
    noun, look = cell.subject
    opinion = judge.load().look(to_video(frames))
    cosines = (opinion.identity @ score.in_all_looks(noun).T)[0]
    mine = score.LOOKS.index(look)
    moves = [Content(CLIP_NOUN, cell.movement, CLIP_SCENE)]
    truth = render(moves, 0, num_frames=len(frames), vary=0.0).pose[0, 0, :, :2]
    subject = opinion.names("noun") == [noun] and int(cosines.argmax()) == mine
    movement, scene = opinion.names("movement") == [cell.movement], opinion.names("scene") == [cell.scene]
    return {
        "identity": float(cosines[mine]),
        "subject": float(subject),
        "track": metrics.correlation(opinion.position[0], truth),
        "movement": float(movement),
        "scene": float(scene),
        "all": float(subject and movement and scene),
    }
