"""The whole story in minutes on a CPU: learn a koala and a movement that `tiny` has never seen, and compose them.

The inputs in `demo/` come from the world's held-out part; `python -m customttt.lab.demo_inputs` renders them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator

from customttt import compose, learn, machine, media, opening
from customttt.backbones import Backbone
from customttt.concept import Concept
from customttt.library import Library
from customttt.measure import sheets
from customttt.measure.compare import METHODS
from customttt.progress import Report
from customttt.recipe import Ingredient, VideoRecipe, sentence, with_article
from customttt.tiny import TINY_PATH
from customttt.tiny.world import Look

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
Opened = tuple[Backbone, Accelerator]


def run(output: Path, library: Library, report: Report, say: Callable[[str], None]) -> Path:
    """Learn, compose by the methods of ROWS, and leave their videos and a contact sheet in `output`.

    The two concepts stay in the library. Returns the path of the contact sheet.
    """
    library.check_writable()
    opened = opening.open_accelerated("tiny")
    size, frames, fps = (getattr(opened[0].defaults.sample, key) for key in ("size", "num_frames", "fps"))
    pictures = media.read_pictures([INPUTS / "koala"], size)
    clip = media.read_clip(INPUTS / "swimming.mp4", frames, fps, size)
    koala, swimming = _learn(opened, pictures, clip, report, say)
    saved = koala.add_to(library, force=True), swimming.add_to(library, force=True)
    videos = _compose(opened, saved, (koala.weights, swimming.weights), output, report, say)
    rows: list[tuple[str, Sequence[media.Pixels] | media.Frames]]
    rows = [("the pictures", [picture.pixels for picture in pictures]), ("the clip", clip.frames), *videos.items()]
    media.write_png(output / "contact-sheet.png", sheets.contact_sheet(rows, CELL))
    say(f"Videos, their recipes and the contact sheet are in {output}; the concepts are in your library.")
    say(f'Next: customttt compose {APPEARANCE} {MOTION} "in the snow" --seed 1')
    return output / "contact-sheet.png"


def _learn(
    opened: Opened, pictures: list[media.Picture], clip: media.Clip, report: Report, say: Callable[[str], None]
) -> tuple[learn.Learned, learn.Learned]:
    backbone, accelerator = opened
    settings = backbone.defaults
    say(f"Learning how this koala looks, from {len(pictures)} pictures.")
    words = learn.Wording(APPEARANCE, "koala", sentence(with_article("koala")))
    koala = learn.appearance(backbone, pictures, words, settings.appearance, accelerator, report)
    say("Learning how to swim, from one clip of a dog.")
    words = learn.Wording(MOTION, "swimming", sentence(with_article(CLIP_NOUN), "swimming", CLIP_SCENE))
    return koala, learn.motion(backbone, clip, words, settings.motion, accelerator, report)


def _compose(
    opened: Opened,
    saved: tuple[Concept, Concept],
    pair: compose.LoraPair,
    output: Path,
    report: Report,
    say: Callable[[str], None],
) -> dict[str, media.Frames]:
    """Render the same seed by every method of ROWS."""
    backbone, accelerator = opened
    adapted = VideoRecipe(
        Ingredient.of(saved[0]), Ingredient.of(saved[1]), SCENE, backbone.name, backbone.fingerprint,
        backbone.defaults.ttt, backbone.defaults.sample,
    )  # fmt: skip
    videos = {}
    for method, (title, file) in ROWS.items():
        recipe = METHODS[method].recipe(adapted)
        say(f'Composing "{adapted.target_prompt}" by {title.replace(chr(10), " ")}.')
        trained = compose.adapt(backbone, pair, recipe, accelerator, report)
        videos[title] = compose.render(backbone, trained, recipe, accelerator, report)
        made = {**recipe.to_dict(), "versions": machine.versions()}
        media.write_video(output / file, videos[title], recipe.sample.fps, made)
    return videos


def captions(noun: str, scene: str) -> tuple[str, str]:
    """What is said of a still picture."""
    return sentence(with_article(noun), STILL, scene), sentence(with_article(noun), "", scene)
