"""Videos held against their prompts, against pictures of the subject and against a clip of the movement.

A row of the report is a metric by a model. What is not at hand costs its row, which says so, and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from customttt.errors import BaseUnavailableError
from customttt.measure import metrics, stats, tracks
from customttt.measure.metrics import Features, ImageFeatures
from customttt.media import Frames
from customttt.progress import Progress, Report, silent

CLIP_T, CLIP_I, DINO_I = "CLIP-T", "CLIP-I", "DINO-I"
CONSISTENCY, FIDELITY = "temporal consistency", "motion fidelity"
SEVERAL_MOTIONS = "the clip is of one movement, and the subject makes several one after another"

Model = TypeVar("Model", bound=ImageFeatures)


@dataclass(frozen=True)
class Candidate:
    """One video and what it is held against."""

    name: str
    frames: Frames
    prompt: str | None = None
    clip: Frames | None = None
    """Of the movement, in as many frames of the same size."""
    group: str = ""
    """Videos of one group, such as several seeds of one prompt, are not independent of each other."""
    subjects: tuple[str, ...] = ()
    """Phrases for them, first for the one that pictures and clip are of; none where no recipe tells."""
    motions: int = 0
    """How many the first subject makes one after another; 0 where no recipe tells."""


@dataclass(frozen=True)
class Row:
    """One metric by one model."""

    what: str
    by: str
    values: tuple[float | None, ...] = ()
    """One a video; None where the metric says nothing about that video."""
    missing: str | None = None
    """Why there are no values."""

    def estimate(self, candidates: Sequence[Candidate], chosen: Sequence[int] | None = None) -> stats.Estimate | None:
        """The mean over videos (over `chosen` ones of them) with its interval; None where there is no value.

        Where there are several groups, whole groups are drawn: the interval is over them.
        """
        if self.missing:
            return None
        indices = range(len(candidates)) if chosen is None else chosen
        known = [(value, candidates[i].group) for i in indices if (value := self.values[i]) is not None]
        return stats.mean([value for value, _ in known], [group for _, group in known]) if known else None


def obstacles(candidates: Sequence[Candidate], pictures: Frames | None) -> dict[str, str]:
    """Which metrics cannot be had of what was given, and why."""
    reasons: dict[str, str] = {}
    if any(candidate.prompt is None for candidate in candidates):
        reasons[CLIP_T] = "a video carries no prompt; give --prompt"
    if pictures is None:
        reasons[CLIP_I] = reasons[DINO_I] = "there are no pictures of the subject; give --images"
    if any(candidate.clip is None for candidate in candidates):
        reasons[FIDELITY] = "there is no clip of the movement; give --clip"
    if any(len(candidate.frames) < 2 for candidate in candidates):
        reasons[CONSISTENCY] = reasons[FIDELITY] = "a video has a single frame"
    if all(candidate.motions > 1 for candidate in candidates):
        reasons[FIDELITY] = SEVERAL_MOTIONS
    return reasons


def by_clip(
    name: str,
    load: Callable[[], Features],
    candidates: Sequence[Candidate],
    pictures: Frames | None,
    report: Report = silent,
) -> list[Row]:
    """CLIP-T, CLIP-I and temporal consistency; `load` is called only if one of them can be had."""

    def score(model: Features, candidate: Candidate, frames: Tensor, known: Tensor | None) -> dict[str, float]:
        scores = {CONSISTENCY: metrics.temporal_consistency(frames)}
        if candidate.prompt is not None:
            scores[CLIP_T] = metrics.text_alignment(frames, model.text_features([candidate.prompt])[0])
        if known is not None:
            scores[CLIP_I] = metrics.image_similarity(frames, known)
        return scores

    return _by_features((CLIP_T, CLIP_I, CONSISTENCY), name, load, score, candidates, pictures, report)


def by_dino(
    name: str,
    load: Callable[[], ImageFeatures],
    candidates: Sequence[Candidate],
    pictures: Frames | None,
    report: Report = silent,
) -> list[Row]:
    """DINO-I; `load` is called only if there are pictures."""

    def score(_: ImageFeatures, __: Candidate, frames: Tensor, known: Tensor | None) -> dict[str, float]:
        return {} if known is None else {DINO_I: metrics.image_similarity(frames, known)}

    return _by_features((DINO_I,), name, load, score, candidates, pictures, report)


def _by_features(
    names: Sequence[str],
    by: str,
    load: Callable[[], Model],
    score: Callable[[Model, Candidate, Tensor, Tensor | None], Mapping[str, float]],
    candidates: Sequence[Candidate],
    pictures: Frames | None,
    report: Report,
) -> list[Row]:
    missing = {name: why for name, why in obstacles(candidates, pictures).items() if name in names}
    scores: list[Mapping[str, float]] = []
    if set(names) - set(missing):
        try:
            model = load()
        except BaseUnavailableError as error:
            why = str(error).partition(";")[0]  # what comes after it is advice for bases
            missing = dict.fromkeys(names, why) | missing
        else:
            known = None if pictures is None else model.image_features(pictures)
            for step, candidate in enumerate(candidates, 1):
                scores.append(score(model, candidate, model.image_features(candidate.frames), known))
                report(Progress(by, step, len(candidates)))
    return [
        Row(name, by, missing=missing[name]) if name in missing else Row(name, by, tuple(one[name] for one in scores))
        for name in names
    ]


def by_tracks(candidates: Sequence[Candidate], report: Report = silent) -> list[Row]:
    """Motion fidelity by points that are followed through every video and its clip; of one motion in a video alone."""
    why = obstacles(candidates, None).get(FIDELITY) or tracks.obstacle()
    if why:
        return [Row(FIDELITY, tracks.name(), missing=why)]
    values: list[float | None] = []
    for step, candidate in enumerate(candidates, 1):
        assert candidate.clip is not None
        if candidate.motions > 1:
            values.append(None)
            continue
        truth = _tracks(candidate.clip)
        if not len(truth):
            return [Row(FIDELITY, tracks.name(), missing="no point of the clip can be followed to its end")]
        values.append(metrics.motion_fidelity(_tracks(candidate.frames), truth))
        report(Progress("following points", step, len(candidates)))
    return [Row(FIDELITY, tracks.name(), tuple(values))]


def _tracks(frames: Frames) -> Float[Tensor, "n f 2"]:
    return torch.from_numpy(tracks.follow(frames))
