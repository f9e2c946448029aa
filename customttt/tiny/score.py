"""All numbers of the model card, by one command: `python -m customttt.tiny.score --out runs/score --card`.

The judge on renders it has not seen, the VAE, 200 prompts, and the learning of what the base has never seen.
Everything is seeded; each cell is kept in `--out` as it is done, so a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from customttt import learn, lora, media, metrics, sampling, sheets, stats, train
from customttt.backbones import Backbone, Video
from customttt.compose import to_frames
from customttt.concept import Kind
from customttt.config import digest
from customttt.ledger import Ledger
from customttt.tiny import TINY_PATH, judge, models, world
from customttt.tiny.demo import PICTURE_SCENES, STILL
from customttt.tiny.lessons import MOVEMENTS, SCENES, Content, Say, School, held_out, render

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
PATH = 0.5
"""A movement whose own clips correlate less than this with themselves has no path."""


@torch.no_grad()
def generate(
    backbone: Backbone,
    contents: Sequence[Content],
    seed: int,
    scales: Mapping[str, float] = MappingProxyType({}),
    report: train.Report = train.silent,
) -> Video:
    """The base's clips of these contents' prompts, by the LoRAs in `scales` or by none; eight at a time."""
    sample, videos = backbone.defaults.sample, []
    generator = torch.Generator().manual_seed(seed)
    shape = backbone.latent_shape(sample.num_frames, sample.size)
    for start in range(0, len(contents), 8):
        prompts = [content.prompt for content in contents[start : start + 8]]
        noise = torch.randn(len(prompts), *shape, generator=generator).to(backbone.device)
        embeds = backbone.embed(prompts), backbone.embed([""] * len(prompts))
        with models.autocast(backbone.device):  # as in pretraining
            latents = sampling.denoise_in_phases(backbone, noise, *embeds, sample, scales, report)
        videos.append(backbone.decode(latents).cpu())
    return torch.cat(videos)


# ------------------------------------------------------------------------------------------------------- the parts


def score_judge(judged: int = JUDGED) -> dict[str, Any]:
    """The judge on clean and on spoiled renders of seeds it was not trained with."""
    referee, generator = judge.load(), torch.Generator().manual_seed(10_001)
    rows: dict[str, Any] = {}
    for condition in ("clean", "augmented"):
        hits: dict[str, list[Tensor]] = {head: [] for head in judge.HEADS}
        sure: dict[str, list[Tensor]] = {head: [] for head in judge.HEADS}
        errors = []
        for _ in range(judged // 50):
            clips = judge.random_clips(50, generator)
            video = clips.video if condition == "clean" else judge.augment(clips.video, generator)
            opinion = referee.look(video)
            for head in judge.HEADS:
                probability, chosen = getattr(opinion, head).max(-1)
                hits[head].append(chosen == getattr(clips, head))
                sure[head].append(probability)
            errors.append((opinion.position - clips.pose[..., :2]).norm(dim=-1) / 2)
        for head in judge.HEADS:
            right, probability = torch.cat(hits[head]), torch.cat(sure[head])
            rows[f"{condition} {head}"] = asdict(stats.share(int(right.sum()), len(right)))
            rows[f"{condition} {head} calibration error"] = calibration_error(probability, right)
        rows[f"{condition} position"] = asdict(stats.mean(torch.cat(errors).mean(1).tolist()))
    rows |= score_identity(judged // 4)
    warped = judge.random_clips(200, generator)
    rows["warped, unsure of the noun"] = asdict(
        stats.share(referee.look(judge.warp(warped.video, generator)).names("noun").count(judge.UNSURE), 200)
    )
    return rows


def calibration_error(probability: Tensor, right: Tensor, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017): |confidence - accuracy|, weighted over ten bins."""
    index = (probability * bins).long().clamp(max=bins - 1)
    gaps = [
        (index == k).float().mean() * (probability[index == k].mean() - right[index == k].float().mean()).abs()
        for k in range(bins)
        if (index == k).any()
    ]
    return float(torch.stack(gaps).sum())


