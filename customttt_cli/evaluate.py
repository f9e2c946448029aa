"""The command `evaluate`: how well videos show their prompt, the subject and the movement, by which model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from customttt.errors import BaseUnavailableError, UsageError
from customttt_cli import exhibits, options, output
from customttt_cli.exhibits import Exhibit

if TYPE_CHECKING:
    from customttt.measure.evaluate import Candidate, Row
    from customttt.measure.stats import Estimate
    from customttt.media import Frames

Groups = Mapping[str, Sequence[int]]
"""Indices of videos by the column that they belong to."""


def evaluate(
    videos: Annotated[
        list[Path], typer.Argument(metavar="VIDEO|RUN", help="Videos, or the folder that 'compare' left.")
    ],
    images: Annotated[
        Path | None, typer.Option(help="Pictures of the subject, a folder or one file.", show_default=False)
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="The clip of the movement.", show_default=False)] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What the videos show; by default what their recipes say.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Score videos: a row a metric, with the model that measured it and a 95 % interval over videos.

    CLIP and DINO come from the model hub, point tracks from OpenCV; on tiny's world its judge stands in for them.
    """
    candidates, rows, groups = measured(exhibits.collect(videos, prompt), [images] if images else [], clip)
    if all(row.missing for row in rows):
        reasons = dict.fromkeys(str(row.missing) for row in rows)
        raise BaseUnavailableError(f"Nothing could be measured: {'. '.join(reasons)}.")
    if as_json:
        output.result(json.dumps([_fields(row, candidates, groups) for row in rows], indent=1))
        return
    _tell(rows, candidates, groups)


def measured(
    shown: Sequence[Exhibit], images: Sequence[Path], clip: Path | None
) -> tuple[list[Candidate], list[Row], Groups]:
    """The videos, every row of what is measured of them, and which of them stand in which column.

    Raises NotFoundError or MediaError for pictures or a clip that cannot be read.
    """
    pictures = exhibits.pictures(images) if images else None
    clips = exhibits.clips(clip, shown) if clip else [None] * len(shown)
    with output.loading_torch(bars=True):
        from customttt.measure.evaluate import Candidate
    judged = _judged(shown)
    candidates = [
        Candidate(str(one.path), one.frames, one.prompt, reference, one.group, one.subjects, one.motions)
        for one, reference in zip(shown, clips, strict=True)
    ]
    return candidates, _measure(candidates, pictures, judged), _groups(shown)


def _judged(shown: Sequence[Exhibit]) -> bool:
    """Whether the videos are of the embedded world. Raises UsageError where only some are."""
    from customttt.tiny import known as world

    known: dict[str | None, bool] = {None: False}
    for base in {one.base for one in shown} - {None}:
        try:
            known[base] = world.draws(str(base))
        except BaseUnavailableError:  # a folder that is gone, a hub that does not answer
            known[base] = False
    kinds = {known[one.base]: one.path for one in shown}
    if len(kinds) > 1:
        raise UsageError(f"'{kinds[True]}' is of tiny's world and '{kinds[False]}' is not; evaluate them apart.")
    return known[shown[0].base]


def _measure(candidates: Sequence[Candidate], pictures: Frames | None, judged: bool) -> list[Row]:
    from customttt.measure import evaluate, extractors

    with output.progress() as report:
        if judged:
            from customttt.tiny import known

            return known.by_judge(candidates, pictures, report)
        clip, dino = extractors.name(extractors.CLIP), extractors.name(extractors.DINO)
        rows = evaluate.by_clip(clip, lambda: extractors.ClipModel(output.downloaded), candidates, pictures, report)
        rows += evaluate.by_dino(dino, lambda: extractors.DinoModel(output.downloaded), candidates, pictures, report)
        return rows + evaluate.by_tracks(candidates, report)


def _groups(shown: Sequence[Exhibit]) -> Groups:
    """A column a method of a comparison; otherwise one for all."""
    return {
        column: [index for index, one in enumerate(shown) if one.column == column]
        for column in dict.fromkeys(one.column for one in shown)
    }


def _fields(row: Row, candidates: Sequence[Candidate], groups: Groups) -> dict[str, Any]:
    scores = {name: row.estimate(candidates, chosen) for name, chosen in groups.items()}
    return {
        "what": row.what,
        "by": row.by,
        "missing": row.missing,
        "scores": {name: asdict(one) if one else None for name, one in scores.items()},
        "videos": dict(zip((one.name for one in candidates), row.values, strict=False)),
    }


def _tell(rows: Sequence[Row], candidates: Sequence[Candidate], groups: Groups) -> None:
    single = list(groups) == [exhibits.ALL]
    columns = ("what", *(("value", "95 % interval") if single else groups), "by")
    lines = []
    for row in rows:
        estimates = [row.estimate(candidates, chosen) for chosen in groups.values()]
        cells = _value_and_interval(estimates[0]) if single else [_cell(one) for one in estimates]
        lines.append((row.what, *cells, f"not measured: {row.missing}" if row.missing else row.by))
    output.table(columns, lines, [False] * len(lines))


def _value_and_interval(one: Estimate | None) -> list[str]:
    if one is None:
        return ["-", "-"]
    return [f"{one.value:.3f}", f"{one.low:.3f} to {one.high:.3f}" if one.low is not None else "one video"]


def _cell(one: Estimate | None) -> str:
    return "-" if one is None else f"{one:.3f}"
