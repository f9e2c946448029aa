"""The commands `learn-appearance` and `learn-motion`: what was typed becomes a lesson and its source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from customttt.concept import check_name
from customttt.config import TrainConfig
from customttt.errors import UsageError
from customttt.recipe import phrase_of, training_prompt
from customttt_cli import options
from customttt_cli.lesson import Lesson, learn
from customttt_cli.sources import Movement, Pictures


def learn_appearance(
    name: options.NewName,
    images: Annotated[list[Path], typer.Argument(help="Pictures of it: files or folders.", show_default=False)],
    noun: Annotated[str | None, typer.Option(help="What it is; by default from NAME.", show_default=False)] = None,
    prompt: options.Prompt = None,
    fit: Annotated[bool, typer.Option("--fit", help="Keep whole pictures, with bars, instead of cropping.")] = False,
    base: options.Base = None,
    steps: options.Steps = None,
    rank: options.Rank = None,
    learning_rate: options.LearningRate = None,
    layers: options.Layers = None,
    seed: options.TrainSeed = None,
    resume: options.Resume = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Learn a subject from 3 to 8 pictures of it; the lines of a .txt file beside a picture are its captions."""
    words = wording("--noun", noun, name)
    sentence = prompt or training_prompt("appearance", words)
    changes, auto = train_changes(steps, rank, learning_rate, layers, seed), layers == options.AUTO
    lesson = Lesson("appearance", name, words, sentence, base, changes, resume, force, dry_run, as_json, auto)
    learn(lesson, Pictures(images, fit))


def learn_motion(
    name: options.NewName,
    clip: Annotated[Path, typer.Argument(help="A clip of it: mp4, mov, webm, mkv, gif, webp ...", show_default=False)],
    phrase: Annotated[str | None, typer.Option(help="What is done; by default from NAME.", show_default=False)] = None,
    prompt: options.Prompt = None,
    start: Annotated[float, typer.Option(help="Where in the clip to begin, in seconds.")] = 0.0,
    end: Annotated[float | None, typer.Option(help="Where to end, in seconds.", show_default=False)] = None,
    frames: Annotated[int | None, typer.Option(help="Frames to learn from; by default the base's.")] = None,
    aspect: options.ClipAspect = None,
    base: options.Base = None,
    steps: options.Steps = None,
    rank: options.Rank = None,
    learning_rate: options.LearningRate = None,
    layers: options.Layers = None,
    seed: options.TrainSeed = None,
    resume: options.Resume = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Learn a movement from one short clip of it."""
    words, shape = wording("--phrase", phrase, name), options.checked_aspect(aspect)
    sentence = prompt or training_prompt("motion", words)
    changes, auto = train_changes(steps, rank, learning_rate, layers, seed), layers == options.AUTO
    lesson = Lesson("motion", name, words, sentence, base, changes, resume, force, dry_run, as_json, auto)
    learn(lesson, Movement(clip, start, end, frames, shape))


def wording(option: str, given: str | None, name: str) -> str:
    """The words a concept stands for in a sentence. Raises UsageError."""
    check_name(name)
    words = phrase_of(name) if given is None else given.strip()
    if not words:
        raise UsageError(f"{option} is empty; leave it out, or say it in a word or two.")
    return words


def train_changes(
    steps: int | None, rank: int | None, learning_rate: float | None, layers: str | None, seed: int | None
) -> dict[str, Any]:
    """What was given, checked. Raises UsageError."""
    changes = {
        "steps": steps, "rank": rank, "learning_rate": learning_rate, "layers": options.parse_layers(layers),
        "seed": seed,
    }  # fmt: skip
    TrainConfig(layers=(0,), learning_rate=1.0).but(**changes)  # raises for what no base could use
    return changes
