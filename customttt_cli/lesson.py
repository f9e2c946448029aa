"""A lesson, whatever its kind: check, plan, read, learn, store. All cheap checks come before torch is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from customttt.concept import Concept, Kind
from customttt.errors import DamagedError, NotFoundError
from customttt.library import Library
from customttt.progress import duration
from customttt.recipe import check_prompt
from customttt_cli import output, render, showing, trial
from customttt_cli.sources import LessonInput

if TYPE_CHECKING:
    from customttt.planner import Forecast
    from customttt.workshop import Plan

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


def learn(lesson: Lesson, source: LessonInput) -> None:
    """Everything from the first check to the stored concept."""
    library = Library()
    _check(library, lesson, source)
    with output.loading_torch():
        plan, said = _plan(library, lesson, source)
    if not lesson.force and (known := plan.learned(library)):
        output.say(f"'{known.name}' was learned from the same input in the same way; there is nothing to do.")
        _result(library, known, lesson)
        return
    library.check_free(lesson.name, lesson.force)
    _, standing = plan.unfinished(library, lesson.resume)
    forecast = _forecast(library, lesson, plan)
    if lesson.dry_run and lesson.as_json:
        output.result(json.dumps(_fields(lesson, plan, forecast), indent=2, ensure_ascii=False))
        return
    for line in (*said, *([standing] if standing else []), *showing.forecast_lines(forecast)):
        (output.result if lesson.dry_run else output.say)(line)
    if not lesson.dry_run:
        _carry_out(library, lesson, plan, forecast.position)


def _check(library: Library, lesson: Lesson, source: LessonInput) -> None:
    """Raise what can be known without torch: what the words, the name, the files are no good for."""
    check_prompt(lesson.phrase, "The noun" if lesson.kind == "appearance" else "The phrase")
    check_prompt(lesson.prompt)
    taken = _taken(library, lesson)
    digests = source.look()
    if taken and (taken.kind, tuple(one.sha256 for one in taken.sources)) != (lesson.kind, digests):
        library.check_free(lesson.name)  # how the same files are cut and captioned is known when they are read


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


def _plan(library: Library, lesson: Lesson, source: LessonInput) -> tuple[Plan, list[str]]:
    """The lesson on a certain base, and in words."""
    from customttt import backbones, workshop
    from customttt.learn import Wording

    base, why = backbones.choose_base(lesson.base)
    config = workshop.settings(library, base, lesson.kind, lesson.changes, lesson.auto_layers)
    inputs, summary = source.read(base)
    words = Wording(lesson.name, lesson.phrase, lesson.prompt)
    layers = ", ".join(map(str, config.layers))
    return workshop.Plan(words, inputs, base, backbones.identify(base), config), [
        showing.base_line(base, why),
        f"{lesson.kind.capitalize()} '{lesson.name}' from {summary}; prompt \"{lesson.prompt}\"",
        f"Layers {layers}; rank {config.rank}; {config.steps} steps at learning rate {config.learning_rate:g}; "
        f"seed {config.seed}",
    ]


def _forecast(library: Library, lesson: Lesson, plan: Plan) -> Forecast:
    """What it will take. Raises what would stop the run, before anything is loaded."""
    from customttt import backbones

    if not lesson.dry_run:
        library.check_writable()
        backbones.check_at_hand(plan.base)
    with output.waiting("Working out memory and time"):
        return plan.forecast()


def _fields(lesson: Lesson, plan: Plan, forecast: Forecast) -> dict[str, Any]:
    """The plan for programs."""
    named = {"name": lesson.name, "kind": lesson.kind, "prompt": lesson.prompt, "base": plan.base}
    return {**named, **plan.config.to_dict(), **showing.forecast_fields(forecast)}


def _result(library: Library, concept: Concept, lesson: Lesson) -> None:
    output.result(concept.to_json().rstrip() if lesson.as_json else str(library.path(concept.name)))


def _carry_out(library: Library, lesson: Lesson, plan: Plan, rung: int) -> None:
    from customttt.media import Clip

    shop = render.opened(plan.base, library)
    if long := shop.unread(plan.texts):
        output.warn(long)
    with output.progress() as report:
        concept = replace(shop, report=report).learn(plan, lesson.resume, lesson.force, rung)
    output.stored()
    output.say(f"Learned '{concept.name}' in {duration(concept.seconds)}; loss {showing.losses(concept.losses)}.")
    shown = trial.try_out(shop, concept, plan.inputs.frames) if isinstance(plan.inputs, Clip) else None
    with output.progress() as report:
        concept = replace(shop, report=report).preview(plan, concept, shown)
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
