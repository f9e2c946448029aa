"""The last step of learning a movement: videos by its LoRA alone, held against the clip that it was learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from customttt_cli import output

if TYPE_CHECKING:
    from accelerate import Accelerator

    from customttt.backbones import Backbone
    from customttt.learn import Learned
    from customttt.measure.evaluate import Candidate, Row
    from customttt.media import Frames
    from customttt.progress import Report

SEEDS = (0, 1)
LEARNED = 0.5
"""Of 1, which is the clip's own movement: what moves less like it has not learned it (ours)."""


def try_out(backbone: Backbone, accelerator: Accelerator, learned: Learned, clip: Frames) -> None:
    """Say how much the movement of two videos of the training prompt is the clip's, where something here can tell."""
    import torch

    from customttt import compose
    from customttt.measure.evaluate import Candidate

    prompt, sample = learned.concept.prompt, backbone.defaults.sample.but(num_frames=len(clip))
    with output.progress() as report:
        try:
            videos = compose.try_out(backbone, "motion", learned.weights, prompt, sample, accelerator, SEEDS, report)
        except torch.OutOfMemoryError:
            output.say("The movement was not tried out: there is not enough memory for a video.")
            return
        candidates = [Candidate(str(seed), some, prompt, clip) for seed, some in zip(SEEDS, videos, strict=True)]
        row = _likeness(backbone, candidates, report)
    if (found := row.estimate(candidates)) is not None:
        _tell(found.value)


def _likeness(backbone: Backbone, candidates: list[Candidate], report: Report) -> Row:
    """By the judge of `tiny`'s world, or by tracks of points."""
    from customttt.measure import evaluate

    if not backbone.defaults.judged:
        return evaluate.by_tracks(candidates, report)[0]
    from customttt.tiny import known

    return next(row for row in known.by_judge(candidates, None, report) if row.what == known.MOVES_LIKE)


def _tell(value: float) -> None:
    output.say(f"Tried out in {len(SEEDS)} videos: they move like the clip by {value:.2f} of 1.")
    if value < LEARNED:
        output.say(
            "The movement was not learned. A clip in which the whole subject moves far and not too fast is learned "
            "best; more --steps may help, too."
        )
