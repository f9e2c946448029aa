"""All numbers of the model card, by one command: `python -m customttt.lab.score --out runs/score --card`.

The judge on renders it has not seen, the codec, 200 prompts, and the learning of what the base has never seen.
Everything is seeded; each cell is kept in `--out` as it is done, so a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import cycle, product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from customttt import lora, media, sampling
from customttt.backbones import Backbone, autocast
from customttt.concept import Kind
from customttt.config import digest
from customttt.lab import spoil
from customttt.lab.judge_training import UNKNOWN, random_clips, random_contents, truth
from customttt.lab.lessons import Content, School, held_out, render
from customttt.library import Library
from customttt.measure import metrics, sheets, stats
from customttt.measure.ledger import Ledger
from customttt.progress import Report, Say, silent
from customttt.tiny import TINY_PATH, judge, world
from customttt.tiny.demo import PICTURE_SCENES, STILL
from customttt.tiny.movements import MOVEMENTS, TRAINED_MOVEMENTS
from customttt.tiny.scenes import SCENES
from customttt.video import Video, to_frames
from customttt.workshop import Workshop

CARD, GALLERY = TINY_PATH / "MODEL_CARD.md", TINY_PATH / "learned.png"
MARKS = "<!-- scores -->", "<!-- end of scores -->"
HEADING = re.compile(r"^(?=\*\*)", re.MULTILINE)
JUDGED, ASKED, SHOWN = 2000, 200, 24
SETTINGS = [
    ("sliding", "on the grass"),
    ("jumping", "on Mars"),
    (STILL, "in the desert"),
    ("rising", "in space"),
]
"""What a learned subject is asked to do, and where."""
ACTORS = [("tiger", "on the grass"), ("penguin", "in the city"), ("cat", "on Mars"), ("teddy bear", "at night")]
"""Who is asked to do a learned movement, and where."""
OF = {"look": "identity", "noun": "identity", "movement": "track"}
"""What is learned of the world's held-out part, and the measure that says how well."""
LOOKS = [world.Look(colour, hat) for colour, hat in product(judge.NAMES["colour"], world.HATS)]
"""In which a subject can be told from itself."""
PLACES = list(SCENES)
WORN = ("hat", "colour", "pattern")
SEEN = ("noun", "movement", *WORN)
ROWS = [
    "noun",
    "movement",
    "scene",
    "how many",
    *(f"{part} {when}" for when in ("asked for", "unasked") for part in WORN),
]
Drawn = TypeVar("Drawn")
PATH = 0.5
"""A movement whose own clips correlate less than this with themselves has no path."""


@torch.no_grad()
def generate(
    backbone: Backbone,
    contents: Sequence[Content],
    seed: int,
    scales: Mapping[str, float] = MappingProxyType({}),
    report: Report = silent,
) -> Video:
    """The base's clips of these contents' prompts, by the LoRAs in `scales` or by none; eight at a time."""
    sample, videos = backbone.defaults.sample, []
    generator = torch.Generator().manual_seed(seed)
    shape = backbone.latent_shape(sample.num_frames, *sample.sides)
    for start in range(0, len(contents), 8):
        prompts = [content.prompt for content in contents[start : start + 8]]
        noise = torch.randn(len(prompts), *shape, generator=generator).to(backbone.device)
        embeds = backbone.embed(prompts), backbone.embed([""] * len(prompts))
        with autocast(backbone.device):  # as in pretraining
            latents = sampling.denoise_in_phases(backbone, noise, *embeds, sample, scales, report)
        videos.append(backbone.decode(latents).cpu())
    return torch.cat(videos)


# ------------------------------------------------------------------------------------------------------- the parts


