"""The study's cells: pairings, scenes and seeds, what every arm learns and renders for them, and what the judge says.

Every arm renders from the same noise. Every concept, adaptation and cell is kept in a folder: a killed run goes on.
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

from customttt import learn, media
from customttt.backbones import Backbone
from customttt.concept import Kind
from customttt.config import TrainConfig, digest
from customttt.lab import score
from customttt.lab.arms import BLOCKS, TABLES, Arm
from customttt.lab.lessons import Content, School, clip, pictures, render, wording
from customttt.library import Library
from customttt.measure import influence, metrics, rivals, stats
from customttt.measure.ledger import Ledger
from customttt.progress import Say
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
        costs, known = [], set[str]()
        for cell, arm in todo:
            new = {name: cost for name, cost in self._missing(cell, arm).items() if name not in known}
            known |= new.keys()
            costs.append(1 + sum(new.values()))
        return costs

    def _missing(self, cell: Cell, arm: Arm) -> dict[str, float]:
        """What has to be learned for a video, and how many videos could be rendered while it is."""
        learning = {kind: self._config(kind, arm).steps * LEARNING_STEP for kind in KINDS}
        if arm.rival:
            rival = self._rival(cell, arm.rival)
            return {} if self.shop.library.adapted(rival.key) else {rival.key: sum(learning.values())}
        names = {kind: self._school.name(kind, self._content(kind, cell), self._config(kind, arm)) for kind in KINDS}
        found = {name: learning[kind] for kind, name in names.items() if not self._school.known(name)}
        recipe = self._recipe(cell, arm)
        name = self._adaptation(cell, arm, recipe)
        done = not recipe.ttt.steps or self.ledger.get(name)
        return found if done else found | {name: recipe.ttt.steps * TTT_STEP}

    def measure_influence(self, kind: Kind) -> None:
        """What each block carries alone, and the smallest set that carries nine tenths; measured once."""
        pairs, name = self._influence(kind, self.size.seeds)
        if self.ledger.get(name) is None:
            self.say(f"prompt influence of the {kind}")
            scorer = influence.by_texts(judge.shows)
            measured = influence.Measurement(
                self.backbone, pairs, scorer, self.size.seeds, ledger=self.ledger, by="judge"
            )
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
        seen, moves, anyone = pictures(*cell.subject), clip(cell.movement), Arm("a rival")
        words = {kind: wording(kind, self._content(kind, cell)) for kind in KINDS}
        return rivals.Material(
            learn.manifest(self.backbone, seen, words["appearance"], self._config("appearance", anyone)),
            learn.manifest(self.backbone, moves, words["motion"], self._config("motion", anyone)),
            seen, moves, self.backbone.defaults,
        )  # fmt: skip

    def _rival(self, cell: Cell, rival: str) -> Rival:
        return Rival(rival, self._materials[cell.pairing].key(rival))

    def _taught(self, cell: Cell, arm: Arm, recipe: VideoRecipe) -> rivals.Taught:
        """What a video is rendered with; how long test-time training took is kept in the ledger."""
        if arm.rival:
            return self.shop.teach(self._rival(cell, arm.rival), self._materials[cell.pairing])
        appearance, motion = (
            self._school.learned(kind, self._content(kind, cell), self._config(kind, arm)) for kind in KINDS
        )
        real = replace(recipe, appearance=Ingredient.of(appearance), motion=Ingredient.of(motion))
        began, known = time.process_time(), self.shop.library.adapted(real.adaptation_key())
        pair = self.shop.adapt(real)
        if recipe.ttt.steps and not known:
            self.ledger.put(self._adaptation(cell, arm, recipe), seconds=time.process_time() - began)
        return rivals.Taught(pair)

    def _adaptation(self, cell: Cell, arm: Arm, recipe: VideoRecipe) -> str:
        """The name of test-time training in the ledger: all that makes it, known before anything is learned."""
        prompts = [recipe.joint_prompt, recipe.doing_prompts, recipe.object_prompts]
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
