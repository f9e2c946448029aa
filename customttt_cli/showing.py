"""Concepts and recipes as lines of text. Nothing is read or printed here, but for a folder's size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from customttt.concept import Concept
from customttt.progress import duration
from customttt.recipe import Ingredient, VideoRecipe
from customttt_cli.output import gigabytes
from customttt_cli.sources import count, measures

if TYPE_CHECKING:
    from customttt.planner import Forecast

SPAN = 10
"""Losses that a mean is taken over, where there are as many."""


def concept_lines(concept: Concept, folder: Path) -> list[str]:
    """A manifest for people."""
    return _aligned(
        {
            "name": concept.name,
            "kind": concept.kind,
            "phrase": concept.phrase,
            "prompt": concept.prompt,
            "base": f"{concept.base} (fingerprint {concept.base_fingerprint})",
            "layers": ", ".join(map(str, concept.layers)),
            "rank": str(concept.rank),
            "steps": _steps(concept),
            "loss": losses(concept.losses),
            "learned": _learned(concept),
            "from": ", ".join(source.name for source in concept.sources),
            "versions": _versions(concept.versions),
            "shown by": ", ".join(concept.previews) or "nothing",
            "path": str(folder),
        }
    )


def _steps(concept: Concept) -> str:
    if not concept.steps:
        return "unknown"
    return f"{concept.steps} at learning rate {concept.learning_rate:g}, seed {concept.seed}"


def _learned(concept: Concept) -> str:
    when = f"{concept.created:%Y-%m-%d %H:%M} UTC"
    return f"{when}, in {duration(concept.seconds)}" if concept.steps else f"by another program; imported {when}"


def recipe_lines(recipe: VideoRecipe, versions: Mapping[str, str]) -> list[str]:
    """A recipe for people."""
    sample, ttt = recipe.sample, recipe.ttt
    method = {"method": f"{recipe.rival.name}, learned anew from the pictures and the clip"} if recipe.rival else {}
    apart = f", the motion's {ttt.learning_rate * ttt.motion_rate:g}" if ttt.motion_rate != 1 else ""
    teachers = f" of {len(recipe.ingredients)} teachers each" if recipe.others else ""
    teachers = " for each motion" if recipe.then else teachers
    then = {"then": ", ".join(map(_ingredient, recipe.then))} if recipe.then else {}
    adapted = f"{ttt.steps} steps{teachers} at learning rate {ttt.learning_rate:g}{apart}" if ttt.steps else "none"
    return _aligned(
        {
            "prompt": recipe.target_prompt,
            **method,
            **{slot: _ingredient(one) for slot, one in recipe.turns[0].ingredients.items()},
            **then,
            **_places(recipe),
            "base": f"{recipe.base} (fingerprint {recipe.base_fingerprint})",
            "adapted": adapted,
            "denoised": f"{sample.num_inference_steps} steps, guidance {sample.guidance_scale:g}, seed {recipe.seed}",
            "frames": f"{sample.num_frames} of {measures(sample.sides)}, {sample.fps} a second, "
            f"shown {sample.magnify} times as large",
            **({"versions": _versions(versions)} if versions else {}),
        }
    )


def machine_lines(facts: Mapping[str, Any]) -> list[str]:
    """What `doctor` found, for people."""
    gpus = [f"{gpu['name']}, {gigabytes(gpu['memory_bytes'])}" for gpu in facts["gpus"]]
    learning = "not known"
    if "learning_seconds" in facts:
        learning = (
            f"a motion takes {gigabytes(facts['learning_memory_bytes'])} "
            f"and about {duration(facts['learning_seconds'])} on {facts['base']}"
        )
    return _aligned(
        {
            "customttt": facts["customttt"],
            "python": facts["python"],
            "torch": facts["torch"],
            "cores": str(facts["cores"]),
            "memory": f"{gigabytes(facts['memory_bytes'])}, {gigabytes(facts['memory_available_bytes'])} available",
            "GPU": "; ".join(gpus) or "none that torch can use",
            "disk": f"{gigabytes(facts['library_free_bytes'])} free at the library",
            "library": f"{facts['library']}, {count(facts['library_concepts'], 'concept')}, "
            + ("damaged" if facts["library_problem"] else "intact"),
            "model hub": f"{facts['hub']}, {facts['hub_state']}",
            "base": f"{facts['base']} ({facts['base_reason']})",
            "learning": learning,
        }
    )


def base_line(base: str, why: str) -> str:
    """ "Base: tiny (as asked), 2 CPU threads"; a GPU's are not told."""
    from customttt import threads

    number = threads.number()
    computing = f", {number} CPU thread{'s' * (number > 1)}" if number else ""
    return f"Base: {base} ({why}){computing}"


def forecast_lines(forecast: Forecast) -> list[str]:
    """What a run will take, before it starts."""
    room = f"{gigabytes(forecast.memory)} of the {gigabytes(forecast.free)} that are free"
    lines = [f"Memory: {room}; time: about {duration(forecast.seconds)}."]
    if not forecast.fits:
        lines = [f"It will hardly fit: it needs {room}. Time: about {duration(forecast.seconds)}."]
    if forecast.rung.recomputed:
        lines.append(f"To need no more, it goes on {forecast.rung}, which takes longer.")
    return lines


def forecast_fields(forecast: Forecast) -> dict[str, Any]:
    """The same for programs."""
    return {
        "memory_bytes": forecast.memory,
        "memory_free_bytes": forecast.free,
        "fits": forecast.fits,
        "seconds": round(forecast.seconds, 1),
        "recomputed_blocks": sorted(forecast.rung.recomputed),
        "chunk": forecast.rung.chunk,
    }


def _places(recipe: VideoRecipe) -> dict[str, str]:
    """Who is where, if anybody has a place."""
    told = [f"{one.appearance.name} {one.place or 'wherever nobody else is'}" for one in recipe.subjects]
    if recipe.apart:
        return {"places": "where the word for each is read"}
    return {"places": ", ".join(told)} if any(one.place for one in recipe.subjects) else {}


def _ingredient(one: Ingredient) -> str:
    return f'{one.name} ("{one.phrase}", scale {one.scale:g}, weights {one.sha256[:12]})'


def losses(history: Sequence[float]) -> str:
    """The first and the last of them; one alone says little, for every step draws its own noise."""
    if not history:
        return "unknown"
    span = min(SPAN, max(len(history) // 2, 1))
    first, last = sum(history[:span]) / span, sum(history[-span:]) / span
    return f"{first:.4g} at first, {last:.4g} at last (mean of {span})"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _aligned(fields: Mapping[str, str]) -> list[str]:
    width = max(map(len, fields))
    return [f"{name:<{width}}  {value}" for name, value in fields.items()]


def pairs_of(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Lines as of `recipe_lines` and `concept_lines`, taken apart again."""
    return [(name, value.strip()) for name, _, value in (line.partition("  ") for line in lines)]


def ago(then: datetime, now: datetime) -> str:
    """`3 hours ago`."""
    seconds = max((now - then).total_seconds(), 0)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' * (number != 1)} ago"
    return "just now"


def size_of(folder: Path) -> str:
    """What the files in a folder take up."""
    return megabytes(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def megabytes(sizes: Iterable[int]) -> str:
    return f"{sum(sizes) / 1e6:.1f} MB"
