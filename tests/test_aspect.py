"""Videos that are not square: a motion is learned in the shape of its clip, and videos of it get that shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from footage import animate, encode, ffmpeg, moving
from material import assert_one_sentence, run
from test_recipe import recipe

from customttt import backbones, media, pairs, workshop
from customttt.backbones import open_base
from customttt.concept import Concept
from customttt.config import Aspect, SampleConfig, parse_aspect
from customttt.errors import UsageError
from customttt.library import Library
from customttt.recipe import VideoRecipe
from customttt_cli import relearn


@pytest.mark.parametrize(
    ("size", "aspect", "sides"),
    [
        (480, (16, 9), (480, 832)),  # what Wan was trained with
        (480, (9, 16), (832, 480)),
        (704, (16, 9), (704, 1280)),  # Wan 2.2 5B
        (320, (16, 9), (320, 576)),  # ZeroScope
        (480, (4, 3), (480, 640)),
        (256, (16, 9), (256, 448)),
        (480, (101, 100), (480, 480)),  # nearer than 512
        (480, (832, 480), (480, 832)),
        (100, (1, 1), (100, 100)),
    ],
)
def test_the_longer_side_is_a_multiple_of_64_and_the_shorter_the_base_s(
    size: int, aspect: Aspect, sides: tuple[int, int]
) -> None:
    assert SampleConfig(size=size, aspect=aspect).sides == sides


@pytest.mark.parametrize("text", ["16x9", "16:0", "-16:9", "1.78", "", "16:9:1", "9" * 9 + ":1", "１６:９"])
def test_what_is_no_aspect_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="as in 16:9"):
        parse_aspect(text)


def test_an_aspect_is_at_most_four_to_one() -> None:
    assert SampleConfig(aspect=(1, 4)).sides == (1024, 256)
    for aspect in ((5, 1), (1, 5), (0, 1), (-1, -1)):
        with pytest.raises(UsageError, match="from 1:4 to 4:1"):
            SampleConfig(aspect=aspect)
    with pytest.raises(UsageError, match="'size' is 8192"):
        SampleConfig(size=4096, aspect=(2, 1))


def test_a_square_is_called_what_it_was_called_before() -> None:
    square, wide = recipe(), recipe(sample=SampleConfig(aspect=(16, 9)))
    assert "aspect" not in square.to_dict()["sample"]
    assert VideoRecipe.from_dict(json.loads(json.dumps(wide.to_dict()))) == wide
    keys = {one.adaptation_key() for one in (square, wide, recipe(sample=SampleConfig(aspect=(9, 16))))}
    assert len(keys) == 3
    assert recipe(sample=SampleConfig(aspect=(2, 2))).adaptation_key() == square.adaptation_key()


CLIPS: dict[str, tuple[Any, Aspect]] = {
    "wide": (lambda folder: encode(folder / "a.mp4", moving(3, 36, 64), 8), (16, 9)),
    "narrow pixels": (lambda folder: encode(folder / "a.mp4", moving(3, 36, 64), 8, "-vf", "setsar=1/2"), (8, 9)),
    "turned": (lambda folder: turned(folder), (9, 16)),
    "gif": (lambda folder: animate(folder / "a.gif", moving(3, 36, 64), [40] * 3), (16, 9)),
    "a ribbon": (lambda folder: encode(folder / "a.mp4", moving(3, 32, 640), 8), (4, 1)),
    "square": (lambda folder: encode(folder / "a.mp4", moving(3, 64, 64), 8), (1, 1)),
}


def turned(folder: Path) -> Path:
    flat = encode(folder / "flat.mp4", moving(3, 36, 64), 8)
    ffmpeg("-display_rotation", "90", "-i", str(flat), "-c", "copy", str(folder / "a.mp4"))
    return folder / "a.mp4"


@pytest.mark.parametrize("kind", CLIPS)
def test_a_clip_has_the_shape_in_which_a_player_shows_it(tmp_path: Path, kind: str) -> None:
    make, aspect = CLIPS[kind]
    assert media.aspect_of(make(tmp_path)) == aspect


@torch.no_grad()
def test_every_family_draws_what_is_not_square(any_base: Path) -> None:
    backbone = open_base(str(any_base), torch.device("cpu"))
    video = torch.rand(1, 3, 5, 64, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = backbone.encode(video)
    assert latents.shape == (1, *backbone.latent_shape(5, 64, 128))
    prediction = backbone.predict(latents, torch.tensor([500]), backbone.embed(["A koala."]))
    assert prediction.shape == latents.shape
    assert backbone.decode(latents).shape == video.shape
    with pytest.raises(UsageError, match="A side is 60 pixels"):
        backbone.latent_shape(5, 64, 60)


def test_a_wide_clip_makes_wide_videos(tiny_random_wan_base: Path, pictures: Path, tmp_path: Path) -> None:
    """And `--aspect` any other; the recipe renders the same again."""
    clip = encode(tmp_path / "clip.mp4", moving(12, 36, 64), 16)
    lessons = ("learn-appearance", "koala", pictures), ("learn-motion", "swimming", clip)
    for lesson in lessons:
        done = run(*lesson, "--base", tiny_random_wan_base)
        assert done.exit_code == 0, done.output
    assert "nothing to do" in run(*lessons[1], "--base", tiny_random_wan_base).stderr
    koala, swimming = Library().get("koala"), Library().get("swimming")
    assert (koala.format_version, koala.aspect) == (1, None)
    assert (swimming.format_version, swimming.aspect) == (2, (2, 1))  # 64 x 32, as near as multiples of 64 come
    assert Concept.from_json(swimming.to_json()) == swimming
    pair = pairs.named(Library(), "koala", "swimming")
    own = backbones.defaults(koala.base)
    material = relearn.read(pair, pair.recipe("", koala.base, koala.base_fingerprint, own), [pictures], clip)
    assert (material.pictures[0].pixels.shape, material.clip.frames.shape) == ((32, 32, 3), (5, 32, 64, 3))
    shapes = {}
    for name, options in {"own": (), "tall": ("--aspect", "9:16", "--no-ttt")}.items():
        done = run("compose", "koala", "swimming", "-o", tmp_path / f"{name}.mp4", *options)
        assert done.exit_code == 0, done.output
        shapes[name] = media.read_frames(tmp_path / f"{name}.mp4")[0].shape[1:3]
    assert shapes == {"own": (32, 64), "tall": (64, 32)}
    assert "5 of 64 x 32" in run("show", tmp_path / "own.mp4").stdout
    done = run("compose", "--recipe", tmp_path / "own.mp4", "-o", tmp_path / "again.mp4")
    assert done.exit_code == 0, done.output
    assert np.array_equal(*(media.read_frames(tmp_path / f"{name}.mp4")[0] for name in ("own", "again")))


def test_a_base_of_squares_crops_clips_and_refuses_other_shapes(tmp_path: Path, tiny_random_base: Path) -> None:
    clip = encode(tmp_path / "clip.mp4", moving(8, 36, 64), 8)
    own = SampleConfig(size=128)
    assert workshop.for_clip("tiny", own, clip).sides == (128, 128)
    assert workshop.for_clip(str(tiny_random_base), own, clip).sides == (128, 256)
    assert workshop.for_clip(str(tiny_random_base), own, clip, (1, 1)).sides == (128, 128)
    refused = run("learn-motion", "swimming", clip, "--base", "tiny", "--dry-run", "--aspect", "16:9")
    assert_one_sentence(refused, 2, "256 x 128", "tiny knows squares alone", "--aspect 1:1")


@pytest.mark.usefixtures("learned")
@pytest.mark.parametrize("aspect", ["16/9", "9:1"])
def test_a_bad_aspect_is_refused_before_torch(aspect: str, monkeypatch: pytest.MonkeyPatch, clip: Path) -> None:
    monkeypatch.setattr("customttt_cli.output.loading_torch", lambda: pytest.fail("torch"))
    for command in (("compose", "koala", "swimming"), ("grid",), ("learn-motion", "diving", clip)):
        assert_one_sentence(run(*command, "--aspect", aspect), 2, "aspect is")


@pytest.mark.usefixtures("learned")
def test_a_grid_foretells_every_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A motion of a square clip beside one of a wide clip that is to be learned; and all in one shape."""
    from customttt import planner
    from customttt.planner import Forecast
    from customttt.thrift import Rung

    encode(tmp_path / "clip.mp4", moving(8, 36, 64), 8)
    rendered: set[tuple[int, int]] = set()

    def composing(*settings: Any) -> Forecast:
        rendered.add(settings[3].sides)
        return Forecast(1, 2, 1.0, 0, Rung())

    monkeypatch.setattr(planner, "composing", composing)
    monkeypatch.setattr(planner, "learning", lambda *_: Forecast(1, 2, 1.0, 0, Rung()))
    file = tmp_path / "grid.json"
    lesson = {"motion": {"diving": {"clip": "clip.mp4"}}}
    file.write_text(json.dumps({"motions": ["swimming", "diving"], "learn": lesson}))
    assert run("grid", file, "--dry-run").exit_code == 0
    assert rendered == {(64, 64), (64, 128)}
    rendered.clear()
    assert run("grid", file, "--dry-run", "--aspect", "2:1").exit_code == 0
    assert rendered == {(64, 128)}