def references(subjects: Sequence[tuple[str, tuple[str, str]]]) -> Float[Tensor, "n d"]:
    """Identity of each subject from five still pictures in five scenes."""
    contents = [Content(noun, STILL, scene, look) for noun, look in subjects for scene in PICTURE_SCENES]
    stills = render(contents, 77, num_frames=1)
    identity = judge.load().look(stills.video).identity
    return F.normalize(identity.view(len(subjects), len(PICTURE_SCENES), -1).mean(1), dim=-1)


def score_identity(queries: int) -> dict[str, Any]:
    """How often the right look has the most similar references: among its noun's looks, and among all subjects."""
    known = references(list(product(world.NOUNS, world.LOOKS)))
    clips = judge.random_clips(queries, torch.Generator().manual_seed(10_002))
    cosines = judge.load().look(clips.video).identity @ known.T
    looks = len(world.LOOKS)
    own = torch.stack([row[noun * looks : (noun + 1) * looks] for row, noun in zip(cosines, clips.noun, strict=True)])
    among_looks = int((own.argmax(1) == clips.look).sum())
    among_all = int((cosines.argmax(1) == clips.noun * looks + clips.look).sum())
    return {
        "identity, right look first among the noun's": asdict(stats.share(among_looks, queries)),
        "identity, right subject first among all": asdict(stats.share(among_all, queries)),
    }


def score_vae(backbone: Backbone) -> dict[str, Any]:
    """PSNR on held-out nouns, over the whole frame and under the subject."""
    contents = [Content(noun, "jumping", scene) for noun, scene in zip(world.HELD_OUT_NOUNS, SCENES * 2, strict=False)]
    clips = render(contents, 10_003)
    error = (backbone.decode(backbone.encode(clips.video)).cpu() - clips.video).square() / 4
    mask = clips.mask.unsqueeze(1).expand_as(error)
    whole = -10 * error.flatten(1).mean(1).log10()
    under = -10 * ((error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)).log10()
    return {"whole frame": asdict(stats.mean(whole.tolist())), "under the subject": asdict(stats.mean(under.tolist()))}


def asked_contents(count: int = ASKED) -> list[Content]:
    """The fixed prompts: trained nouns, movements and scenes in turn, every other one in a trained look."""
    generator = torch.Generator().manual_seed(10_004)
    looks = [look for look in world.LOOKS if look not in world.HELD_OUT_LOOKS]

    def draw(n: int) -> int:
        return int(torch.randint(0, n, (), generator=generator))

    nouns, movements = world.TRAINED_NOUNS, world.TRAINED_MOVEMENTS
    return [
        Content(
            nouns[draw(len(nouns))], movements[draw(len(movements))], SCENES[draw(len(SCENES))],
            looks[draw(len(looks))] if index % 2 else ("", ""),
        )
        for index in range(count)
    ]  # fmt: skip


def score_prompts(backbone: Backbone, out: Path, say: Say, count: int = ASKED) -> dict[str, Any]:
    """The judge on generated clips and on the world's own of the same prompts; "unsure" counts as wrong."""
    contents = asked_contents(count)
    file = out / "prompts.pt"
    if not file.exists():
        video = generate(backbone, contents, 10_005, report=lambda p: say(f"prompts: step {p.step} of {p.total}"))
        torch.save(((video + 1) * 127.5).round().byte(), file)
    made = torch.load(file, weights_only=True).float() / 127.5 - 1
    rows: dict[str, Any] = {}
    for name, video in (("tiny", made), ("real renders", render(contents, 10_006).video)):
        opinion = judge.load().look(video)
        for head in judge.HEADS:
            hits = sum(a == getattr(c, head) for a, c in zip(opinion.names(head), contents, strict=True))
            rows[f"{name} {head}"] = asdict(stats.share(hits, len(contents)))
    shown = [(content.prompt, to_frames(clip[None])) for content, clip in zip(contents, made[:SHOWN], strict=False)]
    media.write_png(out / "samples.png", sheets.contact_sheet(shown, 96))
    return rows


