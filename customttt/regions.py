"""Who is where: the LoRAs of each subject act on its own part of the video alone (ours). Off where nobody has a place.

Two LoRAs of one kind that act everywhere blur into each other: both draw every subject. Mix-of-Show (arXiv 2305.18292)
and LoRA-Composer (2403.11627) draw each concept in a box that the user gives, Concept Weaver (2404.03632) in masks of a
first draft; here what a LoRA adds to a linear is multiplied by a soft mask of its subject's place, at every position of
every frame. It takes no more time. What it adds to the reading of the prompt has no position, and acts everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from customttt import lora
from customttt.backbones import Backbone
from customttt.recipe import PLACES, VideoRecipe, kind_of

SOFT = 0.125
"""Over which share of the frame a place fades out into its neighbour."""


def kept_apart(backbone: Backbone, recipe: VideoRecipe) -> AbstractContextManager[None]:
    """While this lasts, the LoRAs of a recipe, which are in the network, act in the places of their subjects.

    Raises UsageError where a base cannot do that.
    """
    if not any(one.place for one in recipe.subjects):
        return nullcontext()
    _, *shape = backbone.latent_shape(recipe.sample.num_frames, *recipe.sample.sides)
    regions = by_adapter(recipe, shape)
    spread = {
        linear: {slot: backbone.spread(linear, mask.to(backbone.device)) for slot, mask in regions.items()}
        for linear in lora.wrapped(backbone.network)
    }
    read = {
        linear: {slot: mask for slot, mask in masks.items() if mask is not None} for linear, masks in spread.items()
    }
    return lora.masked(backbone.network, read)


def by_adapter(recipe: VideoRecipe, shape: Sequence[int]) -> dict[str, Float[Tensor, "f h w"]]:
    """Where each adapter acts, from 0 to 1, in latents of this shape (f, h, w); a motion where any does who has it."""
    masks = _by_subject(recipe, shape)
    regions = {}
    for slot, one in recipe.ingredients.items():
        whose = [getattr(subject, kind_of(slot)) for subject in recipe.subjects]
        own = [mask for mask, its in zip(masks, whose, strict=True) if its and its.name == one.name]
        regions[slot] = torch.stack(own).sum(0).clamp(max=1)
    return regions


def _by_subject(recipe: VideoRecipe, shape: Sequence[int]) -> list[Float[Tensor, "f h w"]]:
    """Where each subject is; who has no place is wherever nobody is placed."""
    placed = {number: region(one.place, shape) for number, one in enumerate(recipe.subjects) if one.place}
    rest = (1 - torch.stack([*placed.values()]).sum(0)).clamp(min=0)
    return [placed.get(number, rest) for number in range(len(recipe.subjects))]


def region(place: str, shape: Sequence[int]) -> Float[Tensor, "f h w"]:
    """1 in a place and 0 elsewhere, with soft edges inside of the frame, of which neighbours' add up to 1."""
    frames, height, width = shape
    left, right, top, bottom = PLACES[place]
    upright, sideways = _fading(top, bottom, height), _fading(left, right, width)
    return (upright[:, None] * sideways).expand(frames, -1, -1)


def _fading(begin: float, end: float, number: int) -> Float[Tensor, " n"]:
    line = (torch.arange(number) + 0.5) / number
    rises = ((line - begin) / SOFT + 0.5).clamp(0, 1) if begin > 0 else torch.ones(number)
    falls = ((end - line) / SOFT + 0.5).clamp(0, 1) if end < 1 else torch.ones(number)
    return rises * falls
