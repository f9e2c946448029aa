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
from customttt.measure.evaluate import CLIP_T, DINO_I, FIDELITY, SEVERAL_MOTIONS, Candidate, Row, obstacles
from customttt.media import Frames
from customttt.progress import Progress, Report, silent
from customttt.tiny import captions, judge
from customttt.video import to_video

NAME = "the judge of tiny's world"
SHOWS = {"noun": "shows the subject", "movement": "shows the movement", "scene": "shows the scene"}
"""Rows by head: the judge's probability of what the prompt names."""
LOOKS_LIKE, MOVES_LIKE = "looks like the pictures", "moves like the clip"
OF_A_SUBJECT = (SHOWS["noun"], SHOWS["movement"], LOOKS_LIKE, MOVES_LIKE)


def draws(base: str) -> bool:
    """Whether a base draws the embedded world: "judged" among its own settings says so. Raises BaseUnavailableError."""
    return backbones.own_settings(base).get("judged") is True


def by_judge(candidates: Sequence[Candidate], pictures: Frames | None, report: Report = silent) -> list[Row]:
    """How probable subject, movement and scene of the prompt are; identity; the path.

    Identity is the mean cosine of the judge's identity vectors of the video and of each picture; the path the
    correlation (`metrics.correlation`) of where the judge sees the subject in the video and in the clip. Of several
    subjects both are those of the first. What would be of the wrong subject or movement has no value.
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
    probable, first = judge.chances(opinion, candidate.prompt or ""), _first(opinion, candidate)
    scores: dict[str, float | None] = {name: probable.get(head, [None])[0] for head, name in SHOWS.items()}
    scores[LOOKS_LIKE] = None if known is None else metrics.image_similarity(first.identity, known)
    scores[MOVES_LIKE] = None
    if candidate.clip is not None:
        path = judge.load().look(to_video(candidate.clip)).position[0]
        scores[MOVES_LIKE] = metrics.correlation(first.position[0], path)
    return {**scores, **dict.fromkeys(_untold(candidate))}


def _first(opinion: judge.Opinion, candidate: Candidate) -> judge.Seen:
    """The subject that pictures and clip are of: of two in the prompt the recipe's first, or the one named first."""
    nouns = judge.named(candidate.prompt or "").get("noun", ())[:2]
    if len(nouns) < 2:
        return opinion
    own = judge.named(candidate.subjects[0]).get("noun", ())[:1] if candidate.subjects else ()
    return opinion.in_order([nouns])[nouns.index(own[0]) if own and own[0] in nouns else 0]


def _untold(candidate: Candidate) -> dict[str, str]:
    """Rows that would be of the wrong subject or movement of a video, and why."""
    prompt = candidate.prompt or ""
    said, why = captions.read(prompt), {}
    in_turn = len(said.movements) > max(len(said.nouns), 1) and "then" in prompt.split()
    if said.movements and not captions.doings(prompt):
        why[SHOWS["movement"]] = "a prompt does not say of each subject how it moves"
    if candidate.motions > 1 or in_turn:
        why[SHOWS["movement"]] = "movements that a subject makes one after another are not told"
    if candidate.motions > 1 or (in_turn and not candidate.motions):
        why[MOVES_LIKE] = SEVERAL_MOTIONS
    return why | _mixed_up(candidate)


def _mixed_up(candidate: Candidate) -> dict[str, str]:
    """Those of several subjects whom the judge would mix up, and why."""
    said = captions.read(candidate.prompt or "")
    number = len(candidate.subjects) or len(said.nouns)
    if number > 2:
        return dict.fromkeys(OF_A_SUBJECT, "the judge tells no more than two subjects apart")
    if number == 2 and not _are_named(candidate):
        why = "a video has two subjects, and its prompt does not call both by words of tiny's world"
        return dict.fromkeys(OF_A_SUBJECT, why)
    if number == 2 and said.nouns[0] == said.nouns[1]:
        rows = OF_A_SUBJECT[1:] if len(set(said.movements)) > 1 else OF_A_SUBJECT[2:]
        return dict.fromkeys(rows, "a video has two subjects of one kind, and the judge does not tell them apart")
    return {}


def _are_named(candidate: Candidate) -> bool:
    """Whether the prompt calls two subjects by words of the world, and none of the recipe's by another."""
    prompt = candidate.prompt or ""
    phrases = [one for one in candidate.subjects if one.lower() in prompt.lower()]
    return len(captions.read(prompt).nouns) > 1 and all(captions.read(one).nouns for one in phrases)


def _missing(
    candidates: Sequence[Candidate], pictures: Frames | None, values: dict[str, list[float | None]]
) -> dict[str, str]:
    """Why rows have no value; a prompt that names nothing of a kind costs only that row."""
    why, untold = obstacles(candidates, pictures), [_untold(one) for one in candidates]
    reasons = {LOOKS_LIKE: why.get(DINO_I), MOVES_LIKE: why.get(FIDELITY)}
    reasons |= {name: why.get(CLIP_T) for name in SHOWS.values()}
    missing = {}
    for name in (name for name, some in values.items() if all(one is None for one in some)):
        told = [one[name] for one in untold if name in one]
        if len(told) == len(candidates):
            missing[name] = told[0]  # which nothing that could be given would change
        else:
            kind = name.removeprefix("shows the ")
            missing[name] = reasons[name] or next(iter(told), f"no prompt names a {kind} of tiny's world")
    return missing
