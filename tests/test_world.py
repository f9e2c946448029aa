"""The world: truth and pixels agree, seeds repeat, and what is held out never shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from customttt.lab.lessons import Content, indices, render
from customttt.tiny import world
from customttt.tiny.movements import MOVEMENTS, MOVING, TRAINED_MOVEMENTS, poses
from customttt.tiny.scenes import SCENES, paint


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(movement: str = "running", other: str = "jumping") -> Content:
    return Content("tiger", movement, "on Mars", other=Content("panda", other, "on Mars"))


def centre(mask: Tensor) -> Tensor:
    """Of what is opaque in one frame, x and y in [-1, 1]."""
    line = (torch.arange(len(mask)) + 0.5) / len(mask) * 2 - 1
    return torch.stack([(mask.sum(0) * line).sum(), (mask.sum(1) * line).sum()]) / mask.sum()


def test_the_same_seed_renders_the_same_clips() -> None:
    first, second = world.sample(3, generator(4)), world.sample(3, generator(4))
    assert torch.equal(first.video, second.video)
    assert not torch.equal(first.video, world.sample(3, generator(5)).video)


def test_pixels_are_in_range_and_shapes_and_types_are_as_told() -> None:
    clips = world.sample(2, generator())
    assert clips.video.shape == (2, 3, world.FRAMES, world.SIZE, world.SIZE)
    assert clips.mask.shape == (2, world.FRAMES, world.SIZE, world.SIZE)
    assert clips.pose.shape == (2, 2, world.FRAMES, 5)
    assert clips.video.abs().max() <= 1.0
    assert (clips.video.dtype, clips.mask.dtype, clips.pose.dtype) == (torch.float32,) * 3
    assert {part.dtype for part in vars(clips.contents).values()} == {torch.int64}
    assert {part.device.type for part in (clips.video, clips.mask, clips.pose)} == {generator().device.type}


def test_contents_are_cut_and_moved_as_a_whole() -> None:
    contents = world.draw(5, generator())
    assert len(contents[:2]) == 2
    assert torch.equal(contents[torch.tensor([4])].noun, contents.noun[4:])
    assert torch.equal(contents.to("cpu").scene, contents.scene)
    alone = world.draw(5, generator(), pairs=1.0).first()
    assert torch.equal(alone.noun, torch.stack([contents.noun[:, 0], torch.full((5,), world.ABSENT)], 1))


@pytest.mark.parametrize("movement", list(MOVEMENTS))
def test_the_subject_is_where_the_truth_says(movement: str) -> None:
    clips = render([Content("panda", movement, "on Mars")], 0, size=64, vary=0.0)
    for mask, pose in zip(clips.mask[0], clips.pose[0, 0], strict=True):
        if pose[:2].abs().max() < 0.45 and pose[3:].max() < 1.15:  # wholly inside the frame
            assert (centre(mask) - pose[:2]).norm() < 0.12


def test_nothing_held_out_is_ever_drawn_of_either_subject() -> None:
    contents = world.draw(4000, generator(), pairs=0.5)
    there = contents.noun != world.ABSENT
    assert there[:, 0].all()
    assert 0.45 < there[:, 1].float().mean() < 0.55
    assert {world.NOUNS[index] for index in contents.noun[there].tolist()} == set(world.TRAINED_NOUNS)
    assert set(contents.movement.unique().tolist()) == {*range(len(TRAINED_MOVEMENTS)), MOVING}
    colours, worn = list(world.COLOURS), zip(contents.colour[there].tolist(), contents.hat[there].tolist(), strict=True)
    looks = {world.Look(colours[colour], world.HATS[hat]) for colour, hat in worn}
    assert len(looks) == len(colours) * len(world.HATS) - len(world.HELD_OUT_LOOKS)
    assert not looks & set(world.HELD_OUT_LOOKS)


def test_the_movements_differ_from_each_other() -> None:
    paths = poses(torch.arange(len(MOVEMENTS)), 8, generator(), vary=0.0)
    distances = torch.cdist(paths.flatten(1), paths.flatten(1)) + 9 * torch.eye(len(paths))
    assert distances.min() > 0.4


def test_paths_without_a_name_stay_in_the_frame_and_differ() -> None:
    paths = poses(torch.full((200,), MOVING), 8, generator())
    assert (paths[..., :2].abs().amax((1, 2)) < 1).float().mean() > 0.95
    assert (paths[..., :2].abs() < 1.15).all()
    assert (paths[..., 3:] > 0.2).all()
    distances = torch.cdist(paths.flatten(1), paths.flatten(1)) + 9 * torch.eye(200)
    assert distances.min() > 0.02
    assert distances.amin(1).median() > 0.3


def test_two_subjects_keep_their_sides_and_move_in_their_own_ways() -> None:
    clips = render([pair(), pair("running", "running"), pair("jumping", "jumping")], 2, size=32)
    x = clips.pose[..., 0]
    assert ((x[:, 0] - x[:, 1]).sign().abs().sum(1) == 8).all()
    assert ((x[:, 0] < x[:, 1]).all(1) | (x[:, 0] > x[:, 1]).all(1)).all()
    ways = clips.pose - clips.pose[:, :, :1]
    assert not torch.allclose(ways[0, 0], ways[0, 1], atol=0.1)
    assert torch.allclose(ways[1:, 0], ways[1:, 1], atol=1e-5)


def test_the_mask_covers_both_subjects_and_all_that_they_change() -> None:
    both = indices([pair("standing still", "standing still")])
    alone = replace(both, noun=torch.tensor([[world.NOUNS.index("tiger"), world.ABSENT]]))
    two, one = (world.render(contents, generator(3), size=64).mask[0, 0] for contents in (both, alone))
    sides = two[:, :32].sum(), two[:, 32:].sum()
    assert min(sides) > 100
    assert one.sum() > 100
    scene = paint(both.scene, 64, generator(4))
    clips = world.render(both, generator(4), size=64)
    assert scene.shape == clips.video[:, :, 0].shape
    bare = clips.mask[0] == 0
    still = clips.video[0].transpose(0, 1)
    assert torch.allclose(still[0][:, bare.all(0)], still[-1][:, bare.all(0)], atol=1e-6)


def test_looks_differ_and_keep_the_shape() -> None:
    zero, size = torch.tensor([0]), 48
    plain = world.dress(zero, zero, zero, zero, torch.zeros(1, 3), size)
    for changed in (
        world.dress(zero, zero + 4, zero, zero, torch.zeros(1, 3), size),
        world.dress(zero, zero, zero, zero + 1, torch.zeros(1, 3), size),
    ):
        assert torch.equal(plain[0, 3], changed[0, 3])
        assert (plain[0, :3] - changed[0, :3]).abs().mean() > 0.02
    hats = [world.dress(zero, zero, zero + hat, zero, torch.zeros(1, 3), size) for hat in range(len(world.HATS))]
    assert all((hat[0, 3] >= plain[0, 3] - 1e-6).all() for hat in hats)
    assert len({round(float(hat.sum()), 3) for hat in hats}) == len(world.HATS)


def test_strange_colours_are_others_in_every_clip() -> None:
    strange = Content("koala", "standing still", "on Mars", world.Look("strange"))
    clips = render([strange] * 6, 0, num_frames=1, size=64, vary=0.0)
    inside = clips.mask[0, 0] > 0.99
    means = clips.video[:, :, 0][..., inside].mean(-1)
    assert (torch.cdist(means, means) + 9 * torch.eye(6)).min() > 0.05


def test_scenes_differ_from_each_other_and_from_themselves() -> None:
    every = torch.arange(len(SCENES))
    first, second = paint(every, 32, generator(0)), paint(every, 32, generator(1))
    distances = torch.cdist(first.flatten(1), first.flatten(1)) + 99 * torch.eye(len(SCENES))
    assert distances.min() > 3
    assert (first - second).flatten(1).norm(dim=1).min() > 0.5
