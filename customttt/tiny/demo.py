"""The whole story in minutes on a CPU: learn a koala and a movement that a base has never seen, and compose them.

The inputs in `demo/` come from the world's held-out part; `python -m customttt.lab.demo_inputs` renders them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from customttt import backbones, media, workshop
from customttt.errors import UsageError
from customttt.learn import Wording
from customttt.library import Library
from customttt.measure import sheets
from customttt.measure.compare import METHODS
from customttt.progress import Report, Say
from customttt.recipe import sentence, with_article
from customttt.tiny import TINY_PATH, known
from customttt.tiny.world import Look
from customttt.workshop import Workshop

INPUTS = TINY_PATH / "demo"
APPEARANCE, MOTION, SCENE = "demo-koala", "demo-swimming", "on Mars"
LOOK = Look("purple", "crown")
STILL = "standing still"
PICTURE_SCENES = ["on the grass", "on the beach", "in the city", "in the snow", "at night"]
CLIP_NOUN, CLIP_SCENE = "dog", "in the desert"
CLIPS = {8: "swimming.mp4", 16: "swimming-16-a-second.mp4"}
"""By the frames a second of the base that learns from it: 8 frames, or 17."""
PIXELS, CELL = 256, 128
ROWS = {
    "base": ("the base alone", "base-alone.mp4"),
    "direct": ("both LoRAs,\nas they are", "as-they-are.mp4"),
    "untrained": ("both, each in its\npart of the steps", "without-ttt.mp4"),
    "customttt": ("the same, after\ntest-time training", "with-ttt.mp4"),
}
"""Of the sheet, and the video of each, by the method of `compare`."""


def run(output: Path, library: Library, report: Report, say: Say, base: str = "tiny") -> Path:
    """Learn, compose by the methods of ROWS, and leave their videos and a contact sheet in `output`.

    The two concepts stay in the library. Returns the path of the contact sheet. Raises BaseUnavailableError, or
    UsageError for a base that does not draw the world of `tiny`.
    """
    library.check_writable()
    own = backbones.defaults(base)
    if not known.draws(base) or own.sample.fps not in CLIPS:
        raise UsageError(f"The demo is of the world of tiny, which {base!r} does not draw; leave --base out.")
    shop = Workshop.open(base, library, report, say)
    end = "" if base == "tiny" else f"-{Path(base).name}"
    appearance, motion = APPEARANCE + end, MOTION + end
    pictures = media.read_pictures([INPUTS / "koala"], own.sample.sides)
    clip = media.read_clip(INPUTS / CLIPS[own.sample.fps], own.sample.num_frames, own.sample.fps, own.sample.sides)
    say(f"Learning how this koala looks, from {len(pictures)} pictures.")
    words = Wording(appearance, "koala", sentence(with_article("koala")))
    plan = shop.plan(words, pictures, own.appearance)
    shop.preview(plan, shop.learn(plan, force=True))
    say("Learning how to swim, from one clip of a dog.")
    words = Wording(motion, "swimming", sentence(with_article(CLIP_NOUN), "swimming", CLIP_SCENE))
    plan = shop.plan(words, clip, own.motion)
    shop.preview(plan, shop.learn(plan, force=True))
    rows: list[tuple[str, Sequence[media.Pixels] | media.Frames]]
    rows = [("the pictures", [picture.pixels for picture in pictures]), ("the clip", clip.frames)]
    rows += _compose(shop, appearance, motion, output)
    media.write_png(output / "contact-sheet.png", sheets.contact_sheet(rows, CELL))
    say(f"Videos, their recipes and the contact sheet are in {output}; the concepts are in your library.")
    say(f'Next: customttt compose {appearance} {motion} "in the snow" --seed 1')
    return output / "contact-sheet.png"


def _compose(shop: Workshop, appearance: str, motion: str, output: Path) -> list[tuple[str, media.Frames]]:
    """Render the same seed by every method of ROWS; titles and frames."""
    usual, videos = shop.recipe(appearance, motion, SCENE), []
    for method, (title, file) in ROWS.items():
        recipe = METHODS[method].recipe(usual)
        shop.say(f'Composing "{usual.target_prompt}" by {title.replace(chr(10), " ")}.')
        videos.append((title, shop.compose(recipe)))
        workshop.save(output / file, videos[-1][1], recipe)
    return videos


def captions(noun: str, scene: str) -> tuple[str, str]:
    """What is said of a still picture."""
    return sentence(with_article(noun), STILL, scene), sentence(with_article(noun), "", scene)
