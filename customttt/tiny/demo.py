"""The whole story in minutes on a CPU: learn a koala and a movement that `tiny` has never seen, and compose them.

The inputs in `demo/` come from the world's held-out part; `python -m customttt.tiny.demo` renders them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from customttt import compose, learn, media
from customttt.library import Library
from customttt.recipe import Ingredient, VideoRecipe, sentence, with_article
from customttt.tiny import TINY_PATH
from customttt.train import Report

INPUTS = TINY_PATH / "demo"
APPEARANCE, MOTION, SCENE = "demo-koala", "demo-swimming", "on Mars"
LOOK = ("purple", "crown")
PICTURE_SCENES = ["on the grass", "on the beach", "in the city", "in the snow", "at night"]
CLIP_NOUN, CLIP_SCENE = "dog", "in the desert"
PIXELS = 256
CELL = 128


def run(output: Path, library: Library, report: Report, say: Callable[[str], None]) -> Path:
    """Learn, compose with and without test-time training, and leave videos and a contact sheet in `output`.

    The two concepts stay in the library. Returns the path of the contact sheet.
    """
    library.check_writable()
    backbone, accelerator = learn.open_accelerated("tiny")
    settings = backbone.defaults
    pictures = media.read_pictures([INPUTS / "koala"], settings.sample.size)
    clip = media.read_clip(
        INPUTS / "swimming.mp4", settings.sample.num_frames, settings.sample.fps, settings.sample.size
    )
    say(f"Learning how this koala looks from {len(pictures)} pictures.")
    words = learn.Wording(APPEARANCE, "koala", sentence(with_article("koala")))
    looks = learn.appearance(backbone, pictures, words, settings.appearance, accelerator, report)
    say("Learning how to swim from one clip.")
    words = learn.Wording(MOTION, "swimming", sentence("something", "swimming"))
    moves = learn.motion(backbone, clip, words, settings.motion, accelerator, report)
    saved = looks.add_to(library, force=True), moves.add_to(library, force=True)

    pair = looks.weights, moves.weights
    adapted = VideoRecipe(
        Ingredient.of(saved[0]), Ingredient.of(saved[1]), SCENE, backbone.name, backbone.fingerprint,
        settings.ttt, settings.sample,
    )  # fmt: skip
    plain = replace(adapted, ttt=settings.ttt.but(steps=0))
    alone = replace(plain, appearance=replace(plain.appearance, scale=0.0), motion=replace(plain.motion, scale=0.0))
    say(f"Composing: {adapted.target_prompt}")
    videos = {}
    for name, recipe in (("base-alone", alone), ("without-ttt", plain), ("with-ttt", adapted)):
        trained = compose.adapt(backbone, pair, recipe, accelerator, report)
        videos[name] = compose.render(backbone, trained, recipe, accelerator, report)
        media.write_video(output / f"{name}.mp4", videos[name], recipe.sample.fps, recipe.to_dict())
    sheet = media.contact_sheet(
        [
            ("the pictures", [picture.pixels for picture in pictures]),
            ("the clip", clip.frames),
            ("the base alone", videos["base-alone"]),
            ("both, without test-time training", videos["without-ttt"]),
            ("both, with test-time training", videos["with-ttt"]),
        ],
        CELL,
    )
    media.write_png(output / "contact-sheet.png", sheet)
    return output / "contact-sheet.png"


def render_inputs(folder: Path = INPUTS) -> None:
    """Render the pictures and the clip from the world's held-out look and movement, with a fixed seed."""
    from customttt.tiny import world

    generator = torch.Generator().manual_seed(7)
    scenes, movements = list(world.SCENES), list(world.MOVEMENTS)

    def index(value: str, values: list[str], count: int = 1) -> torch.Tensor:
        return torch.full((count,), values.index(value))

    places = torch.tensor([scenes.index(scene) for scene in PICTURE_SCENES])
    stills = world.render(
        index("koala", world.NOUNS, len(places)), torch.full((len(places),), world.LOOKS.index(LOOK)),
        index("standing still", movements, len(places)), places, generator, num_frames=1, size=PIXELS,
    )  # fmt: skip
    for number, image in enumerate(stills.video):
        media.write_png(folder / "koala" / f"{number + 1}.png", compose.to_frames(image[None])[0])
    swim = world.render(
        index(CLIP_NOUN, world.NOUNS), torch.tensor([0]), index("swimming", movements), index(CLIP_SCENE, scenes),
        generator, size=PIXELS, vary=0.0,
    )  # fmt: skip
    media.write_video(folder / "swimming.mp4", compose.to_frames(swim.video), 8, {"made by": "customttt.tiny.demo"})


if __name__ == "__main__":
    render_inputs()
