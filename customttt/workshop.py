"""Learn, adapt and compose by name against a library: what takes long is kept, and a killed run goes on.

What the commands, the lab and Python users call. Nothing is printed here: steps go to a `Report`, sentences to a `Say`.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator

from customttt import (
    backbones,
    checkpoint,
    compose,
    learn,
    lora,
    machine,
    media,
    opening,
    pairs,
    planner,
    previews,
    regions,
    threads,
)
from customttt.backbones import Backbone
from customttt.checkpoint import Keeper
from customttt.concept import Concept, Kind, check_name
from customttt.config import Aspect, SampleConfig, TrainConfig
from customttt.errors import CustomTTTError, DamagedError, LockedError, NotFoundError, StoreError, UsageError
from customttt.learn import Inputs, Wording
from customttt.library import Library
from customttt.measure import rivals
from customttt.measure.rivals import Material, MethodWeights
from customttt.planner import Forecast
from customttt.progress import Progress, Report, Say, never, silent
from customttt.recipe import Rival, VideoRecipe, adapter_name, check_prompt, phrase_of, training_prompt

NOTHING: Mapping[str, Any] = MappingProxyType({})
PROMPTS: Mapping[Kind, str] = MappingProxyType(
    {"appearance": '"A koala." "A tiger."', "motion": '"A dog is jumping." "A dog is running."'}
)
"""What `influence` may be asked of each kind."""
GLANCE_SECONDS = 20.0
"""Between two glances at what is being learned, at least."""
PREVIEW_STEPS = 10
"""Of denoising a preview, ours: on `tiny`, 25 show the same and take 2.5 times as long."""


# -- known before a base is loaded


def settings(
    library: Library, base: str, kind: Kind, changes: Mapping[str, Any] = NOTHING, measured: bool = False
) -> TrainConfig:
    """How a base learns a kind, with those of `changes` that are not None; if `measured`, where `influence` found it.

    Raises UsageError, BaseUnavailableError, or NotFoundError where nothing was measured.
    """
    own: TrainConfig = getattr(backbones.defaults(base), kind)
    return own.but(**changes).but(layers=carrying(library, base, kind) if measured else None)


def carrying(library: Library, base: str, kind: Kind) -> tuple[int, ...]:
    """The blocks that `influence` found; one that a LoRA of the kind cannot use gives way to the next that it can.

    So the paper went from 2 and 4, which it had measured for motion, to 2 and 5. Raises NotFoundError.
    """
    measured = library.carrying(backbones.identify(base), kind)
    if measured is None:
        raise NotFoundError(
            f"Nobody has measured here which layers of {base!r} carry the {kind}; "
            f"'customttt influence {PROMPTS[kind]} --kind {kind} --base {base}' does."
        )
    able = sorted({place.layer for place in backbones.places(base).values() if place.kind in (kind, None)})
    return tuple(sorted({min((one for one in able if one >= layer), default=able[-1]) for layer in measured}))


def for_clip(base: str, sample: SampleConfig, clip: Path | str, asked: Aspect | None = None) -> SampleConfig:
    """A base's settings in the shape in which a clip is learned: as asked, else its own, or a square if all else fails.

    Raises NotFoundError, MediaError, UsageError or BaseUnavailableError.
    """
    if asked is None and backbones.is_square(base):
        return sample
    return sample.but(aspect=asked or media.aspect_of(clip))


@dataclass(frozen=True)
class Plan:
    """A concept that is to be learned: from what, on which base, and how."""

    words: Wording
    inputs: Inputs
    base: str
    fingerprint: str
    config: TrainConfig

    @property
    def kind(self) -> Kind:
        return learn.kind_of(self.inputs)

    def check(self) -> None:
        """Raise UsageError for words that cannot be read."""
        check_prompt(self.words.phrase, "The phrase")
        check_prompt(self.words.prompt)

    @property
    def key(self) -> str:
        """What its run is kept under."""
        return learn.run_key(self.kind, self.fingerprint, self.words, self.config, learn.digest_of(self.inputs))

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Whose each sentence is that is learned with, and the sentence; the prompt only where a caption is missing."""
        pictures = [] if isinstance(self.inputs, media.Clip) else self.inputs
        captions = [(f"The caption of '{one.name}'", text) for one in pictures for text in one.captions]
        prompted = not pictures or not all(one.captions for one in pictures)
        return [("The prompt", self.words.prompt)] * prompted + captions

    @property
    def changeable(self) -> dict[str, Any]:
        """The settings that its run may change when it goes on."""
        return {name: getattr(self.config, name) for name in learn.CHANGEABLE}

    def forecast(self) -> Forecast:
        """What learning it will take. Raises BaseUnavailableError, or UsageError for what the base cannot do."""
        frames = self.inputs.frames if isinstance(self.inputs, media.Clip) else [self.inputs[0].pixels]
        height, width, _ = frames[0].shape
        return planner.learning(self.base, self.kind, self.config, len(frames), (height, width))

    def learned(self, library: Library) -> Concept | None:
        """The concept of its name, where learning would give the same again. Raises DamagedError."""
        try:
            concept = library.get(self.words.name)
        except NotFoundError:
            return None
        keys = ("layers", "rank", "steps", "learning_rate", "seed")
        known = concept.phrase, concept.prompt, concept.base_fingerprint, concept.inputs
        planned = self.words.phrase, self.words.prompt, self.fingerprint, learn.digest_of(self.inputs)
        if known != planned or any(getattr(concept, key) != getattr(self.config, key) for key in keys):
            return None
        library.weights(concept.name)  # a damaged concept is not there
        return concept

    def unfinished(self, library: Library, resume: bool = False) -> tuple[Path | None, str]:
        """The interrupted run that this one goes on from, and a sentence about it; None and "" where there is none.

        With `resume` it goes on although steps or learning rate changed. Raises UsageError where it cannot.
        """
        kept = library.unfinished(self.key)
        if kept is None:
            if resume:
                raise UsageError("There is no unfinished run of this to --resume; leave it out to start one.")
            return None, ""
        known = checkpoint.read_header(kept)
        done, steps = len(known.losses), self.config.steps
        if known.settings == self.changeable:
            return kept, f"An interrupted run goes on after step {done} of {steps}."
        was = f"after step {done}, at learning rate {known.settings['learning_rate']:g}"
        if not resume:
            return None, f"An interrupted run stands {was}; --resume goes on from it; this one starts anew."
        if done >= steps:
            raise UsageError(f"The run to --resume stands {was}; give more --steps than {done}.")
        return kept, f"The run goes on {was} until now."


