"""The last step of learning a movement: videos by its LoRA alone, held against the clip that it was learned from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from customttt_cli import output

if TYPE_CHECKING:
    from customttt.backbones import Backbone
    from customttt.concept import Concept
    from customttt.measure.evaluate import Candidate, Row
    from customttt.media import Frames
    from customttt.progress import Report
    from customttt.workshop import Workshop

SEEDS = (0, 1)
LEARNED = 0.5
"""Of 1, which is the clip's own movement: what moves less like it has not learned it (ours)."""


def try_out(shop: Workshop, concept: Concept, clip: Frames) -> Frames | None:
    """Say how much the movement of two videos of the training prompt is the clip's, where something here can tell.

    Returns the first of them; None where there is not enough memory for videos.
    """
    import torch

    from customttt.measure.evaluate import Candidate

    with output.progress() as report:
        try:
            videos = replace(shop, report=report).try_out(concept, len(clip), SEEDS)
        except torch.OutOfMemoryError:
            output.say("The movement was not tried out: there is not enough memory for a video.")
            return None
        named = zip(map(str, SEEDS), videos, strict=True)
        candidates = [Candidate(seed, video, clip=clip) for seed, video in named]
        row = _likeness(shop.backbone, candidates, report)
    if (estimate := row.estimate(candidates)) is not None:
        _tell(estimate.value)
    return videos[0]


def _likeness(backbone: Backbone, candidates: list[Candidate], report: Report) -> Row:
    """By the judge of `tiny`'s world, or by tracks of points."""
    from customttt.measure import evaluate
    from customttt.tiny import known

    if not known.draws(backbone.name):
        return evaluate.by_tracks(candidates, report)[0]
    return next(row for row in known.by_judge(candidates, None, report) if row.what == known.MOVES_LIKE)


def _tell(value: float) -> None:
    output.say(f"Tried out in {len(SEEDS)} videos: they move like the clip by {value:.2f} of 1.")
    if value < LEARNED:
        output.say(
            "The movement was not learned. A clip in which the whole subject moves far and not too fast is learned "
            "best; more --steps may help, too."
        )
