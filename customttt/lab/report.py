"""The study's report: Markdown tables with 95 % intervals over pairings, paired differences, and contact sheets."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

from customttt import media
from customttt.concept import Kind
from customttt.lab import lessons
from customttt.lab.arms import TABLES, Arm
from customttt.lab.experiment import INFLUENCE, MEASURES, SCENES, Cell, Study, judged
from customttt.measure import sheets, stats
from customttt.tiny.captions import noun_phrase
from customttt.video import to_frames

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
RIGHT = ("subject", "movement", "all")
KEPT = 0.95
LEARNED = 0.5
"""From which track on, of the motion LoRA alone, a movement counts as learned."""
ALSO_FROM = ("untrained", "ours", "s26t25")
"""Arms from which differences are shown besides those from a table's first: what test-time training adds to ours, what
the others have less, and what the paper's layers have more than others of its table."""
Scores = dict[str, dict[Cell, dict[str, float]]]
"""By arm: what the judge says of its videos."""


def write(study: Study, tables: Sequence[str], path: Path, command: str) -> None:
    """Write the report to `path` and its pictures beside it.

    Of a run that was stopped early, an arm has the scenes and seeds of which all pairings are made, and arms are
    compared over the videos that both have.
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
        lines += _table(study, TITLES[name], TABLES[name])
    lines += _by_pairing(study) if "ttt" in compared else []
    for kind in INFLUENCE:
        lines += _influence(study, kind, path)
    lines += _pictures(study, TABLES[compared[0]], path) if compared else []
    path.write_text("\n".join(lines), encoding="utf-8")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _table(study: Study, title: str, table: Mapping[str, Arm]) -> list[str]:
    """One table of means, and one of paired differences from its first arm and from ALSO_FROM."""
    videos = {name: _made(study, arm) for name, arm in table.items()}
    pairings = {cell.pairing for made in videos.values() for cell in made}
    scores = {name: whole for name, made in videos.items() if (whole := _whole(made, pairings))}
    arms = {name: table[name] for name in scores}
    if not arms:
        return []
    measures = "|".join(MEASURES.values()) + "|"
    lines = [f"## {title}", "", f"| |videos|{measures}", "|---|---|" + "---|" * len(MEASURES)]
    for name, arm in arms.items():
        lines.append(_means(arm.title, scores[name]))
    truth = {cell: _truth(cell) for made in scores.values() for cell in made}
    lines.append(_means("*the world's own renders*", truth))
    first = next(iter(arms))
    for base in dict.fromkeys(name for name in (first, *ALSO_FROM) if name in arms):
        head = [f"Differences from “{arms[base].title}”, paired video by video:", "", f"| |{measures}"]
        lines += ["", *head, "|---|" + "---|" * len(MEASURES)]
        for name, arm in arms.items():
            if name != base and scores[name].keys() & scores[base].keys():
                means = (_difference(*_shared(scores, name, base, key)) for key in MEASURES)
                lines.append(f"| {arm.title} | " + " | ".join(f"{mean:+.2f}" for mean in means) + " |")
    left = [f"{arm.title} ({len(videos[name])})" for name, arm in table.items() if name not in arms]
    missing = [f"Not in the table, as no scene of theirs is made of all pairings: {', '.join(left)}.", ""]
    return [*lines, "", *(missing if left else []), *_kept(arms, scores), *_costs(study, arms, scores)]


def _made(study: Study, arm: Arm) -> dict[Cell, dict[str, float]]:
    """What the judge says of an arm's videos, as far as they are made."""
    return {cell: scores for cell in study.size.cells() if (scores := study.scores(cell, arm))}


def _whole(made: Mapping[Cell, dict[str, float]], pairings: set[int]) -> dict[Cell, dict[str, float]]:
    """Those of a scene and seed of which all pairings are made, so that each counts as much as the others."""
    return {
        cell: scores
        for cell, scores in made.items()
        if all(replace(cell, pairing=pairing) in made for pairing in pairings)
    }


def _means(title: str, made: Mapping[Cell, dict[str, float]]) -> str:
    """A row of a table."""
    groups = [str(cell.pairing) for cell in made]
    means = (stats.mean([one[key] for one in made.values()], groups) for key in MEASURES)
    return f"| {title} | {len(made)} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |"


def _shared(scores: Scores, one: str, other: str, measure: str) -> tuple[list[float], list[float], list[str]]:
    """A measure of two arms, video by video of those that both have, and the pairings."""
    cells = [cell for cell in scores[one] if cell in scores[other]]
    return (
        [scores[one][cell][measure] for cell in cells],
        [scores[other][cell][measure] for cell in cells],
        [str(cell.pairing) for cell in cells],
    )


def _difference(values: Sequence[float], others: Sequence[float], groups: Sequence[str]) -> stats.Estimate:
    """The mean of how much more the first are."""
    return stats.mean([one - other for one, other in zip(values, others, strict=True)], groups)


