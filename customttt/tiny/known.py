"""Metrics of the embedded world (ours): its judge and the clip's known path stand in for CLIP, DINO and a tracker.

What they give are probabilities and correlations, no cosines of CLIP or DINO, and they are never called so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from customttt import backbones
from customttt.measure import metrics
from customttt.measure.evaluate import CLIP_T, DINO_I, FIDELITY, Candidate, Row, obstacles
from customttt.media import Frames
from customttt.progress import Progress, Report, silent
from customttt.tiny import captions, judge
from customttt.video import to_video

NAME = "the judge of tiny's world"
SHOWS = {"noun": "shows the subject", "movement": "shows the movement", "scene": "shows the scene"}
"""Rows by head: the judge's probability of what the prompt names."""
LOOKS_LIKE, MOVES_LIKE = "looks like the pictures", "moves like the clip"


def draws(base: str) -> bool:
    """Whether a base draws the embedded world: "judged" among its own settings says so. Raises BaseUnavailableError."""
    return backbones.own_settings(base).get("judged") is True


def by_judge(candidates: Sequence[Candidate], pictures: Frames | None, report: Report = silent) -> list[Row]:
    """How probable subject, movement and scene of the prompt are; identity; the path.

    Identity is the mean cosine of the judge's identity vectors of the video and of each picture; the path the
    correlation (`metrics.correlation`) of where the judge sees the subject in the video and in the clip.
    """
    known = None if pictures is None else likeness(pictures)
    values: dict[str, list[float | None]] = {name: [] for name in (*SHOWS.values(), LOOKS_LIKE, MOVES_LIKE)}
    for step, candidate in enumerate(candidates, 1):
        for name, value in _scores(candidate, known).items():
            values[name].append(value)
        report(Progress("judging", step, len(candidates)))
    missing = _missing(candidates, pictures, values)
    return [
        Row(name, NAME, missing=missing[name]) if name in missing else Row(name, NAME, tuple(some))
        for name, some in values.items()
    ]


def likeness(pictures: Frames) -> Float[Tensor, "n d"]:
    """The judge's identity vectors of pictures of one subject, each looked at for itself."""
    return judge.load().look(torch.cat([to_video(picture[None]) for picture in pictures])).identity


def _scores(candidate: Candidate, known: Tensor | None) -> dict[str, float | None]:
    opinion = judge.load().look(to_video(candidate.frames))
    probable = judge.chances(opinion, candidate.prompt or "")
    scores: dict[str, float | None] = {name: probable.get(head, [None])[0] for head, name in SHOWS.items()}
    scores[LOOKS_LIKE] = None if known is None else metrics.image_similarity(opinion.identity, known)
    scores[MOVES_LIKE] = None
    if candidate.clip is not None:
        path = judge.load().look(to_video(candidate.clip)).position[0]
        scores[MOVES_LIKE] = metrics.correlation(opinion.position[0], path)
    return scores


def _missing(
    candidates: Sequence[Candidate], pictures: Frames | None, values: dict[str, list[float | None]]
) -> dict[str, str]:
    """Why rows have no value; a prompt that names nothing of a kind costs only that row."""
    why = obstacles(candidates, pictures)
    reasons = {LOOKS_LIKE: why.get(DINO_I), MOVES_LIKE: why.get(FIDELITY)}
    for head, name in SHOWS.items():
        kind = "subject" if head == "noun" else head
        reasons[name] = why.get(CLIP_T, f"no prompt names a {kind} of tiny's world")
    if CLIP_T not in why and any(captions.read(one.prompt or "").movements for one in candidates):
        reasons[SHOWS["movement"]] = "movements that a subject makes one after another are not told"
    return {
        name: reasons[name] or "there is no value" for name, some in values.items() if all(one is None for one in some)
    }
