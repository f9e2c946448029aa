"""The study's cells: pairings, scenes and seeds, what every arm learns and renders for them, and what the judge says.

Every arm renders from the same noise. Every LoRA, adaptation and cell is kept in a folder, so a killed run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from customttt import compose, learn, lora, media
from customttt.backbones import Backbone
from customttt.concept import Kind
from customttt.config import TrainConfig, digest
from customttt.lab import score
from customttt.lab.arms import BLOCKS, TABLES, Arm
from customttt.lab.lessons import Content, Say, School, clip, keep, pictures, render, wording
from customttt.measure import influence, metrics, rivals, stats
from customttt.measure.ledger import Ledger
from customttt.recipe import Ingredient, VideoRecipe
from customttt.tiny import judge
from customttt.tiny.demo import CLIP_NOUN, CLIP_SCENE
from customttt.tiny.world import PLAIN, Look
from customttt.video import to_video

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
INFLUENCE: dict[Kind, list[influence.Pair]] = {
    "appearance": [
        influence.Pair("A koala.", "A tiger."), influence.Pair("A dog.", "A penguin."),
        influence.Pair("A fox.", "A panda."), influence.Pair("A cat.", "A teddy bear."),
        influence.Pair("A rabbit.", "A fox."), influence.Pair("A car.", "A koala."),
    ],
    "motion": [
        influence.Pair("A dog is jumping.", "A dog is running."),
        influence.Pair("A fox is sliding.", "A fox is rising."),
        influence.Pair("A koala is falling.", "A koala is swinging."),
        influence.Pair("A panda is standing still.", "A panda is jumping."),
        influence.Pair("A cat is running.", "A cat is growing."),
        influence.Pair("A tiger is rising.", "A tiger is sliding."),
    ],
}  # fmt: skip
"""Prompts, and what some blocks read instead: another subject, or another movement of the same."""
LEARNING_STEP, TTT_STEP = 1 / 15, 1 / 3
"""How long a step of learning and one of test-time training take beside a video, for the time left alone."""
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
class Study:
    """A run: the base, what is measured, and the folder where everything is kept."""

    backbone: Backbone
    accelerator: Accelerator
    out: Path
    size: Size
    say: Say = print

    def run(self, tables: Sequence[str], share: tuple[int, int] = (1, 1)) -> None:
        """Render and score what is missing; `share` (i, n) is the i-th of n processes on the same folder."""
        arms = {name: arm for table in tables if table in TABLES for name, arm in TABLES[table].items()}
        mine = [cell for cell in self.size.cells() if cell.pairing % share[1] == share[0] - 1]
        wanted: dict[Path, tuple[Cell, Arm]] = {}  # arms of two tables may be the same
        for cell, arm in product(mine, arms.values()):
            wanted.setdefault(self.video(cell, arm), (cell, arm))
        todo = [(cell, arm) for cell, arm in wanted.values() if self.scores(cell, arm) is None]
        began, costs = time.monotonic(), self._costs(todo)
        for done, (cell, arm) in enumerate(todo, 1):
            self._render(cell, arm)
            left = (time.monotonic() - began) / sum(costs[:done]) * sum(costs[done:]) / 60
            self.say(f"{done} of {len(todo)}: {arm.title}; {cell}; {left:.0f} minutes left")
        for kind in KINDS[share[0] - 1 :: share[1]] if BLOCKS in tables else ():
            self.measure_influence(kind)

    def _costs(self, todo: Sequence[tuple[Cell, Arm]]) -> list[float]:
        """How long each takes beside a video whose weights are at hand: those who come first learn for the others."""
        costs, known = [], set[Path]()
        for cell, arm in todo:
            needed = self._needed(cell, arm)
            new = {path for path in needed.keys() - known if not path.exists()}
            known |= new
            costs.append(1 + sum(needed[path] for path in new))
        return costs

    def _needed(self, cell: Cell, arm: Arm) -> dict[Path, float]:
        """The weights that a video is rendered with, and how many videos could be rendered while they are made."""
        learning = {kind: self._config(kind, arm).steps * LEARNING_STEP for kind in KINDS}
        if arm.rival:
            return {self._rival(cell, arm.rival): sum(learning.values())}
        found = {
            self._school.path(kind, self._content(kind, cell), self._config(kind, arm)): cost
            for kind, cost in learning.items()
        }
        recipe = self._recipe(cell, arm)
        return found | ({self._adapted(cell, arm, recipe): recipe.ttt.steps * TTT_STEP} if recipe.ttt.steps else {})

    def measure_influence(self, kind: Kind) -> None:
        """What each block carries alone, and the smallest set that carries nine tenths; measured once."""
        pairs, name = self._influence(kind, self.size.seeds)
        if self.ledger.get(name) is None:
            self.say(f"prompt influence of the {kind}")
            scorer = influence.by_texts(judge.shows)
            measured = influence.Study(self.backbone, pairs, scorer, self.size.seeds, ledger=self.ledger, by="judge")
            found = {"alone": measured.per_layer(), "chosen": measured.select()}
            self.ledger.put(name, **{key: [asdict(one) for one in some] for key, some in found.items()})

    def carried(self, kind: Kind) -> dict[str, list[influence.Influence]] | None:
        """What `measure_influence` found over these seeds, or over the most known; None where it has not."""
        names = (self._influence(kind, seeds)[1] for seeds in range(self.size.seeds, 0, -1))
        known = next((found for name in names if (found := self.ledger.get(name))), None)
        return known and {
            key: [influence.Influence(tuple(one["layers"]), stats.Estimate(**one["effect"])) for one in some]
            for key, some in known.items()
        }

    def _influence(self, kind: Kind, seeds: int) -> tuple[list[influence.Pair], str]:
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
        known = self.ledger.get(self._adapted(cell, arm, recipe).stem) if recipe.ttt.steps else None
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
        taught = self._taught(cell, arm) if arm.rival else rivals.Taught(self._adapt(cell, arm, recipe))
        with taught.spoken(self.backbone, recipe.appearance.phrase):
            frames = compose.render(self.backbone, taught.pair, recipe, self.accelerator)
        path.parent.mkdir(parents=True, exist_ok=True)
        media.write_video(path, frames, recipe.sample.fps, recipe.to_dict())
        self.ledger.put(path.stem, arm=arm.title, of=asdict(cell), scores=judged(frames, cell))

    @cached_property
    def _materials(self) -> list[rivals.Material]:
        """By pairing: what a rival learns from, its pictures and its clip, in the budget of all others."""
        return [self._material(Cell(pairing, "", 0)) for pairing in range(self.size.pairings)]

    def _material(self, cell: Cell) -> rivals.Material:
        seen, moves, anyone = pictures(*cell.subject), clip(cell.movement), Arm("a rival")
        words = {kind: wording(kind, self._content(kind, cell)) for kind in KINDS}
        return rivals.Material(
            learn.manifest(self.backbone, seen, words["appearance"], self._config("appearance", anyone)),
            learn.manifest(self.backbone, moves, words["motion"], self._config("motion", anyone)),
            seen, moves, self.backbone.defaults,
        )  # fmt: skip

    def _taught(self, cell: Cell, arm: Arm) -> rivals.Taught:
        """What a rival has learned."""
        path, full = self._rival(cell, arm.rival), self._rival(cell, "full")
        if not path.exists():
            self.say(f"{arm.rival} learns {cell.subject} and {cell.movement}")
            everywhere = lora.split(lora.load(full))[0] if full.exists() else None
            material = self._materials[cell.pairing]
            taught = rivals.teach(arm.rival, self.backbone, material, self.accelerator, subject=everywhere)
            keep(taught.to_weights(), path)
        return rivals.Taught.from_weights(lora.load(path))

    def _rival(self, cell: Cell, rival: str) -> Path:
        key = self._materials[cell.pairing].key(rival)
        return self.out / "rivals" / f"{cell.pairing}-{key[:16]}.safetensors"

    def _adapt(self, cell: Cell, arm: Arm, recipe: VideoRecipe) -> compose.LoraPair:
        pair = self._learned("appearance", cell, arm), self._learned("motion", cell, arm)
        if not recipe.ttt.steps:
            return pair
        path = self._adapted(cell, arm, recipe)
        if not path.exists():
            began = time.process_time()
            adapted = compose.adapt(self.backbone, pair, recipe, self.accelerator)
            self.ledger.put(path.stem, seconds=time.process_time() - began)
            keep(lora.join(adapted), path)
        return lora.split(lora.load(path))

    def _adapted(self, cell: Cell, arm: Arm, recipe: VideoRecipe) -> Path:
        prompts = [recipe.joint_prompt, recipe.doing_prompts, recipe.object_prompts]
        settings = recipe.ttt.changed(), recipe.sample.changed(), self._configs(arm)
        parts = [recipe.base_fingerprint, recipe.appearance.name, recipe.motion.name, prompts, settings]
        key = digest(parts)[:16]
        return self.out / "adapted" / f"{cell.pairing}-{key}.safetensors"

    def _config(self, kind: Kind, arm: Arm) -> TrainConfig:
        """How an arm learns."""
        config: TrainConfig = getattr(self.backbone.defaults, kind)
        return config.but(**{"steps": self.size.steps, **arm.learning.get(kind, {})})

    def _configs(self, arm: Arm) -> list[dict[str, Any]]:
        return [self._config(kind, arm).changed() for kind in KINDS]

    def _learned(self, kind: Kind, cell: Cell, arm: Arm) -> lora.Weights:
        return self._school.learned(kind, self._content(kind, cell), self._config(kind, arm))

    @property
    def _school(self) -> School:
        return School(self.backbone, self.accelerator, self.out / "loras", self.say)

    def _content(self, kind: Kind, cell: Cell) -> Content:
        """What a concept of the pairing is learned from."""
        noun, look = cell.subject
        return Content(noun, "", "", look) if kind == "appearance" else Content(CLIP_NOUN, cell.movement, CLIP_SCENE)


def judged(frames: media.Frames, cell: Cell) -> dict[str, float]:
    """MEASURES of one video. A subject is right where its noun is, and no other look of that noun is more similar."""
    noun, look = cell.subject
    opinion = judge.load().look(to_video(frames))
    cosines = (opinion.identity @ score.in_all_looks(noun).T)[0]
    mine = score.LOOKS.index(look)
    truth = render([Content(CLIP_NOUN, cell.movement, CLIP_SCENE)], 0, vary=0.0).pose[0, 0, :, :2]
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
