"""The study's report: Markdown tables with 95 % intervals over pairings, paired differences, and contact sheets."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from customttt import media, sheets, stats
from customttt.compose import to_frames
from customttt.concept import Kind
from customttt.tiny import lessons, world
from customttt.tiny.arms import TABLES, Arm
from customttt.tiny.study import INFLUENCE, MEASURES, SCENES, Cell, Study, judged

TITLES = {
    "main": "Ways to put a subject and a movement together",
    "ttt": "What test-time training buys, and what it costs",
    "layers": "Where the LoRAs are (without test-time training)",
    "rest": "From when and until when the LoRAs act (without test-time training)",
    "guidance": "How strong the LoRAs are in the unconditional half of guidance (without test-time training)",
    "learning": "How the two are learned (without test-time training)",
    "own": "Our test-time training, one choice at a time",
    "choices": "What the paper leaves open in test-time training, one choice at a time",
}
SHEETS = 4
ALONE = {"appearance": "identity", "motion": "track"}
"""Arms in which one LoRA acts alone, and the measure of what it does."""
KEPT = 0.95
ALSO_FROM = ("untrained", "ours", "s26t25")
"""Arms from which differences are shown besides those from a table's first: what test-time training adds to ours, what
the others have less, and what the paper's layers have more than others of its table."""
Scores = dict[str, list[dict[str, float]]]


def write(study: Study, tables: Sequence[str], path: Path, command: str) -> None:
    """Write the report to `path` and its pictures beside it.

    An arm that has less than half as many videos as another of its table is named and left out, and so is a cell that
    one of the other arms lacks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = study.size
    lines = [
        "# The method, measured",
        "",
        f"Made by `{command}`: {size.pairings} pairings of a held-out subject with a held-out movement, "
        f"{_count(size.scenes, 'scene')}, {_count(size.seeds, 'seed')}, on the embedded base `{study.backbone.name}` "
        f"(fingerprint {study.backbone.fingerprint}). Every arm starts from the same noise. A motion that acts "
        "throughout is learned at all noise, another only at the noise at which it acts. The judge scores each "
        "video; identity similarity is a cosine, 1 at best, and the correlation is that of the subject's track with "
        "the clip's; the others are shares of videos. In brackets: 95 % intervals, bootstrapped over pairings.",
        "",
    ]
    if size.steps:
        steps = f"{size.steps} steps of learning, {size.ttt_steps} of test-time training"
        lines += [f"**Too short to tell anything**: {steps}.", ""]
    compared = [name for name in tables if name in TABLES]
    for name in compared:
        table = TABLES[name]
        made = {key: {cell for cell in size.cells() if study.scores(cell, arm)} for key, arm in table.items()}
        most = max(map(len, made.values()))
        arms = {key: arm for key, arm in table.items() if 2 * len(made[key]) >= most > 0}
        cells = [cell for cell in size.cells() if all(cell in made[key] for key in arms)]
        if arms and cells:
            lines += _table(study, TITLES[name], arms, cells)
            left = [f"{arm.title} ({len(made[key])} of {most})" for key, arm in table.items() if key not in arms]
            lines += _missing(study, left, cells)
    for kind in INFLUENCE:
        lines += _influence(study, kind, path)
    lines += _pictures(study, TABLES[compared[0]], path) if compared else []
    path.write_text("\n".join(lines))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _table(study: Study, title: str, arms: Mapping[str, Arm], cells: Sequence[Cell]) -> list[str]:
    """One table of means, and one of paired differences from its first arm and from ALSO_FROM."""
    scores: Scores = {
        name: [found for cell in cells if (found := study.scores(cell, arm))] for name, arm in arms.items()
    }
    groups = [str(cell.pairing) for cell in cells]
    first = next(iter(arms))
    head = ["| |" + "|".join(MEASURES.values()) + "|", "|---|" + "---|" * len(MEASURES)]
    lines = [f"## {title}", "", f"{len(cells)} videos an arm.", "", *head]
    for name, arm in arms.items():
        means = (stats.mean([one[key] for one in scores[name]], groups) for key in MEASURES)
        lines.append(f"| {arm.title} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    truth = [_truth(cell) for cell in cells]
    means = (stats.mean([one[key] for one in truth], groups) for key in MEASURES)
    lines.append("| *the world's own renders* | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    for base in dict.fromkeys(name for name in (first, *ALSO_FROM) if name in arms):
        lines += ["", f"Differences from “{arms[base].title}”, paired video by video:", "", *head]
        for name, arm in arms.items():
            if name != base:
                pairs = list(zip(scores[name], scores[base], strict=True))
                means = (stats.mean([one[key] - other[key] for one, other in pairs], groups) for key in MEASURES)
                lines.append(f"| {arm.title} | " + " | ".join(f"{mean:+.2f}" for mean in means) + " |")
    return [*lines, "", *_kept(arms, scores, groups), *_costs(study, arms, cells, groups)]


def _missing(study: Study, arms: Sequence[str], cells: Sequence[Cell]) -> list[str]:
    """What a run that was stopped early has not measured."""
    whole = study.size.cells()
    lines = [f"Not in the table, as too few of their videos are made: {', '.join(arms)}.", ""] if arms else []
    if len(cells) < len(whole):
        lines += [f"These are {len(cells)} of {len(whole)} videos an arm; the same command goes on from here.", ""]
    return lines


def _kept(arms: Mapping[str, Arm], scores: Scores, groups: Sequence[str]) -> list[str]:
    """What each way of acting together keeps of what the two LoRAs do alone, where the table has those two."""

    def of(name: str, measure: str) -> list[float]:
        return [one[measure] for one in scores[name]]

    if not ALONE.keys() <= arms.keys():
        return []
    lines = [
        f"Of what each LoRA does alone this much is kept; the target is {KEPT:.0%} of both:",
        "",
        "| |" + "|".join(f"{MEASURES[key]}, of “{arms[name].title}”" for name, key in ALONE.items()) + "|",
        "|---|" + "---|" * len(ALONE),
    ]
    for name, arm in arms.items():
        if name not in ALONE:
            shares = (stats.ratio(of(name, key), of(alone, key), groups) for alone, key in ALONE.items())
            lines.append(f"| {arm.title} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    return [*lines, ""]


def _costs(study: Study, arms: Mapping[str, Arm], cells: Sequence[Cell], groups: Sequence[str]) -> list[str]:
    """How long test-time training took in each arm, as a ratio to the first that has any."""
    spent = {name: [study.seconds(cell, arm) for cell in cells] for name, arm in arms.items()}
    trained = {name: [s for s in seconds if s is not None] for name, seconds in spent.items() if None not in seconds}
    if len(trained) < 2:
        return []
    first = next(iter(trained))
    lines = [f"Test-time training takes, in CPU time of the same run, over “{arms[first].title}”:", ""]
    for name, seconds in trained.items():
        lines.append(f"- {arms[name].title}: {stats.ratio(seconds, trained[first], groups):.3f}")
    return [*lines, ""]


def _influence(study: Study, kind: Kind, path: Path) -> list[str]:
    """What each block carries: a table, a chart, and the smallest set."""
    found = study.carried(kind)
    if found is None:
        return []
    bars = [("all" if len(one.layers) > 1 else str(one.layers[0]), one.effect) for one in found["alone"]]
    file = path.parent / f"{path.stem}-influence-{kind}.png"
    media.write_png(file, sheets.bar_chart(bars, f"what a block carries of the {kind}: score minus null"))
    last = found["chosen"][-1]
    return [
        f"## Which blocks carry the {kind}",
        "",
        f"Prompt influence over {_count(len(INFLUENCE[kind][: study.size.prompts]), 'pair')} of prompts and "
        f"{_count(study.size.seeds, 'seed')}: how much likelier the judge finds what the second prompt says once "
        "only that block reads it.",
        "",
        "| block | score minus null |",
        "|---|---|",
        *(f"| {name} | {effect:.2f} |" for name, effect in bars),
        "",
        f"The smallest set found with nine tenths of what all blocks do: {', '.join(map(str, last.layers))} "
        f"({last.effect:.2f}).",
        "",
        f"![Bars of the table above]({file.name})",
        "",
    ]


def _truth(cell: Cell) -> dict[str, float]:
    """What the judge says of the world's own render of a cell."""
    noun, look = cell.subject
    content = lessons.Content(noun, cell.movement, cell.scene, look)
    video = lessons.render([content], 600 + cell.seed, vary=0.0).video
    return judged(to_frames(video), cell)