def forecast(library: Library, pair: pairs.Pair, recipe: VideoRecipe, videos: int = 1) -> Forecast:
    """What so many videos of a recipe will take.

    Raises BaseUnavailableError, or UsageError for too many frames or subjects.
    """
    backbones.check_subjects(recipe.base, len(recipe.subjects))
    recipe.check_frames()
    if recipe.then:
        turns = [forecast(library, pairs.of_recipe(library, one), one, videos) for one in recipe.turns]
        return replace(max(turns, key=lambda one: one.position), seconds=sum(one.seconds for one in turns))
    adapters = {slot: planner.Adapter(one.kind, one.layers, one.rank) for slot, one in pair.concepts.items()}
    steps = 0 if recipe.rival or library.adapted(recipe.adaptation_key()) else recipe.ttt.steps
    settings = recipe.ttt.but(steps=steps), recipe.sample, videos, recipe.predictions
    return planner.composing(recipe.base, adapters, *settings)


def check_taught(library: Library, rival: Rival) -> None:
    """Raise UsageError unless the library holds what a rival learned."""
    if library.adapted(rival.key) is None:
        raise _untaught(rival)


def _untaught(rival: Rival) -> UsageError:
    return UsageError(
        f"The video was made by '{rival.name}', and what that learned is not in this library; "
        f"'customttt compare --methods {rival.name}' with --images and --clip learns it."
    )


def save(path: Path, frames: media.Frames, recipe: VideoRecipe, anew: bool = False) -> dict[str, Any]:
    """Write a video with its recipe, and this program's versions, inside. Returns what is written there.

    With `anew` it replaces no other: that is an AlreadyExistsError. Raises UsageError for another ending than mp4, gif,
    webp or none (a folder of png), StoreError where it cannot be.
    """
    made = {**recipe.to_dict(), "versions": machine.versions()}
    media.write_video(path, frames, recipe.sample.fps, made, anew)
    return made


def _preview_sample(plan: Plan, own: SampleConfig) -> SampleConfig:
    """How a preview is sampled: a picture of an appearance, of a motion a video as long and wide as its clip."""
    frames = len(plan.inputs.frames) if isinstance(plan.inputs, media.Clip) else 1
    aspect = learn.aspect_of(plan.inputs, own)
    return own.but(num_frames=frames, num_inference_steps=PREVIEW_STEPS, aspect=aspect)


