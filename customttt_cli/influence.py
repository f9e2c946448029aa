"""The command `influence`: which blocks of the U-Net carry what a prompt says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from customttt.concept import Kind
from customttt.errors import BaseUnavailableError, MediaError, NotFoundError, UsageError
from customttt.library import Library
from customttt.measure.ledger import Ledger
from customttt.recipe import check_prompt
from customttt_cli import options, output, render, showing

if TYPE_CHECKING:
    from customttt.backbones import Backbone
    from customttt.measure.influence import Influence, Layers, Measurement, PromptPair, Scorer

CARRIED: dict[str, Kind] = {
    "noun": "appearance", "colour": "appearance", "hat": "appearance", "pattern": "appearance", "movement": "motion"
}  # fmt: skip
"""What a layer carries, by what the judge reads it from."""


class Score(StrEnum):
    CLIP = "clip-t"
    TRACKS = "tracks"


_Pairs = Annotated[
    Path | None, typer.Option(help="A file of pairs instead, one a line, with a tab between.", show_default=False)
]
_Shown = Annotated[
    list[str] | None,
    typer.Option(
        help="Blocks to show together in the figure: 6, or 2,6; may be repeated. By default the strongest.",
        show_default=False,
    ),
]
_About = Annotated[
    options.Kind | None,
    typer.Option(
        help="What the prompts are about, for 'learn-* --layers auto'; on tiny the judge tells.", show_default=False
    ),
]
_ScoredBy = Annotated[
    Score | None,
    typer.Option(
        help="CLIP-T, as published, or tracks of points, the default of --kind motion; on tiny the judge scores.",
        show_default=False,
    ),
]


def influence(
    prompt: Annotated[str | None, typer.Argument(help="What most blocks read.", show_default=False)] = None,
    starred: Annotated[str | None, typer.Argument(help="What the others read.", show_default=False)] = None,
    pairs: _Pairs = None,
    layers: _Shown = None,
    kind: _About = None,
    score: _ScoredBy = None,
    seeds: Annotated[int, typer.Option(help="Videos a pair.", min=1)] = 3,
    share: Annotated[float, typer.Option(help="Of the effect of all blocks, for the chosen set.", min=0, max=1)] = 0.9,
    folder: Annotated[Path, typer.Option("--output", "-o", help="A folder for chart, figure and numbers.")] = Path(
        "customttt-influence"
    ),
    base: options.Base = None,
    as_json: options.Json = False,
) -> None:
    """Measure how much each block of the base carries of what the second prompt says and the first does not.

    The same command goes on after a kill: what was scored is in the folder.
    """
    texts, numbers = _read(prompt, starred, pairs), [_numbers(text) for text in layers or ()]
    for text in chain.from_iterable(texts):
        check_prompt(text)
    with output.loading_torch(bars=True):
        from customttt import backbones, media
        from customttt.measure import influence
    prompts, shown = [influence.PromptPair(*text) for text in texts], [frozenset(some) for some in numbers]
    media.check_output(folder / "influence.mp4")
    name, why = backbones.choose_base(base)
    about, by = _about_and_by(name, prompts, kind, score)
    if shown:  # the shapes of the base tell which blocks read a prompt
        readers = [place.layer for place in backbones.places(name).values() if place.kind != "motion"]
        influence.check_layers(name, readers, shown)
    scorer, scored = _scorer(by)
    output.say(f"{showing.base_line(name, why)}; scored by {scored}")
    shop = render.opened(name, Library())
    ledger = Ledger(folder / "scores.jsonl")
    study = influence.Measurement(
        shop.backbone, prompts, scorer(shop.backbone), seeds, ledger=ledger, by=scored, kept=output.goes_on
    )
    _measure(study, shown, share, folder, about, shop.library, as_json)


def _about_and_by(
    base: str, prompts: Sequence[PromptPair], kind: options.Kind | None, score: Score | None
) -> tuple[Kind | None, Score | None]:
    """What the prompts are about, None where that is not one kind; and what scores, None for the judge of `tiny`."""
    from customttt.tiny import known

    if known.draws(base):
        return _judged_kind(prompts, kind, score), None
    return kind.value if kind else None, score or (Score.TRACKS if kind is options.Kind.MOTION else Score.CLIP)


def _measure(
    study: Measurement,
    shown: Sequence[Layers],
    share: float,
    folder: Path,
    about: Kind | None,
    library: Library,
    as_json: bool,
) -> None:
    """Measure, draw and print; the library learns which blocks carry what the prompts are about."""
    with output.progress() as report:
        study.report = report
        alone = study.per_layer()
        parts = study.per_part()
        chosen = study.select(share)
        columns = study.page(alone, shown)
        measured = study.measure(columns)
        _draw(study, alone, columns, folder)
    data = {"scored by": study.by, "per layer": alone, "per part": parts, "chosen": chosen, "figure": measured}
    text = json.dumps(data, indent=1, default=asdict)
    (folder / "influence.json").write_text(text, encoding="utf-8")
    if about:
        library.add_carrying(study.backbone.fingerprint, about, chosen[-1].layers)
    if as_json:
        output.result(text)
        return
    _tell(alone, measured, parts, chosen, folder)
    if about:
        output.say(f"'customttt learn-{about} ... --layers auto' learns there from now on.")


def _numbers(text: str) -> tuple[int, ...]:
    layers = options.parse_layers(text)
    if layers is None:
        raise UsageError("--layers auto is for learning; give numbers of layers, such as 2,6.")
    return layers


def _judged_kind(pairs: Sequence[PromptPair], given: options.Kind | None, score: Score | None) -> Kind | None:
    """What all pairs are about; None where they are about several things, or about scenes.

    Raises UsageError for what the judge cannot see, and for what only other bases need.
    """
    from customttt.tiny import judge

    if score:
        raise UsageError(f"tiny's own judge scores its world; leave --score {score.value} to other bases.")
    kinds = {CARRIED.get(head) for pair in pairs for head in judge.new_words(pair.prompt, pair.starred)}
    kind = kinds.pop() if len(kinds) == 1 else None
    if given and given.value != kind:
        raise UsageError(f"--kind is {given.value}, but these prompts differ in {kind or 'more, or in the scene'}.")
    return kind


def _scorer(by: Score | None) -> tuple[Callable[[Backbone], Scorer], str]:
    """What scores videos, once the base is there, and its name; its model is loaded first.

    Raises BaseUnavailableError where that cannot be had.
    """
    from customttt.measure import extractors, influence, tracks
    from customttt.tiny import judge

    if by is None:
        return lambda _: influence.by_texts(judge.shows), "the judge of its world"
    if by is Score.TRACKS:
        if why := tracks.obstacle():
            raise BaseUnavailableError(f"{why}; or give --score clip-t.")
        return influence.by_tracks, f"motion fidelity to the video whose every block reads the second, {tracks.name()}"
    model = extractors.ClipModel(output.downloaded)
    return lambda _: influence.by_clip(model), f"CLIP-T of the second prompt, {model.name}"


def _read(prompt: str | None, starred: str | None, pairs: Path | None) -> list[tuple[str, str]]:
    if (pairs is None) == (prompt is None or starred is None):
        raise UsageError("Give two prompts, or a file of --pairs.")
    if pairs is None:
        return [(str(prompt), str(starred))]
    try:
        lines = [line for line in pairs.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {pairs}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"{pairs} cannot be read ({error}).") from error
    if bad := [line for line in lines if line.count("\t") != 1]:
        raise UsageError(f"The line {bad[0]!r} of {pairs} is no pair; write two prompts with a tab between.")
    return [(one.strip(), two.strip()) for one, two in (line.split("\t") for line in lines)]


def _draw(study: Measurement, alone: list[Influence], columns: list[Layers], folder: Path) -> None:
    """The chart of all blocks, and for each pair the page's four videos beside the null."""
    from customttt import media
    from customttt.measure import influence, sheets
    from customttt.video import to_frames

    bars = [("all" if len(one.layers) > 1 else str(one.layers[0]), one.effect) for one in alone]
    media.write_png(
        folder / "chart.png", sheets.bar_chart(bars, f"what a block carries: score minus null, {_interval(alone)}")
    )
    rows: list[tuple[str, Any]] = []
    names = ["no block", *(_name(layers, alone) for layers in columns)]
    for pair in study.pairs[:3]:
        sample = study.backbone.defaults.sample
        videos = influence.render_swapped(study.backbone, pair, [frozenset(), *columns], sample, 0)
        title = f"{pair.prompt} -> {pair.starred}"
        rows += [
            (f"{title}\n{name} read the second", to_frames(video[None]))
            for name, video in zip(names, videos, strict=True)
        ]
    media.write_png(folder / "figure.png", sheets.contact_sheet(rows, 96))


def _interval(alone: list[Influence]) -> str:
    return "one video" if alone[0].effect.low is None else "95 %"


def _part(within: tuple[float, float]) -> str:
    begin, end = (round(100 * share) for share in within)
    return f"{begin} to {end} %"


def _name(layers: Layers, alone: list[Influence]) -> str:
    able = {one.layers[0] for one in alone if len(one.layers) == 1}
    if layers == able:
        return "all"
    left = able - layers
    return f"all but {min(left)}" if len(left) == 1 and len(layers) > 2 else " + ".join(map(str, sorted(layers)))


def _tell(
    alone: list[Influence],
    measured: list[Influence],
    parts: list[Influence],
    chosen: list[Influence],
    folder: Path,
) -> None:
    effects = {_name(frozenset(one.layers), alone): f"{one.effect:.3f}" for one in (*alone, *measured)}
    effects |= {f"all, {_part(one.within)} of the steps": f"{one.effect:.3f}" for one in parts}
    output.table(("block", f"score minus null ({_interval(alone)})"), list(effects.items()), [False] * len(effects))
    last = chosen[-1]
    output.say(f"Smallest set found: {', '.join(map(str, last.layers))}, with {last.effect:.3f}.")
    output.result(str(folder))
