"""A lesson, whatever its kind: check, plan, read, learn, store. All cheap checks come before torch is imported."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from customttt.concept import Concept, Kind
from customttt.config import SampleConfig, TrainConfig
from customttt.errors import CustomTTTError, DamagedError, LockedError, NotFoundError, UsageError
from customttt.library import Library
from customttt.recipe import check_prompt
from customttt_cli import output, showing, trial
from customttt_cli.sources import Look, Material, Source

if TYPE_CHECKING:
    from customttt.checkpoint import Keeper
    from customttt.learn import Wording
    from customttt.planner import Forecast

OTHER: dict[Kind, Kind] = {"appearance": "motion", "motion": "appearance"}
FIRST = {
    "appearance": "customttt learn-appearance koala ./imgs",
    "motion": "customttt learn-motion swimming clip.mp4",
}


@dataclass(frozen=True)
class Lesson:
    """What is to be learned, as asked for."""

    kind: Kind
    name: str
    phrase: str
    prompt: str
    base: str | None
    changes: Mapping[str, Any]
    """Fields of TrainConfig; None leaves the base's."""
    resume: bool
    force: bool
    dry_run: bool
    as_json: bool
    auto_layers: bool = False
    """Learn where `influence` found that the base carries this kind."""


@dataclass(frozen=True)
class Plan:
    """A lesson on a certain base."""

    base: str
    why: str
    fingerprint: str
    words: Wording
    config: TrainConfig
    sample: SampleConfig


def learn(lesson: Lesson, source: Source) -> None:
    """Everything from the first check to the stored concept."""
    library = Library()
    check_prompt(lesson.phrase, "The noun" if lesson.kind == "appearance" else "The phrase")
    check_prompt(lesson.prompt)
    taken = _taken(library, lesson)
    look = source.look()
    if taken and not _learned_from(taken, lesson, look):
        library.check_free(lesson.name)
    with output.waiting("Loading torch"):
        plan = _plan(library, lesson)
    material = source.read(plan.sample)
    if taken and _same(taken, lesson, plan, material):
        _nothing_to_do(library, taken, lesson)
        return
    library.check_free(lesson.name, lesson.force)
    key = _key(lesson, plan, material)
    kept, standing = _go_on(library, lesson, plan, key)
    forecast = _forecast(library, lesson, plan, material)
    if lesson.dry_run and lesson.as_json:
        output.result(json.dumps(_fields(lesson, plan, forecast), indent=2, ensure_ascii=False))
        return
    for line in (*_describe(lesson, plan, material), *standing, *showing.forecast_lines(forecast)):
        (output.result if lesson.dry_run else output.say)(line)
    if not lesson.dry_run:
        keeper = keeping(library, key, kept, _changeable(plan))
        _carry_out(library, lesson, plan, material, keeper, forecast.position, key)


def _forecast(library: Library, lesson: Lesson, plan: Plan, material: Material) -> Forecast:
    """What it will take. Raises what would stop the run, before anything is loaded."""
    from customttt import backbones, planner

    if not lesson.dry_run:
        library.check_writable()
        backbones.check_at_hand(plan.base)
    with output.waiting("Working out memory and time"):
        return planner.learning(plan.base, lesson.kind, plan.config, material.num_frames, plan.sample.size)


def _fields(lesson: Lesson, plan: Plan, forecast: Forecast) -> dict[str, Any]:
    """The plan for programs."""
    named = {"name": lesson.name, "kind": lesson.kind, "prompt": lesson.prompt, "base": plan.base}
    return {**named, **plan.config.to_dict(), **showing.forecast_fields(forecast)}


def _key(lesson: Lesson, plan: Plan, material: Material) -> str:
    from customttt import learn as learning

    return learning.run_key(lesson.kind, plan.fingerprint, plan.words, plan.config, material.digest)


def _go_on(library: Library, lesson: Lesson, plan: Plan, key: str) -> tuple[Path | None, list[str]]:
    """The unfinished run to go on from, and a line about it. Raises UsageError for a --resume that cannot be."""
    from customttt import checkpoint

    kept = library.unfinished(key)
    if kept is None:
        if lesson.resume:
            raise UsageError("There is no unfinished run of this to --resume; leave it out to start one.")
        return None, []
    known = checkpoint.standing(kept)
    done, steps = len(known.losses), plan.config.steps
    if known.settings == _changeable(plan):
        return kept, [f"An interrupted run goes on after step {done} of {steps}."]
    was = f"after step {done}, at learning rate {known.settings['learning_rate']:g}"
    if not lesson.resume:
        return None, [f"An interrupted run stands {was}; --resume goes on from it; this one starts anew."]
    if done >= steps:
        raise UsageError(f"The run to --resume stands {was}; give more --steps than {done}.")
    return kept, [f"The run goes on {was} until now."]


def _changeable(plan: Plan) -> dict[str, Any]:
    from customttt import learn as learning

    return {key: getattr(plan.config, key) for key in learning.CHANGEABLE}


def keeping(library: Library, key: str, kept: Path | None, settings: Mapping[str, Any]) -> Keeper:
    """Keeps a run of learning in the library under `key`; `kept` is where it stands."""
    from customttt.checkpoint import Keeper

    told: list[str] = []

    def keep(write: Callable[[Path], object]) -> None:
        library.add_unfinished(key, write)
        output.kept()

    def failed(error: CustomTTTError) -> None:
        if not isinstance(error, LockedError) and not told:  # while another process writes, the next chance comes soon
            told.append(str(error))
            output.warn(f"No checkpoint was kept, and learning goes on without: {error}")

    return Keeper(kept, keep, settings, failed)


