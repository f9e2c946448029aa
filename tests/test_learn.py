"""Learning: what is made of the pictures before the network sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from customttt import learn
from customttt.backbones import open_base
from customttt.config import TrainConfig
from customttt.media import Picture
from customttt.video import Video

CONFIG = TrainConfig(layers=(2,), learning_rate=1e-3)
PIXELS = np.arange(40 * 40 * 3, dtype=np.int64).reshape(40, 40, 3).astype(np.uint8)


def test_a_picture_that_is_not_shifted_is_seen_as_it_is() -> None:
    assert learn.moved(PIXELS, CONFIG)[0] is PIXELS
    assert len(learn.moved(PIXELS, CONFIG)) == 1


def test_a_shifted_picture_is_seen_at_several_places_that_the_seed_decides() -> None:
    views = learn.moved(PIXELS, CONFIG.but(shift=0.2))
    assert len(views) == learn.VIEWS
    assert {view.shape for view in views} == {PIXELS.shape}
    assert len({view.tobytes() for view in views}) > 1
    again, other = (learn.moved(PIXELS, CONFIG.but(shift=0.2, seed=seed)) for seed in (0, 1))
    assert np.array_equal(views, again)
    assert not np.array_equal(views, other)


def test_its_edges_are_drawn_out_and_its_middle_never_leaves_the_frame() -> None:
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[8:12, 8:12] = 255
    for view in learn.moved(pixels, CONFIG.but(shift=0.3)):
        assert (view == 255).sum() == 4 * 4 * 3


def test_a_view_is_encoded_once_and_learned_with_every_caption(
    tiny_random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = open_base(str(tiny_random_base), torch.device("cpu"))
    encode, calls = backbone.encode, []

    def counted(video: Video) -> torch.Tensor:
        calls.append(video)
        return encode(video)

    monkeypatch.setattr(backbone, "encode", counted)
    pictures = [Picture("1", PIXELS, ("A koala sits.", "A koala."), ""), Picture("2", 255 - PIXELS, (), "")]
    latents, said = learn.encode_pictures(backbone, pictures, "A bear.", CONFIG)
    assert len(calls) == 2
    assert said == ["A koala sits.", "A koala.", "A bear."]
    assert torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[1], latents[2])
