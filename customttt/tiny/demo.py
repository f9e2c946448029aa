"""The whole story in minutes on a CPU: learn a koala and a movement that `tiny` has never seen, and compose them.

The inputs in `demo/` come from the world's held-out part; `python -m customttt.lab.demo_inputs` renders them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from customttt import media, workshop
from customttt.learn import Wording
from customttt.library import Library
from customttt.measure import sheets
from customttt.measure.compare import METHODS
from customttt.progress import Report, Say
from customttt.recipe import sentence, with_article
from customttt.tiny import TINY_PATH
from customttt.tiny.world import Look
from customttt.workshop import Workshop

INPUTS = TINY_PATH / "demo"
APPEARANCE, MOTION, SCENE = "demo-koala", "demo-swimming", "on Mars"
LOOK = Look("purple", "crown")
STILL = "standing still"
PICTURE_SCENES = ["on the grass", "on the beach", "in the city", "in the snow", "at night"]
CLIP_NOUN, CLIP_SCENE = "dog", "in the desert"
PIXELS, CELL = 256, 128
ROWS = {
    "base": ("the base alone", "base-alone.mp4"),
    "direct": ("both LoRAs,\nas they are", "as-they-are.mp4"),
    "untrained": ("both, each in its\npart of the steps", "without-ttt.mp4"),
    "customttt": ("the same, after\ntest-time training", "with-ttt.mp4"),
}
"""Of the sheet, and the video of each, by the method of `compare`."""


def run(output: Path, library: Library, report: Report, say: Say) -> Path:
    """Learn, compose by the methods of ROWS, and leave their videos and a contact sheet in `output`.

    The two concepts stay in the library. Returns the path of the contact sheet.
    """
    library.check_writable()
    shop = Workshop.open("tiny", library, report, say)
    own = shop.backbone.defaults
    pictures = media.read_pictures([INPUTS / "koala"], own.sample.sides)
    clip = media.read_clip(INPUTS / "swimming.mp4", own.sample.num_frames, own.sample.fps, own.sample.sides)
    say(f"Learning how this koala looks, from {len(pictures)} pictures.")
    words = Wording(APPEARANCE, "koala", sentence(with_article("koala")))
    plan = shop.plan(words, pictures, own.appearance)
    shop.preview(plan, shop.learn(plan, force=True))
    say("Learning how to swim, from one clip of a dog.")
    words = Wording(MOTION, "swimming", sentence(with_article(CLIP_NOUN), "swimming", CLIP_SCENE))
    plan = shop.plan(words, clip, own.motion)
    shop.preview(plan, shop.learn(plan, force=True))
    rows: list[tuple[str, Sequence[media.Pixels] | media.Frames]]
    rows = [("the pictures", [picture.pixels for picture in pictures]), ("the clip", clip.frames)]
    media.write_png(output / "contact-sheet.png", sheets.contact_sheet([*rows, *_compose(shop, output)], CELL))
    say(f"Videos, their recipes and the contact sheet are in {output}; the concepts are in your library.")
    say(f'Next: customttt compose {APPEARANCE} {MOTION} "in the snow" --seed 1')
    return output / "contact-sheet.png"


def _compose(shop: Workshop, output: Path) -> list[tuple[str, media.Frames]]:
    """Render the same seed by every method of ROWS; titles and frames."""
    usual, videos = shop.recipe(APPEARANCE, MOTION, SCENE), []
    for method, (title, file) in ROWS.items():
        recipe = METHODS[method].recipe(usual)
        shop.say(f'Composing "{usual.target_prompt}" by {title.replace(chr(10), " ")}.')
        videos.append((title, shop.compose(recipe)))
        workshop.save(output / file, videos[-1][1], recipe)
    return videos


def captions(noun: str, scene: str) -> tuple[str, str]:
    """What is said of a still picture."""
    return sentence(with_article(noun), STILL, scene), sentence(with_article(noun), "", scene)
