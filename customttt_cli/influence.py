"""The command `influence`: which blocks of the U-Net carry what a prompt says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from customttt.concept import Kind
from customttt.errors import BaseUnavailableError, MediaError, NotFoundError, UsageError
from customttt.library import Library
from customttt_cli import options, output

if TYPE_CHECKING:
    from customttt.influence import Influence, Layers, Pair, Study

CARRIED: dict[str, Kind] = {"noun": "appearance", "movement": "motion"}
"""What a layer carries, by what the judge reads it from."""
EXAMPLE = 'Example: customttt influence "A koala." "A tiger." --seeds 3'


def influence(
    prompt: Annotated[str | None, typer.Argument(help="What most blocks read.", show_default=False)] = None,
    starred: Annotated[str | None, typer.Argument(help="What the others read.", show_default=False)] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="A file of pairs instead, one a line, with a tab between.", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(help="Videos a pair.", min=1)] = 3,
    share: Annotated[float, typer.Option(help="Of the effect of all blocks, for the chosen set.", min=0, max=1)] = 0.9,
    folder: Annotated[Path, typer.Option("--output", "-o", help="A folder for chart, figure and numbers.")] = Path(
        "customttt-influence"
    ),
    base: options.Base = None,
    as_json: options.Json = False,
) -> None:
    """Measure how much each block of the base carries of what the second prompt says and the first does not."""
    texts = _read(prompt, starred, pairs)
    output.quiet()
    with output.waiting("Loading torch"):
        from customttt import backbones, influence, media
        from customttt.tiny import judge
    wanted = [influence.Pair(*text) for text in texts]
    media.check_output(folder / "influence.mp4")
    name, why = backbones.choose_base(base)
    if not backbones.defaults(name).judged:
        raise BaseUnavailableError(f"Nothing here can tell what videos of {name!r} show; use --base tiny.")
    for pair in wanted:
        judge.new_words(pair.prompt, pair.starred)  # raises for what the judge cannot see
    kind = _kind(wanted)
    output.say(f"Base: {name} ({why}); scored by the judge of its world")
    study = _study(name, wanted, seeds)
    with output.progress() as report:
        study.report = report
        alone = study.per_layer()
        chosen = study.select(share)
        columns = study.page(alone)
        measured = study.measure(columns)
        _draw(study, alone, columns, folder)
    data = {"per layer": alone, "chosen": chosen, "figure": measured}
    text = json.dumps({key: [asdict(one) for one in some] for key, some in data.items()}, indent=1)
    (folder / "influence.json").write_text(text)
    if kind:
        Library().add_carrying(study.backbone.fingerprint, kind, chosen[-1].layers)
    if as_json:
        output.result(text)
        return
    _tell(alone, chosen, folder)
    if kind:
        output.say(f"'customttt learn-{kind} ... --layers auto' learns there from now on.")


def _kind(pairs: Sequence[Pair]) -> Kind | None:
    """What all pairs are about; None where they are about several things, or about scenes."""
    from customttt.tiny import judge

    heads = {head for pair in pairs for head in judge.new_words(pair.prompt, pair.starred)}
    return CARRIED.get(heads.pop()) if len(heads) == 1 else None


def _read(prompt: str | None, starred: str | None, pairs: Path | None) -> list[tuple[str, str]]:
    if (pairs is None) == (prompt is None or starred is None):
        raise UsageError("Give two prompts, or a file of --pairs.")
    if pairs is None:
        return [(str(prompt), str(starred))]
    try:
        lines = [line for line in pairs.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {pairs}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"{pairs} cannot be read ({error}).") from error
    if bad := [line for line in lines if line.count("\t") != 1]:
        raise UsageError(f"The line {bad[0]!r} of {pairs} is no pair; write two prompts with a tab between.")
    return [(one.strip(), two.strip()) for one, two in (line.split("\t") for line in lines)]


def _study(name: str, pairs: list[Pair], seeds: int) -> Study:
    from customttt import influence, learn
    from customttt.tiny import judge

    with output.loading(name):
        backbone, _ = learn.open_accelerated(name)
    return influence.Study(backbone, pairs, judge.shows, seeds)


def _draw(study: Study, alone: list[Influence], columns: list[Layers], folder: Path) -> None:
    """The chart of all blocks, and for each pair the page's four videos beside the null."""
    from customttt import influence, media, sheets
    from customttt.compose import to_frames

    bars = [("all" if len(one.layers) > 1 else str(one.layers[0]), one.effect) for one in alone]
    media.write_png(folder / "chart.png", sheets.bar_chart(bars, "what a block carries: score minus null, 95 %"))
    rows: list[tuple[str, Any]] = []
    names = ["no block", *(_name(layers, alone) for layers in columns)]
    for pair in study.pairs[:3]:
        sample = study.backbone.defaults.sample
        videos = influence.render(study.backbone, pair, [frozenset(), *columns], sample, 0)
        title = f"{pair.prompt} -> {pair.starred}"
        rows += [
            (f"{title}\n{name} read the second", to_frames(video[None]))
            for name, video in zip(names, videos, strict=True)
        ]
    media.write_png(folder / "figure.png", sheets.contact_sheet(rows, 96))


def _name(layers: Layers, alone: list[Influence]) -> str:
    able = {one.layers[0] for one in alone if len(one.layers) == 1}
    if layers == able:
        return "all"
    left = able - layers
    return f"all but {min(left)}" if len(left) == 1 and len(layers) > 2 else " + ".join(map(str, sorted(layers)))


def _tell(alone: list[Influence], chosen: list[Influence], folder: Path) -> None:
    rows = [("all" if len(one.layers) > 1 else str(one.layers[0]), f"{one.effect:.3f}") for one in alone]
    output.table(("block", "score minus null (95 %)"), rows, [False] * len(rows))
    last = chosen[-1]
    output.say(f"Smallest set found: {', '.join(map(str, last.layers))}, with {last.effect:.3f}.")
    output.result(str(folder))