def score_judge(judged: int = JUDGED) -> dict[str, Any]:
    """The judge on clean and on spoiled renders of seeds it was not trained with, of one subject and of two."""
    generator = torch.Generator().manual_seed(10_001)
    rows: dict[str, Any] = {}
    for pairs, subjects in ((0.0, "alone"), (1.0, "of two")):
        rows |= _judge_rows(judged, pairs, f"clean, {subjects}:", None, generator)
        rows |= _judge_rows(judged, pairs, f"augmented, {subjects}:", spoil.augment, generator)
    rows |= score_identity(judged // 4)
    warped = random_clips(200, generator, 0.0)
    unsure = judge.load().look(spoil.warp(warped.video, generator)).names("noun").count(judge.UNSURE)
    return rows | {"warped, unsure of the noun": asdict(stats.share(unsure, 200))}


def _judge_rows(
    judged: int,
    pairs: float,
    title: str,
    change: Callable[[Video, torch.Generator], Video] | None,
    generator: torch.Generator,
) -> dict[str, Any]:
    """How often it is right by head, its calibration error, how far off it is, and what it sees that is not there."""
    guesses, errors = [], []
    for _ in range(judged // 50):
        clips = random_clips(50, generator, pairs)
        opinion = judge.load().look(change(clips.video, generator) if change else clips.video)
        guesses.append(_guesses(clips.contents, opinion))
        positions = torch.stack([opinion.position, opinion.second.position], 1)
        there = clips.contents.noun != world.ABSENT
        errors.append((positions - clips.pose[..., :2])[there].norm(dim=-1).mean(-1) / 2)
    rows: dict[str, Any] = {}
    for head in guesses[0]:
        label, probability, chosen = (torch.cat(parts) for parts in zip(*(one[head] for one in guesses), strict=True))
        right = chosen == label
        rows[f"{title} {head}"] = asdict(stats.share(int(right.sum()), len(right)))
        rows[f"{title} {head} calibration error"] = calibration_error(probability, right)
        if head in WORN:
            unasked = ((chosen != 0) & (probability >= judge.sure(head)))[label == 0]
            rows[f"{title} {head} seen where there is none"] = asdict(stats.share(int(unasked.sum()), len(unasked)))
    return rows | {f"{title} position": asdict(stats.mean(torch.cat(errors).tolist()))}


class Guess(NamedTuple):
    """Of all that have a label: it, and what the judge says instead and how probable it finds that."""

    label: Int[Tensor, " n"]
    probability: Float[Tensor, " n"]
    chosen: Int[Tensor, " n"]


def _guesses(contents: world.Contents, opinion: judge.Opinion) -> dict[str, Guess]:
    """By head."""
    guesses = {}
    for head, label in truth(contents).items():
        if head in ("scene", "two"):
            guess = opinion.scene if head == "scene" else torch.stack([1 - opinion.two, opinion.two], -1)
        else:
            guess = torch.stack([getattr(opinion, head), getattr(opinion.second, head)], 1)
        known = label != UNKNOWN
        guesses[head] = Guess(label[known], *guess[known].max(-1))
    return guesses


def calibration_error(probability: Tensor, right: Tensor, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017): |confidence - accuracy|, weighted over ten bins."""
    index = (probability * bins).long().clamp(max=bins - 1)
    gaps = [
        (index == k).float().mean() * (probability[index == k].mean() - right[index == k].float().mean()).abs()
        for k in range(bins)
        if (index == k).any()
    ]
    return float(torch.stack(gaps).sum())


def references(subjects: Sequence[tuple[str, world.Look]]) -> Float[Tensor, "n d"]:
    """Identity of each subject from five still pictures in five scenes."""
    contents = [Content(noun, STILL, scene, look) for noun, look in subjects for scene in PICTURE_SCENES]
    stills = render(contents, 77, num_frames=1)
    identity = judge.load().look(stills.video).identity
    return F.normalize(identity.view(len(subjects), len(PICTURE_SCENES), -1).mean(1), dim=-1)


@cache
def in_all_looks(noun: str) -> Float[Tensor, "n d"]:
    """Identity of a noun in all of LOOKS."""
    return references([(noun, look) for look in LOOKS])


def score_identity(queries: int) -> dict[str, Any]:
    """How often the right look has the most similar references: among its noun's looks, and among all subjects."""
    generator = torch.Generator().manual_seed(10_002)
    nouns = [*world.FIRST_NOUNS, *world.HELD_OUT_NOUNS]
    noun, look = (torch.randint(0, n, (queries,), generator=generator) for n in (len(nouns), len(LOOKS)))
    contents = random_contents(queries, generator, 0.0)
    contents.noun[:, 0] = torch.tensor([world.NOUNS.index(name) for name in nouns])[noun]
    contents.colour[:, 0] = torch.tensor([list(world.COLOURS).index(one.colour) for one in LOOKS])[look]
    contents.hat[:, 0] = torch.tensor([world.HATS.index(one.hat) for one in LOOKS])[look]
    contents.pattern[:] = 0
    identity = judge.load().look(world.render(contents, generator).video).identity
    cosines = torch.stack([identity @ in_all_looks(name).T for name in nouns], 1)
    own = cosines[torch.arange(queries), noun]
    among_looks = int((own.argmax(1) == look).sum())
    among_all = int((cosines.flatten(1).argmax(1) == noun * len(LOOKS) + look).sum())
    return {
        "identity, right look first among the noun's": asdict(stats.share(among_looks, queries)),
        "identity, right subject first among all": asdict(stats.share(among_all, queries)),
    }


def score_codec(backbone: Backbone) -> dict[str, Any]:
    """PSNR on held-out nouns, over the whole frame and under the subject: as they are, and dressed."""
    looks = {"as it is": [world.PLAIN], "dressed": world.HELD_OUT_LOOKS}
    rows: dict[str, Any] = {}
    for name, worn in looks.items():
        contents = [
            Content(noun, "jumping", place, look)
            for noun, place, look in zip(world.HELD_OUT_NOUNS, PLACES, cycle(worn), strict=False)
        ]
        clips = render(contents, 10_003, num_frames=backbone.defaults.sample.num_frames)
        error = (backbone.decode(backbone.encode(clips.video)).cpu() - clips.video).square() / 4
        mask = clips.mask.unsqueeze(1).expand_as(error)
        whole = -10 * error.flatten(1).mean(1).log10()
        under = -10 * ((error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)).log10()
        rows[f"{name}: whole frame"] = asdict(stats.mean(whole.tolist()))
        rows[f"{name}: under the subject"] = asdict(stats.mean(under.tolist()))
    return rows


def asked_contents(count: int = ASKED) -> list[Content]:
    """The fixed prompts: all trained nouns, movements and scenes, every other subject in a trained look.

    One in eight has two subjects, half of which move each in its own way.
    """
    generator = torch.Generator().manual_seed(10_004)
    worn = [look for look in LOOKS if look not in (world.PLAIN, *world.HELD_OUT_LOOKS)]
    order = torch.randperm(len(world.TRAINED_NOUNS), generator=generator).tolist()

    def draw(values: Sequence[Drawn]) -> Drawn:
        return values[int(torch.randint(0, len(values), (), generator=generator))]

    def look(dressed: bool) -> world.Look:
        return draw(worn)._replace(pattern=draw(["", *world.PATTERNS])) if dressed else world.PLAIN

    asked = []
    for index in range(count):
        noun = world.TRAINED_NOUNS[order[index % len(order)]]
        one = Content(noun, draw(TRAINED_MOVEMENTS), draw(PLACES), look(index % 2 == 1))
        if index % 8 == 3:
            movement = draw(TRAINED_MOVEMENTS) if index % 16 == 3 else one.movement
            others = [other for other in world.TRAINED_NOUNS if other != noun]
            one = replace(one, other=Content(draw(others), movement, one.scene, look(draw([True, False]))))
        asked.append(one)
    return asked


def score_prompts(backbone: Backbone, out: Path, say: Say, count: int = ASKED) -> dict[str, Any]:
    """The judge on generated clips and on the world's own of the same prompts; "unsure" counts as wrong."""
    contents = asked_contents(count)
    file = out / "prompts.pt"
    if not file.exists():
        video = generate(backbone, contents, 10_005, report=lambda p: say(f"prompts: step {p.step} of {p.total}"))
        torch.save(((video + 1) * 127.5).round().byte(), file)
    made = torch.load(file, weights_only=True).float() / 127.5 - 1
    rows: dict[str, Any] = {}
    real = render(contents, 10_006, num_frames=made.shape[2])
    for name, video in (("tiny", made), ("real renders", real.video)):
        hits_of = asked_and_seen(judge.load().look(video), contents)
        rows |= {f"{name}: {row}": asdict(stats.share(sum(hits), len(hits))) for row, hits in hits_of.items() if hits}
    shown = [(content.prompt, to_frames(clip[None])) for content, clip in zip(contents, made[:SHOWN], strict=False)]
    media.write_png(out / "samples.png", sheets.contact_sheet(shown, 96))
    return rows


def asked_and_seen(opinion: judge.Opinion, contents: Sequence[Content]) -> dict[str, list[bool]]:
    """By row: whether what was asked for is seen, and whether what was not asked for is."""
    rows: dict[str, list[bool]] = defaultdict(list)
    for asked, seen in zip(contents, opinion.names("scene"), strict=True):
        rows["scene"].append(seen == asked.scene)
    for asked, two in zip(contents, (opinion.two >= judge.SURE).tolist(), strict=True):
        rows["how many"].append(two == (asked.other is not None))
    for subject, names in _subjects(opinion, contents):
        for head in ("noun", "movement"):
            rows[head].append(names[head] == getattr(subject, head))
        for part in WORN:
            wanted, seen = getattr(subject.look, part), names[part]
            row = f"{part} asked for" if wanted else f"{part} unasked"
            rows[row].append(seen == wanted if wanted else seen not in ("", judge.UNSURE))
    return {row: rows[row] for row in ROWS}


def _subjects(opinion: judge.Opinion, contents: Sequence[Content]) -> list[tuple[Content, dict[str, str]]]:
    """Every subject that is asked for, and what the judge says of it; of one that is not there it is unsure."""
    nouns = [(world.NOUNS.index(c.noun), world.NOUNS.index((c.other or c).noun)) for c in contents]
    first, second = ({head: seen.names(head) for head in SEEN} for seen in opinion.in_order(nouns))
    subjects = []
    for index, content in enumerate(contents):
        subjects.append((content, {head: names[index] for head, names in first.items()}))
        if content.other:
            there = opinion.two[index] >= judge.SURE
            subjects.append(
                (content.other, {head: names[index] if there else judge.UNSURE for head, names in second.items()})
            )
    return subjects


def learn_one(school: School, kind: str, content: Content, seed: int) -> tuple[dict[str, float], Video]:
    """Learn one held-out look, noun or movement and score the same noise before and after; (scores, clips after)."""
    adapter: Kind = "motion" if kind == "movement" else "appearance"
    if kind == "movement":
        asked = [Content(noun, content.movement, scene) for noun, scene in ACTORS]
    else:
        asked = [Content(content.noun, movement, scene) for movement, scene in SETTINGS]
    backbone = school.shop.backbone
    learned = school.learned(adapter, content, getattr(backbone.defaults, adapter).but(seed=seed))
    lora.restore(backbone.network, adapter, lora.load(school.shop.library.weights(learned.name)))
    try:
        before = generate(backbone, asked, 500 + seed)
        after = generate(backbone, asked, 500 + seed, {adapter: 1.0})
    finally:
        lora.remove(backbone.network, adapter)
    shown = [Content(c.noun, c.movement, c.scene, content.look) for c in asked]
    real = render(shown, 600 + seed, num_frames=after.shape[2], vary=0.0 if kind == "movement" else 1.0)
    scores: dict[str, float] = {}
    for name, video in (("before", before), ("after", after), ("real", real.video)):
        opinion = judge.load().look(video)
        scores |= {
            f"{name} {key}": value for key, value in _learned_scores(opinion, kind, content, asked, real).items()
        }
    return scores, after


def _learned_scores(
    opinion: judge.Opinion, kind: str, content: Content, asked: Sequence[Content], real: world.Clips
) -> dict[str, float]:
    def right(head: str) -> float:
        wanted: list[str] = [getattr(content, head) for content in asked]
        return sum(a == b for a, b in zip(opinion.names(head), wanted, strict=True)) / len(asked)

    scores = {"scene": right("scene"), "noun": right("noun"), "movement": right("movement")}
    if kind == "movement":
        path = real.pose[:, 0, :, :2]
        return scores | {
            "track": sum(map(metrics.correlation, opinion.position, path)) / len(asked),
            "probability": float(opinion.movement[:, list(MOVEMENTS).index(content.movement)].mean()),
        }
    cosines = opinion.identity @ in_all_looks(content.noun).T
    mine = cosines[:, LOOKS.index(content.look)]
    ranks = 1 + (cosines > mine[:, None]).sum(1)
    return scores | {"identity": float(mine.mean()), "rank": float(ranks.float().mean())}


def _settings(backbone: Backbone, kind: str) -> str:
    """A digest of the base's own settings on which the scores of a kind depend."""
    own = backbone.defaults
    used = own.motion if kind == "movement" else own.appearance
    sample = own.sample.but(appearance_from=0.0, motion_until=None if kind == "movement" else 1.0)
    return digest([used.changed(), sample.changed()])[:8]


def share_of_real(scores: Mapping[str, float], measure: str) -> float:
    """How much of what the judge finds in the world's own clips it finds after learning.

    Nodding has no path; of what turns in its place the probability of the movement counts.
    """
    counted = measure if scores[f"real {measure}"] > PATH else "probability"
    return scores[f"after {counted}"] / scores[f"real {counted}"]


def score_learning(
    school: School,
    out: Path,
    items: int = 12,
    seeds: int = 3,
    share: tuple[int, int] = (1, 1),
) -> dict[str, Any]:
    """Before, after and the world's own clips, over held-out looks, nouns and movements, with intervals over them.

    `share` (i, n) is the i-th of n processes on the same folder; what the others have not measured yet is left out.
    """
    ledger, base = Ledger(out / "learning.jsonl"), school.shop.backbone
    cells = [(seed, kind, i) for seed in range(seeds) for i in range(items) for kind in OF]
    done: dict[str, list[tuple[str, dict[str, float]]]] = {kind: [] for kind in OF}
    for number, (seed, kind, i) in enumerate(cells):
        content = held_out(kind)[i]
        name = content.file_name
        key = f"{kind} {name}, seed {seed}, base {base.fingerprint}, settings {_settings(base, kind)}"
        if number % share[1] == share[0] - 1 and ledger.get(key) is None:
            scores, video = learn_one(school, kind, content, seed)
            rows_of_frames = [("", to_frames(clip[None])) for clip in video]
            (out / "learning").mkdir(parents=True, exist_ok=True)
            media.write_png(out / "learning" / f"{kind}-{name}-{seed}.png", sheets.contact_sheet(rows_of_frames, 64))
            ledger.put(key, **scores)
            school.say(f"learning: {number + 1} of {len(cells)}, {kind} {name}, seed {seed}")
        if known := ledger.get(key):
            done[kind].append((name, known))
    rows: dict[str, Any] = {}
    for kind, measure in OF.items():
        groups = [name for name, _ in done[kind]]
        for key in done[kind][0][1] if groups else ():
            rows[f"{kind}: {key}"] = asdict(stats.mean([scores[key] for _, scores in done[kind]], groups))
        if groups:
            shares = [share_of_real(scores, measure) for _, scores in done[kind]]
            rows[f"{kind}: {measure} after, as a share of real"] = asdict(stats.mean(shares, groups))
    return rows


# ------------------------------------------------------------------------------------------------------- the report


def table(results: dict[str, dict[str, Any]]) -> str:
    """All numbers as Markdown."""
    lines = []
    for part, rows in results.items():
        lines += [f"**{part}**", "", "| | value | 95 % interval | n |", "|---|---|---|---|"]
        for name, row in rows.items():
            if isinstance(row, float):
                lines.append(f"| {name} | {row:.3f} | | |")
            else:
                interval = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
                lines.append(f"| {name} | {row['value']:.3f} | {interval} | {row['n']} |")
        lines.append("")
    return "\n".join(lines)


def write_card(text: str, card: Path = CARD) -> None:
    """Put the numbers between the card's marks; parts that were not measured now stay as they are."""
    before, rest = card.read_text(encoding="utf-8").split(MARKS[0])
    old, after = rest.split(MARKS[1])
    parts = {part.split("**")[1]: part for part in HEADING.split(f"{old.strip()}\n\n{text.strip()}") if "**" in part}
    inside = "\n\n".join(part.strip() for part in parts.values())
    card.write_text(f"{before}{MARKS[0]}\n\n{inside}\n\n{MARKS[1]}{after}", encoding="utf-8")


def write_gallery(out: Path, path: Path = GALLERY) -> None:
    """The clips of the first looks and nouns that were learned, as far as the learning was done in `out`."""
    names = [f"{kind}-{content.file_name}-0.png" for kind in ("look", "noun") for content in held_out(kind)[:3]]
    pictures = [out / "learning" / name for name in names if (out / "learning" / name).exists()]
    if pictures:
        media.write_png(path, sheets.mosaic([media.read_png(file) for file in pictures], 3))


def run(
    parts: Sequence[str], base: str, out: Path, say: Say, quick: bool, share: tuple[int, int] = (1, 1)
) -> dict[str, dict[str, Any]]:
    """Score `parts`, each kept in `out`: the learning cell by cell, so that processes can share it, others as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    shop = Workshop.open(base, Library(out, forgets=False))
    backbone = shop.backbone
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        "judge": lambda: score_judge(100 if quick else JUDGED),
        "codec": lambda: score_codec(backbone),
        "prompts": lambda: score_prompts(backbone, out, say, 16 if quick else ASKED),
    }
    results = {}
    for part in parts:
        if part == "learning":
            size = (2, 1) if quick else (12, 3)
            results[part] = score_learning(School(shop, say), out, *size, share)
            continue
        file = out / f"{part}.json"
        if not file.exists():
            file.write_text(json.dumps(jobs[part](), indent=1), encoding="utf-8")
        results[part] = json.loads(file.read_text(encoding="utf-8"))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m customttt.lab.score", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, pictures included")
    parser.add_argument("--base", default="tiny", help="tiny, or the folder of an exported checkpoint")
    parser.add_argument("--parts", nargs="+", default=["judge", "codec", "prompts", "learning"])
    parser.add_argument("--share", default="1/1", help="which part of the learning this process does: 1/2, 2/2")
    parser.add_argument("--quick", action="store_true", help="a few of everything, to see that it runs")
    parser.add_argument("--card", action="store_true", help="write the numbers into the model card")
    arguments = parser.parse_args()
    i, n = map(int, arguments.share.split("/"))
    say = partial(print, flush=True)
    text = table(run(arguments.parts, arguments.base, arguments.out, say, arguments.quick, (i, n)))
    print(text)
    if arguments.card:
        write_card(text)
        write_gallery(arguments.out)


if __name__ == "__main__":
    main()
