"""The world: truth and pixels agree, seeds repeat, and what is held out never shows."""

from __future__ import annotations

import pytest
import torch

from customttt.tiny import world


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one(noun: str = "tiger", movement: str = "sliding", scene: str = "on Mars", vary: float = 1.0) -> world.Clips:
    def index(value: str, values: list[str]) -> torch.Tensor:
        return torch.tensor([values.index(value)])

    return world.render(
        index(noun, world.NOUNS), torch.tensor([0]), index(movement, list(world.MOVEMENTS)),
        index(scene, list(world.SCENES)), generator(), vary=vary,
    )  # fmt: skip


def test_the_same_seed_renders_the_same_clips() -> None:
    first, second = world.sample(3, generator(4)), world.sample(3, generator(4))
    assert torch.equal(first.video, second.video)
    assert not torch.equal(first.video, world.sample(3, generator(5)).video)


def test_pixels_are_in_range_and_shapes_are_as_told() -> None:
    clips = world.sample(2, generator())
    assert clips.video.shape == (2, 3, 8, 64, 64)
    assert clips.mask.shape == (2, 8, 64, 64)
    assert clips.video.abs().max() <= 1.0


@pytest.mark.parametrize("movement", list(world.MOVEMENTS))
def test_the_subject_is_where_the_truth_says(movement: str) -> None:
    clips = one("panda", movement, vary=0.0)
    line = (torch.arange(64) + 0.5) / 32 - 1
    for mask, pose in zip(clips.mask[0], clips.pose[0], strict=True):
        if pose[:2].abs().max() < 0.45 and pose[3:].max() < 1.15:  # wholly inside the frame
            weight = mask.sum()
            centre = torch.stack([(mask.sum(0) * line).sum() / weight, (mask.sum(1) * line).sum() / weight])
            assert (centre - pose[:2]).norm() < 0.12


def test_nothing_held_out_is_ever_drawn() -> None:
    clips = world.sample(400, generator(), num_frames=1, size=16)
    assert {world.NOUNS[index] for index in clips.noun.tolist()} <= set(world.TRAINED_NOUNS)
    assert {list(world.MOVEMENTS)[index] for index in clips.movement.tolist()} <= set(world.TRAINED_MOVEMENTS)
    assert not {world.LOOKS[index] for index in clips.look.tolist()} & set(world.HELD_OUT_LOOKS)


def test_the_movements_differ_from_each_other() -> None:
    poses = world.poses(torch.arange(len(world.MOVEMENTS)), 8, generator(), vary=0.0)
    distances = torch.cdist(poses.flatten(1), poses.flatten(1)) + 9 * torch.eye(len(poses))
    assert distances.min() > 0.4


def test_looks_differ_and_keep_the_shape() -> None:
    plain, blue = world.subject("koala", "", "", 48), world.subject("koala", "blue", "", 48)
    assert torch.equal(plain[3], blue[3])
    assert (plain[:3] - blue[:3]).abs().mean() > 0.05


def test_captions_tell_the_truth_or_leave_it_out() -> None:
    clips = world.sample(200, generator())
    truth = {key: getattr(clips, key) for key in ("noun", "look", "movement", "scene")}
    texts = world.captions(truth, generator(1))
    assert "" in texts
    assert any("something" in text.lower() for text in texts)
    for text, noun, movement in zip(texts, clips.noun.tolist(), clips.movement.tolist(), strict=True):
        assert not text or world.NOUNS[noun] in text.lower() or "something" in text.lower()
        verbs = [verb for verb in world.MOVEMENTS if f" is {verb}" in text]
        assert verbs in ([], [list(world.MOVEMENTS)[movement]])