def _kept(arms: Mapping[str, Arm], scores: Scores) -> list[str]:
    """What each way of acting together keeps of what the two LoRAs do alone, where the table has those two."""
    if not ALONE.keys() <= arms.keys():
        return []
    lines = [
        f"Of what each LoRA does alone in the same videos this much is kept; the target is {KEPT:.0%} of both:",
        "",
        "| |videos|" + "|".join(f"{MEASURES[key]}, of “{arms[name].title}”" for name, key in ALONE.items()) + "|",
        "|---|---|" + "---|" * len(ALONE),
    ]
    for name, arm in arms.items():
        if name not in ALONE and all(scores[name].keys() & scores[alone].keys() for alone in ALONE):
            shared = [_shared(scores, name, alone, key) for alone, key in ALONE.items()]
            shares = " | ".join(f"{stats.ratio(*both):.2f}" for both in shared)
            lines.append(f"| {arm.title} | {len(shared[0][0])} | {shares} |")
    return [*lines, ""]


def _by_pairing(study: Study) -> list[str]:
    """Ours beside each LoRA alone, pairing by pairing: where what is missing is lost."""
    scores = {name: _made(study, TABLES["ttt"][name]) for name in ("ours", *ALONE)}
    cells = [cell for cell in scores["ours"] if all(cell in scores[name] for name in ALONE)]
    if not cells:
        return []
    heads = [head for name, key in ALONE.items() for head in (f"{MEASURES[key]}, {name} LoRA alone", "ours")]
    heads += [f"ours: {MEASURES[key]}" for key in RIGHT]
    lines = [
        "## Where it is lost, pairing by pairing",
        "",
        f"| |videos|{'|'.join(heads)}|",
        "|---|---|" + "---|" * len(heads),
    ]
    by_pairing = {at: [cell for cell in cells if cell.pairing == at] for at in sorted({c.pairing for c in cells})}
    for some in by_pairing.values():
        shown = [(name, key) for alone, key in ALONE.items() for name in (alone, "ours")]
        shown += [("ours", key) for key in RIGHT]
        means = " | ".join(f"{fmean(scores[name][cell][key] for cell in some):.2f}" for name, key in shown)
        lines.append(f"| {_named(some[0])} | {len(some)} | {means} |")
    tracks = {at: fmean(scores["motion"][cell]["track"] for cell in some) for at, some in by_pairing.items()}
    known = [at for at, track in tracks.items() if track >= LEARNED]
    if 0 < len(known) < len(tracks):
        learned = {name: {cell: made[cell] for cell in cells if cell.pairing in known} for name, made in scores.items()}
        identity, track = (stats.ratio(*_shared(learned, "ours", name, key)) for name, key in ALONE.items())
        count = _count(len(known), "pairing")
        lines += [
            "",
            f"In the {count} whose motion was learned, with a correlation of the track of at least {LEARNED} alone, "
            f"ours keeps {identity:.2f} of the identity similarity and {track:.2f} of the track.",
        ]
    return [*lines, ""]


def _named(cell: Cell) -> str:
    """What a pairing's videos show, wherever."""
    noun, look = cell.subject
    return f"{noun_phrase(noun, look)}, {cell.movement}"


def _costs(study: Study, arms: Mapping[str, Arm], scores: Scores) -> list[str]:
    """How long test-time training took in each arm, as a ratio to the first that has any."""
    cells = {cell.pairing: cell for made in scores.values() for cell in made}.values()  # it knows no scene and no seed
    spent = {name: [study.seconds(cell, arm) for cell in cells] for name, arm in arms.items()}
    trained = {name: [s for s in seconds if s is not None] for name, seconds in spent.items() if None not in seconds}
    if len(trained) < 2:
        return []
    first = next(iter(trained))
    lines = [f"Test-time training takes, in CPU time of the same run, over “{arms[first].title}”:", ""]
    for name, seconds in trained.items():
        lines.append(f"- {arms[name].title}: {stats.ratio(seconds, trained[first]):.3f}")
    return [*lines, ""]


def _influence(study: Study, kind: Kind, path: Path) -> list[str]:
    """What each block carries: a table, a chart, and the smallest set."""
    carried = study.carried(kind)
    if carried is None:
        return []
    bars = [("all" if len(one.layers) > 1 else str(one.layers[0]), one.effect) for one in carried["alone"]]
    file = path.parent / f"{path.stem}-influence-{kind}.png"
    media.write_png(file, sheets.bar_chart(bars, f"what a block carries of the {kind}: score minus null"))
    last = carried["chosen"][-1]
    return [
        f"## Which blocks carry the {kind}",
        "",
        f"Prompt influence over {_count(len(INFLUENCE[kind][: study.size.prompts]), 'pair')} of prompts, "
        f"{_count(last.effect.n, 'video')} a block: how much likelier the judge finds what the second prompt says once "
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


@cache
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
        words = _named(cell)
        file = path.parent / f"{path.stem}-{pairing}.png"
        if made and (made == scored or not file.exists()):
            media.write_png(file, _sheet(cell, made, f"{words} {cell.scene}"))
        if file.exists():  # an earlier run's, where this one went on from its ledger alone
            lines += [f"![{words} {cell.scene}, by every arm]({file.name})", ""]
    return lines


def _sheet(cell: Cell, made: Mapping[str, Path], title: str) -> media.Pixels:
    """The pictures, the clip and every video (title -> file) of a cell."""
    rows = [
        ("the pictures", [one.pixels for one in lessons.pictures(*cell.subject)]),
        ("the clip", list(lessons.clip(cell.movement).frames)),
    ]
    rows += [(textwrap.fill(name, 18), list(media.read_frames(video)[0])) for name, video in made.items()]
    return sheets.contact_sheet(rows, 96, title)