def learn_one(school: School, kind: str, content: Content, seed: int) -> tuple[dict[str, float], Video]:
    """Learn one held-out look, noun or movement and score the same noise before and after; (scores, clips after)."""
    adapter: Kind = "motion" if kind == "movement" else "appearance"
    if kind == "movement":
        asked = [Content(noun, content.movement, scene) for noun, scene in ACTORS]
    else:
        asked = [Content(content.noun, movement, scene) for movement, scene in SETTINGS]
    backbone = school.backbone
    weights = school.learned(adapter, content, getattr(backbone.defaults, adapter).but(seed=seed))
    lora.restore(backbone.unet, adapter, weights)
    try:
        before = generate(backbone, asked, 500 + seed)
        after = generate(backbone, asked, 500 + seed, {adapter: 1.0})
    finally:
        lora.remove(backbone.unet, adapter)
    shown = [Content(c.noun, c.movement, c.scene, content.look) for c in asked]
    real = render(shown, 600 + seed, vary=0.0 if kind == "movement" else 1.0)
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
        truth = real.pose[..., :2]
        return scores | {
            "track": sum(map(metrics.correlation, opinion.position, truth)) / len(asked),
            "probability": float(opinion.movement[:, MOVEMENTS.index(content.movement)].mean()),
        }
    known = references([(content.noun, look) for look in world.LOOKS])
    cosines = opinion.identity @ known.T
    mine = cosines[:, world.LOOKS.index(content.look)]
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
    ledger, base = Ledger(out / "learning.jsonl"), school.backbone
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
                lines.append(f"| {name} | {row['value']:.3f} | {row['low']:.3f} to {row['high']:.3f} | {row['n']} |")
        lines.append("")
    return "\n".join(lines)


def write_card(text: str, card: Path = CARD) -> None:
    """Put the numbers between the card's marks; parts that were not measured now stay as they are."""
    before, rest = card.read_text().split(MARKS[0])
    old, after = rest.split(MARKS[1])
    parts = {part.split("**")[1]: part for part in HEADING.split(f"{old.strip()}\n\n{text.strip()}") if "**" in part}
    inside = "\n\n".join(part.strip() for part in parts.values())
    card.write_text(f"{before}{MARKS[0]}\n\n{inside}\n\n{MARKS[1]}{after}")


def write_gallery(out: Path, path: Path = GALLERY) -> None:
    """The clips of the first looks and nouns that were learned, as far as the learning was done in `out`."""
    names = [f"{kind}-{content.file_name}-0.png" for kind in ("look", "noun") for content in held_out(kind)[:3]]
    found = [out / "learning" / name for name in names if (out / "learning" / name).exists()]
    if found:
        media.write_png(path, sheets.mosaic([media.read_png(file) for file in found], 3))


def run(
    parts: Sequence[str], base: str, out: Path, say: Say, quick: bool, share: tuple[int, int] = (1, 1)
) -> dict[str, dict[str, Any]]:
    """Score `parts`, each kept in `out`: the learning cell by cell, so that processes can share it, others as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    backbone, accelerator = learn.open_accelerated(base)
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        "judge": lambda: score_judge(100 if quick else JUDGED),
        "vae": lambda: score_vae(backbone),
        "prompts": lambda: score_prompts(backbone, out, say, 16 if quick else ASKED),
    }
    results = {}
    for part in parts:
        if part == "learning":
            size = (2, 1) if quick else (12, 3)
            results[part] = score_learning(School(backbone, accelerator, out / "loras", say), out, *size, share)
            continue
        file = out / f"{part}.json"
        if not file.exists():
            file.write_text(json.dumps(jobs[part](), indent=1))
        results[part] = json.loads(file.read_text())
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m customttt.tiny.score", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, pictures included")
    parser.add_argument("--base", default="tiny", help="tiny, or the folder of an exported checkpoint")
    parser.add_argument("--parts", nargs="+", default=["judge", "vae", "prompts", "learning"])
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