def _pictures(study: Study, arms: Mapping[str, Arm], path: Path) -> list[str]:
    """A contact sheet for each of the first pairings, each in another scene."""
    lines = ["## What it looks like", ""]
    for pairing in range(min(SHEETS, study.size.pairings)):
        cell = Cell(pairing, SCENES[pairing % study.size.scenes], 0)
        scored = {arm.title: study.video(cell, arm) for arm in arms.values() if study.scores(cell, arm)}
        made = {title: video for title, video in scored.items() if video.exists()}
        noun, look = cell.subject
        words = world.noun_phrase(noun, look, name_look=True)
        file = path.parent / f"{path.stem}-{pairing}.png"
        if made and (made == scored or not file.exists()):
            media.write_png(file, _sheet(cell, made, f"{words} {cell.movement} {cell.scene}"))
        if file.exists():  # an earlier run's, where this one went on from its ledger alone
            lines += [f"![{words}, {cell.movement} {cell.scene}, by every arm]({file.name})", ""]
    return lines


def _sheet(cell: Cell, made: Mapping[str, Path], title: str) -> media.Pixels:
    """The pictures, the clip and every video (title -> file) of a cell."""
    rows = [
        ("the pictures", [one.pixels for one in lessons.pictures(*cell.subject)]),
        ("the clip", list(lessons.clip(cell.movement).frames)),
    ]
    rows += [(textwrap.fill(name, 18), list(media.read_frames(video)[0])) for name, video in made.items()]
    return sheets.contact_sheet(rows, 96, title)
