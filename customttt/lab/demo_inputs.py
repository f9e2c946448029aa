"""The demo's pictures and clips, rendered from the world: `python -m customttt.lab.demo_inputs`."""

from __future__ import annotations

from pathlib import Path

from customttt import media
from customttt.lab.lessons import Content, render
from customttt.tiny import wan_models, world
from customttt.tiny.demo import CLIP_NOUN, CLIP_SCENE, CLIPS, INPUTS, LOOK, PICTURE_SCENES, PIXELS, STILL, captions
from customttt.video import to_frames


def render_inputs(folder: Path = INPUTS) -> None:
    """Render the pictures and the clips from the world's held-out look and movement, with a fixed seed."""
    shown = [Content("koala", STILL, scene, LOOK) for scene in PICTURE_SCENES]
    stills = render(shown, 7, num_frames=1, size=PIXELS)
    for number, (image, scene) in enumerate(zip(stills.video, PICTURE_SCENES, strict=True), 1):
        media.write_png(folder / "koala" / f"{number}.png", to_frames(image[None])[0])
        (folder / "koala" / f"{number}.txt").write_text("\n".join([*captions("koala", scene), ""]), encoding="utf-8")
    for fps, name in CLIPS.items():
        number = world.FRAMES if fps == 8 else wan_models.FRAMES
        swim = render([Content(CLIP_NOUN, "swimming", CLIP_SCENE)], 7, num_frames=number, size=PIXELS, vary=0.0)
        media.write_video(folder / name, to_frames(swim.video), fps, {"made by": "customttt.lab.demo_inputs"})


if __name__ == "__main__":
    render_inputs()
