"""The demo's pictures and clip, rendered from the world: `python -m customttt.lab.demo_inputs`."""

from __future__ import annotations

from pathlib import Path

from customttt import media
from customttt.lab.lessons import Content, render
from customttt.tiny.demo import CLIP_NOUN, CLIP_SCENE, INPUTS, LOOK, PICTURE_SCENES, PIXELS, STILL, captions
from customttt.video import to_frames


def render_inputs(folder: Path = INPUTS) -> None:
    """Render the pictures and the clip from the world's held-out look and movement, with a fixed seed."""
    shown = [Content("koala", STILL, scene, LOOK) for scene in PICTURE_SCENES]
    stills = render(shown, 7, num_frames=1, size=PIXELS)
    for number, (image, scene) in enumerate(zip(stills.video, PICTURE_SCENES, strict=True), 1):
        media.write_png(folder / "koala" / f"{number}.png", to_frames(image[None])[0])
        (folder / "koala" / f"{number}.txt").write_text("\n".join([*captions("koala", scene), ""]))
    swim = render([Content(CLIP_NOUN, "swimming", CLIP_SCENE)], 7, size=PIXELS, vary=0.0)
    media.write_video(folder / "swimming.mp4", to_frames(swim.video), 8, {"made by": "customttt.lab.demo_inputs"})


if __name__ == "__main__":
    render_inputs()