# -- with a base


@dataclass(frozen=True)
class Workshop:
    """A base, the library that it works for, and who is told: steps, sentences, and that a checkpoint was kept."""

    backbone: Backbone
    accelerator: Accelerator
    library: Library = field(default_factory=Library)
    report: Report = silent
    say: Say = silent
    kept: Callable[[], object] = lambda: None
    stop: Callable[[], bool] = never
    """Asked at every step of learning; where it says so, the step is kept and `learn` raises StoppedError."""
    glance: Callable[[media.Frames], object] | None = None
    """Shown every so often what is being learned: a picture or a video, uint8 (f h w c)."""

    @classmethod
    def open(
        cls,
        base: str | None = None,
        library: Library | None = None,
        report: Report = silent,
        say: Say = silent,
        kept: Callable[[], object] = lambda: None,
    ) -> Workshop:
        """With a base on the best device here; where none is named, with the one that suits this machine.

        Raises BaseUnavailableError, or OutOfMemoryError where the base does not fit.
        """
        opened = opening.open_accelerated(backbones.choose_base(base)[0])
        return cls(*opened, library or Library(), report, say, kept)

    def learn_appearance(
        self, name: str, images: Sequence[Path | str], noun: str = "", prompt: str = "", **changes: Any
    ) -> Concept:
        """Learn a subject from pictures, files or folders, and store it.

        `noun` is what it is, by default from the name, `prompt` what is learned with, by default "A <noun>.", `changes`
        are fields of TrainConfig. Raises NotFoundError or MediaError for what cannot be read, and what `learn` does.
        """
        pictures = media.read_pictures(list(map(Path, images)), self.backbone.defaults.sample.sides)
        return self._learned(self._named(name, noun, prompt, pictures, changes))

    def learn_motion(
        self, name: str, clip: Path | str, phrase: str = "", prompt: str = "", aspect: Aspect | None = None,
        **changes: Any,
    ) -> Concept:  # fmt: skip
        """The same for a movement, from a clip of it, in its own shape unless `aspect` says another (`for_clip`).

        `prompt` is by default "Something is <phrase>.".
        """
        sample = for_clip(self.backbone.name, self.backbone.defaults.sample, clip, aspect)
        frames = media.read_clip(clip, sample.num_frames, sample.fps, sample.sides)
        return self._learned(self._named(name, phrase, prompt, frames, changes))

    def _named(self, name: str, phrase: str, prompt: str, inputs: Inputs, changes: Mapping[str, Any]) -> Plan:
        check_name(name)
        kind, phrase = learn.kind_of(inputs), phrase or phrase_of(name)
        own: TrainConfig = getattr(self.backbone.defaults, kind)
        return self.plan(Wording(name, phrase, prompt or training_prompt(kind, phrase)), inputs, own.but(**changes))

    def _learned(self, plan: Plan) -> Concept:
        """The concept, learned and with a preview unless it was there."""
        return plan.learned(self.library) or self.preview(plan, self.learn(plan))

    def plan(self, words: Wording, inputs: Inputs, config: TrainConfig) -> Plan:
        """What `learn` is to learn; raises UsageError for words that cannot be read."""
        plan = Plan(words, inputs, self.backbone.name, self.backbone.fingerprint, config)
        plan.check()
        return plan

    def learn(self, plan: Plan, resume: bool = False, force: bool = False, rung: int = 0) -> Concept:
        """Learn a concept and store it, with `force` in place of another of its name; what is there is not learned.

        An interrupted run goes on, with `resume` although its steps or its learning rate changed; `rung` is where on
        the ladder of `thrift` it begins. Raises StoppedError where it was asked to stop, and UsageError,
        AlreadyExistsError, DamagedError, DivergedError, OutOfMemoryError, LockedError or StoreError.
        """
        if not force and (known := plan.learned(self.library)):
            return known
        self.library.check_free(plan.words.name, force)
        keeper = self._keeper(plan.key, plan.unfinished(self.library, resume)[0], plan.changeable)
        report = self._glancing(plan) if self.glance else self.report
        with_what = plan.words, plan.config, self.accelerator, report, keeper, rung
        if isinstance(plan.inputs, media.Clip):
            learned = learn.motion(self.backbone, plan.inputs, *with_what)
        else:
            learned = learn.appearance(self.backbone, plan.inputs, *with_what)
        concept = learned.add_to(self.library, force)
        self.library.remove_unfinished(plan.key)
        return concept

    def preview(self, plan: Plan, concept: Concept, shown: media.Frames | None = None) -> Concept:
        """Leave in the entry of a concept just learned what `previews` knows; returns the concept with it.

        `shown` is what its LoRA alone makes of its training prompt; by default it is made here, one frame for an
        appearance, and a video for a motion. What prevents it is told, and costs the preview alone.
        """
        inputs = plan.inputs.frames if isinstance(plan.inputs, media.Clip) else [one.pixels for one in plan.inputs]
        try:
            if shown is None:
                sample = _preview_sample(plan, self.backbone.defaults.sample)
                shown = self.try_out(concept, sample.num_frames, (0,), sample.num_inference_steps)[0]
        except torch.OutOfMemoryError:
            self._warn("The preview was left out: there is not enough memory for it.")
        fps = self.backbone.defaults.sample.fps
        try:
            return self.library.attach(
                concept, lambda folder: previews.write(folder, shown, fps, concept.losses, inputs)
            )
        except (StoreError, LockedError, NotFoundError, DamagedError) as error:
            self._warn(f"The preview is not kept: {error}")
            return concept

    def unread(self, texts: Sequence[tuple[str, str]]) -> str:
        """A sentence on those of the texts, each after its name, that are longer than the base reads; "" if none is."""
        counts = [(name, *self.backbone.count_tokens(text)) for name, text in texts]
        long = [(name, tokens, most) for name, tokens, most in counts if tokens > most]
        if not long:
            return ""
        base, (name, tokens, most) = self.backbone.name, long[0]
        if len(long) == 1:
            return f"{name} has {tokens} tokens, and {base} reads {most}; its end is ignored."
        most_tokens = max(tokens for _, tokens, _ in long)
        return (
            f"{name} and {len(long) - 1} more have up to {most_tokens} tokens, and {base} reads {most}; "
            "their ends are ignored."
        )

    def try_out(
        self, concept: Concept, num_frames: int, seeds: Sequence[int], steps: int | None = None
    ) -> list[media.Frames]:
        """Videos of what its LoRA alone makes of its training prompt, one a seed: uint8 (f h w c)."""
        sample = self.backbone.defaults.sample.but(
            num_frames=num_frames, num_inference_steps=steps, aspect=concept.aspect
        )
        weights = lora.load(self.library.weights(concept.name))
        return compose.try_out(self.backbone, concept.kind, weights, concept.prompt, sample, seeds, self.report)

    def recipe(
        self,
        appearance: str,
        motion: str,
        prompt: str = "",
        seed: int = 0,
        others: Sequence[tuple[str, str | None]] = (),
        then: Sequence[str] = (),
    ) -> VideoRecipe:
        """The recipe of a video of two concepts, and of further subjects: (appearance, motion or None) of each.

        Or of one subject that makes the motions of `then` after the first.

        `dataclasses.replace` changes what it says.

        Raises NotFoundError, UsageError for another kind, a bad prompt or too many subjects, DamagedError, or
        BaseUnavailableError where they were not learned on this base.
        """
        base = self.backbone
        backbones.check_subjects(base.name, 1 + len(others))
        pair = pairs.named(self.library, appearance, motion, others, then)
        recipe = pair.recipe(prompt, base.name, base.fingerprint, base.defaults, seed)
        return replace(recipe, threads=threads.number())

    def adapt(self, recipe: VideoRecipe, rung: int = 0) -> lora.Loras:
        """The LoRAs after test-time training, which is not done twice; with zero steps they are as learned.

        Where one motion comes after another, each is adapted to the appearance by itself, as for a video of its own.
        Raises NotFoundError where the library lacks a concept, DamagedError, DivergedError or OutOfMemoryError.
        """

        def learned() -> lora.Loras:
            return {slot: lora.load(path) for slot, path in pairs.of_recipe(self.library, recipe).weights.items()}

        def adapted() -> lora.Weights:
            return lora.join(compose.adapt(self.backbone, learned(), recipe, self.accelerator, self.report, rung))

        if recipe.then:
            turns = [self.adapt(turn, rung) for turn in recipe.turns]
            return {
                adapter_name(kind, number): one for number, loras in enumerate(turns) for kind, one in loras.items()
            }
        if recipe.ttt.steps == 0:
            return learned()
        again = "Test-time training: done for these before; its result is used again."
        return lora.split(self._once(recipe.adaptation_key(), again, adapted))

    def teach(self, rival: Rival, material: Material | None = None) -> MethodWeights:
        """What a rival learned, which is not learned twice; a killed run of it goes on.

        Raises UsageError where it has to learn and there is no material, DivergedError or OutOfMemoryError.
        """
        keys: list[str] = []

        def stage(name: str) -> Keeper:
            keys.append(hashlib.sha256(f"{rival.key} {name}".encode()).hexdigest())
            return self._keeper(keys[-1], self.library.unfinished(keys[-1]), {})

        def learned() -> lora.Weights:
            if material is None:
                raise _untaught(rival)
            full = self.library.adapted(material.key("full"))
            subject = MethodWeights.from_weights(lora.load(full)).loras["appearance"] if full else None
            return rivals.teach(
                rival.name, self.backbone, material, self.accelerator, self.report, stage, subject
            ).to_weights()

        again = f"'{rival.name}' learned from these before; its result is used again."
        weights = self._once(rival.key, again, learned)
        for key in keys if self.library.adapted(rival.key) else ():
            self.library.remove_unfinished(key)
        return MethodWeights.from_weights(weights)

    def prepare(self, recipe: VideoRecipe, material: Material | None = None, rung: int = 0) -> MethodWeights:
        """What all videos of a recipe are rendered with, whatever their seed. Raises what `adapt` and `teach` do.

        Raises UsageError, too, for what the base cannot do: frames, a shape, steps, or words that it does not read.
        """
        self.backbone.latent_shape(recipe.sample.num_frames, *recipe.sample.sides)
        self.backbone.schedule.path(recipe.sample.num_inference_steps)
        recipe.check_frames()
        if recipe.apart:
            regions.tokens(self.backbone, recipe)
        return self.teach(recipe.rival, material) if recipe.rival else MethodWeights(self.adapt(recipe, rung))

    def compose(self, recipe: VideoRecipe, taught: MethodWeights | None = None) -> media.Frames:
        """The frames of a recipe, uint8 (f h w c); the same again, bit for bit on a CPU. For `taught` see `prepare`."""
        taught = taught or self.prepare(recipe)
        with taught.spoken(self.backbone, recipe.appearance.phrase):
            return compose.render(self.backbone, taught.loras, recipe, self.report)

    def write(self, recipe: VideoRecipe, path: Path | str, taught: MethodWeights | None = None) -> dict[str, Any]:
        """Compose a video and `save` it. Returns the recipe as it was written; raises what both do."""
        return save(Path(path), self.compose(recipe, taught), recipe)

    # -- below: how it is kept

    def _once(self, key: str, again: str, make: Callable[[], lora.Weights]) -> lora.Weights:
        """What `make` gives, made once: afterwards `again` is said. Where it cannot be kept, that costs time alone."""
        if known := self.library.adapted(key):
            self.say(again)
            return lora.load(known)
        weights = make()
        try:
            self.library.add_adapted(key, lambda path: lora.save(weights, path))
        except (StoreError, LockedError) as error:
            self._warn(f"The adapted LoRAs are not kept for the next time: {error}")
        return weights

    def _keeper(self, key: str, kept: Path | None, changeable: Mapping[str, Any]) -> Keeper:
        """Keeps a run of learning in the library under `key`; `kept` is where it stands."""
        told: list[str] = []

        def keep(write: Callable[[Path], object]) -> None:
            self.library.add_unfinished(key, write)
            self.kept()

        def failed(error: CustomTTTError) -> None:
            if not isinstance(error, LockedError) and not told:  # while another writes, the next chance comes soon
                told.append(str(error))
                self._warn(f"No checkpoint was kept, and learning goes on without: {error}")

        return Keeper(kept, keep, changeable, failed, self.stop)

    def _glancing(self, plan: Plan) -> Report:
        """A report that shows what is being learned; it takes a tenth of the time at most."""
        glance, backbone, sample = self.glance, self.backbone, _preview_sample(plan, self.backbone.defaults.sample)
        assert glance is not None
        due = time.monotonic() + GLANCE_SECONDS

        def report(progress: Progress) -> None:
            nonlocal due
            self.report(progress)
            if progress.note or progress.step == progress.total or time.monotonic() < due:
                return
            began = time.monotonic()
            try:
                glance(compose.glance(backbone, plan.kind, plan.words.prompt, sample))
            except torch.OutOfMemoryError:  # learning itself may fit
                began = -math.inf
            due = time.monotonic() + max(GLANCE_SECONDS, 9 * (time.monotonic() - began))

        return report

    def _warn(self, text: str) -> None:
        self.report(Progress("", 0, 0, note=text))