def _taken(library: Library, lesson: Lesson) -> Concept | None:
    """The concept that has this name and is not to be replaced. A damaged one is only replaced by --force."""
    library.check_free(lesson.name, force=True)  # letters that differ in case only
    if lesson.force:
        return None
    try:
        return library.get(lesson.name)
    except NotFoundError:
        return None
    except DamagedError:
        library.check_free(lesson.name)
        raise


def _learned_from(concept: Concept, lesson: Lesson, look: Look) -> bool:
    """Whether the files are the same; how they are cut and captioned is known when they are read."""
    return concept.kind == lesson.kind and tuple(source.sha256 for source in concept.sources) == look.digests


def _plan(library: Library, lesson: Lesson) -> Plan:
    output.quiet()
    from customttt import backbones
    from customttt import learn as learning

    words = learning.Wording(lesson.name, lesson.phrase, lesson.prompt)
    base, why = backbones.choose_base(lesson.base)
    defaults = backbones.defaults(base)
    config = defaults.appearance if lesson.kind == "appearance" else defaults.motion
    fingerprint = backbones.identify(base)
    layers = _carrying(library, lesson.kind, base, fingerprint) if lesson.auto_layers else None
    changed = config.but(**lesson.changes).but(layers=layers)
    return Plan(base, why, fingerprint, words, changed, defaults.sample)


def _carrying(library: Library, kind: Kind, base: str, fingerprint: str) -> tuple[int, ...]:
    """The blocks that `influence` found; one without modules of the kind gives way to the next that has some.

    So the paper went from 2 and 4, which it had measured for motion, to 2 and 5. Raises NotFoundError.
    """
    from customttt import backbones

    found = library.carrying(fingerprint, kind)
    if found is None:
        words = '"A koala." "A tiger."' if kind == "appearance" else '"A dog is jumping." "A dog is running."'
        raise NotFoundError(
            f"Nobody has measured here which layers of {base!r} carry the {kind}; "
            f"'customttt influence {words} --kind {kind} --base {base}' does."
        )
    able = sorted({place.layer for place in backbones.places(base).values() if place.kind == kind})
    return tuple(sorted({min((one for one in able if one >= layer), default=able[-1]) for layer in found}))


def _same(concept: Concept, lesson: Lesson, plan: Plan, material: Material) -> bool:
    """Whether learning again would give the same concept."""
    keys = ("layers", "rank", "steps", "learning_rate", "seed")
    known = (concept.phrase, concept.prompt, concept.base_fingerprint, concept.inputs)
    return known == (lesson.phrase, lesson.prompt, plan.fingerprint, material.digest) and all(
        getattr(concept, key) == getattr(plan.config, key) for key in keys
    )


def _nothing_to_do(library: Library, concept: Concept, lesson: Lesson) -> None:
    library.weights(concept.name)  # a damaged concept is not there
    output.say(f"'{concept.name}' was learned from the same input in the same way; there is nothing to do.")
    _result(library, concept, lesson)


def _result(library: Library, concept: Concept, lesson: Lesson) -> None:
    output.result(concept.to_json().rstrip() if lesson.as_json else str(library.path(concept.name)))


def _describe(lesson: Lesson, plan: Plan, material: Material) -> list[str]:
    config = plan.config
    layers = ", ".join(map(str, config.layers))
    return [
        f"Base: {plan.base} ({plan.why})",
        f"{lesson.kind.capitalize()} '{lesson.name}' from {material.summary}; prompt \"{lesson.prompt}\"",
        f"Layers {layers}; rank {config.rank}; {config.steps} steps at learning rate {config.learning_rate:g}; "
        f"seed {config.seed}",
    ]


def _carry_out(
    library: Library, lesson: Lesson, plan: Plan, material: Material, keeper: Keeper, rung: int, key: str
) -> None:
    from customttt import opening

    with output.loading(plan.base):
        backbone, accelerator = opening.open_accelerated(plan.base)
    said = [("The prompt", lesson.prompt)] * material.prompted + list(material.captions)
    if long := showing.unread(backbone, plan.base, said):
        output.warn(long)
    with output.progress() as report:
        learned = material.teach(
            backbone, wording=plan.words, config=plan.config, accelerator=accelerator, report=report, keeper=keeper,
            rung=rung,
        )  # fmt: skip
    concept = learned.add_to(library, force=lesson.force)
    library.remove_unfinished(key)
    output.stored()
    output.say(
        f"Learned '{concept.name}' in {output.duration(concept.seconds)}; loss {showing.losses(concept.losses)}."
    )
    if material.clip is not None:
        trial.try_out(backbone, accelerator, learned, material.clip)
    output.say(f"Next: {_next_command(library, concept)}")
    _result(library, concept, lesson)


def _next_command(library: Library, concept: Concept) -> str:
    """What to type now: compose with the newest fitting partner, or learn one."""
    other = OTHER[concept.kind]
    fitting = [one for one in library.concepts(other) if one.base_fingerprint == concept.base_fingerprint]
    if not fitting:
        return FIRST[other]
    partner = max(fitting, key=lambda one: one.created)
    pair = {concept.kind: concept.name, other: partner.name}
    return f'customttt compose {pair["appearance"]} {pair["motion"]} "on the beach"'
