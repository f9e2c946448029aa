"""Recipes that strangers wrote, or that bits flipped in: refused in a sentence, or taken where that is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from material import assert_one_sentence, run
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from customttt import media
from customttt.errors import DamagedError, MediaError
from customttt.library import Library

FRAMES = np.zeros((2, 32, 32, 3), np.uint8)


def alter(video: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """As with an editor."""
    note = json.loads((video / "recipe.json").read_text())
    change(note)
    (video / "recipe.json").write_text(json.dumps(note))


def test_a_recipe_as_it_was_written_is_taken(composed: Path, tmp_path: Path) -> None:
    assert media.read_recipe(composed)["prompt"] == "on Mars"
    assert run("compose", "--recipe", composed, "-o", tmp_path / "again.mp4").exit_code == 0


def test_an_altered_recipe_is_shown_with_a_warning_and_rendered_by_force_alone(composed: Path, tmp_path: Path) -> None:
    alter(composed, lambda note: note["customttt"].update(prompt="in the snow"))
    shown = run("show", composed)
    assert shown.exit_code == 0
    assert "A koala is swimming in the snow." in shown.stdout
    assert "warning: The recipe in" in shown.stderr
    assert_one_sentence(run("compose", "--recipe", composed, "-o", tmp_path / "b.mp4"), 6, "not as it was", "--force")
    assert not (tmp_path / "b.mp4").exists()
    assert run("compose", "--recipe", composed, "--force", "-o", tmp_path / "b.mp4").exit_code == 0


def test_a_video_of_an_earlier_version_carries_no_checksum(composed: Path) -> None:
    alter(composed, lambda note: note.pop("sha256"))
    assert media.read_recipe(composed)["prompt"] == "on Mars"


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ""])
def test_every_container_carries_the_checksum(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"video{suffix}"
    media.write_video(path, FRAMES, 8, {"prompt": "on Mars", "scale": 0.1})
    assert media.read_recipe(path) == {"prompt": "on Mars", "scale": 0.1}
    if suffix in (".mp4", ".gif"):
        path.write_bytes(path.read_bytes().replace(b"on Mars", b"on Mers"))
        with pytest.raises(DamagedError, match="not as it was written"):
            media.read_recipe(path)
        assert media.read_recipe(path, altered=True)["prompt"] == "on Mers"


STRANGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "phrase": lambda recipe: recipe["appearance"].update(phrase=5),
    "name": lambda recipe: recipe["motion"].update(name="\x1b[2J"),
    "long": lambda recipe: recipe["appearance"].update(sha256="a" * 10**6),
    "seed": lambda recipe: recipe.update(seed="x"),
    "large seed": lambda recipe: recipe.update(seed=2**64),
    "size": lambda recipe: recipe["sample"].update(size=10**9),
    "frames": lambda recipe: recipe["sample"].update(num_frames=10**9),
    "prompt": lambda recipe: recipe.update(prompt=["on Mars"]),
    "base": lambda recipe: recipe.update(base={"a": 1}),
    "scale": lambda recipe: recipe["appearance"].update(scale="1"),
    "parts": lambda recipe: recipe.update(appearance="koala"),
    "ttt": lambda recipe: recipe.update(ttt=[1]),
    "rival": lambda recipe: recipe.update(rival={"name": 3, "key": "x"}),
    "stranger": lambda recipe: recipe.update({"x" * 10**5: 1}),
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_a_stranger_s_recipe_is_refused_in_a_sentence(
    composed: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    alter(composed, lambda note: change(note["customttt"]))
    for command in (("show", composed), ("compose", "--recipe", composed, "--force", "-o", tmp_path / "out.mp4")):
        done = run(*command)
        assert_one_sentence(done, 2)
        assert len(done.stderr) < 1000
        assert "\x1b" not in done.output


def test_a_recipe_nested_without_end_is_none(tmp_path: Path) -> None:
    chunk = PngInfo()
    chunk.add_text("customttt", "[" * 10**5, zip=True)
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.png", pnginfo=chunk)
    with pytest.raises(MediaError, match="carries no recipe"):
        media.read_recipe(tmp_path / "a.png")
    assert Library().entries() == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ""])
@pytest.mark.parametrize(
    "told",
    [
        {"shape": [10**6, 32, 32, 3]}, {"shape": [2, 10**6, 10**6, 3]}, {"shape": [2, 16, 16, 3]}, {"fps": 0},
        {"fps": 1e9},
    ],
    ids=["frames", "size", "other size", "no fps", "fps"],
)  # fmt: skip
def test_a_video_that_tells_of_other_frames_than_it_has_is_refused(
    tmp_path: Path, suffix: str, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.dumps

    def telling(note: Any, **more: Any) -> str:
        return whole({**note, **told} if isinstance(note, dict) and "shape" in note else note, **more)

    monkeypatch.setattr("customttt.media.videos.json.dumps", telling)
    media.write_video(tmp_path / f"video{suffix}", FRAMES, 8, {"prompt": "on Mars"})
    with pytest.raises(MediaError):
        media.read_frames(tmp_path / f"video{suffix}")
