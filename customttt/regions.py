"""Who is where, and when: the LoRAs of each subject act on its own part of the video alone (ours). Off where nobody has
a place, and each has one motion.

Two LoRAs of one kind that act everywhere blur into each other: both draw every subject. Mix-of-Show (arXiv 2305.18292)
and LoRA-Composer (2403.11627) draw each concept in a box that the user gives, Concept Weaver (2404.03632) in masks of a
first draft; of videos, CoMo (2510.23007) keeps each motion to its part while denoising. Here what a LoRA adds to a
linear is multiplied by a soft mask of its subject's part, at every position of every frame, which takes hardly any
time. What it adds to the reading of the prompt has no position, and acts everywhere.

The part is a place that the user gives, or where the base reads the subject's word, as its cross-attention tells.
In a place, the prediction is that of its own subject's sentence and LoRAs alone (after the regions of MultiDiffusion,
arXiv 2302.08113): a base that is told of two draws either on either side. Where nobody is, it is that of the sentence
of all.
What is a place's own is predicted with the place in the middle of the frame, where movements are learned (ours).
Of motions that come one after another, each has frames of its own, in which all is predicted by its LoRAs (ours).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from customttt import lora
from customttt.backbones import Backbone, PromptEmbeds
from customttt.concept import Kind
from customttt.recipe import PLACES, Subject, VideoRecipe, adapter_name, kind_of
from customttt.sampling import Area, Turn

SOFT = 0.125
"""Over which share of the frame a place fades out into its neighbour."""
KEPT = 0.5
"""How much of what was read at earlier steps counts beside the present one."""
SHARP = 4
"""Power of a word's share in what is read at a position."""
Masks = dict[str, dict[str, Tensor]]
"""By the name of a linear, then by that of an adapter."""


def kept_apart(backbone: Backbone, recipe: VideoRecipe, prompt: PromptEmbeds) -> AbstractContextManager[None]:
    """While this lasts, the LoRAs of a recipe, which are in the network, act in the parts of their subjects.

    `prompt` is (1 l d). Raises UsageError where a base cannot do that.
    """
    if recipe.apart:
        return Words(backbone, recipe, prompt).followed()
    if not recipe.is_placed:
        return nullcontext()
    masks: Masks = {}
    _put(masks, backbone, by_adapter(recipe, _by_place(recipe, _shape(backbone, recipe))))
    return lora.masked(backbone.network, masks)


def areas(backbone: Backbone, recipe: VideoRecipe) -> list[Area]:
    """What is predicted in the places of a recipe's subjects; nothing where nobody has one."""
    if not recipe.is_placed:
        return []
    masks = _by_place(recipe, _shape(backbone, recipe))
    return [
        Area(
            mask.to(backbone.device),
            backbone.embed([prompt]),
            frozenset(_slots(recipe, one)),
            to_the_middle(mask),
        )
        for one, mask, prompt in zip(recipe.subjects, masks, recipe.own_prompts, strict=True)
    ]


def turns(backbone: Backbone, recipe: VideoRecipe) -> list[Turn]:
    """What is predicted in the frames of each motion, where one comes after another; nothing where there is one."""
    if not recipe.then:
        return []
    (frames, _, _), of = _shape(backbone, recipe), len(recipe.turns)
    return [
        Turn(
            _fading(number / of, (number + 1) / of, frames)[:, None, None].to(backbone.device),
            backbone.embed([turn.target_prompt]),
            frozenset(adapter_name(kind, number) for kind in get_args(Kind)),
        )
        for number, turn in enumerate(recipe.turns)
    ]


def _slots(recipe: VideoRecipe, subject: Subject) -> list[str]:
    """The adapters that a subject has."""
    own = {kind: one.name for kind in get_args(Kind) if (one := getattr(subject, kind))}
    return [slot for slot, one in recipe.ingredients.items() if own.get(kind_of(slot)) == one.name]


def to_the_middle(mask: Float[Tensor, "f h w"]) -> int:
    """By how many columns a place is moved; never up or down, where there are ground and sky."""
    columns = mask.sum((0, 1))
    middle = float((columns * (torch.arange(len(columns)) + 0.5)).sum() / columns.sum().clamp(min=1e-6))
    return round(len(columns) / 2 - middle)


def _shape(backbone: Backbone, recipe: VideoRecipe) -> tuple[int, int, int]:
    _, frames, height, width = backbone.latent_shape(recipe.sample.num_frames, *recipe.sample.sides)
    return frames, height, width


def _put(masks: Masks, backbone: Backbone, regions: Mapping[str, Float[Tensor, "f h w"]]) -> None:
    """Spread regions of adapters over all linears that have one, in place of those before."""
    for linear in lora.wrapped(backbone.network):
        spread = {slot: backbone.spread(linear, region.to(backbone.device)) for slot, region in regions.items()}
        masks.setdefault(linear, {}).update({slot: mask for slot, mask in spread.items() if mask is not None})


def by_adapter(recipe: VideoRecipe, masks: Sequence[Float[Tensor, "f h w"]]) -> dict[str, Float[Tensor, "f h w"]]:
    """Where each adapter acts, from 0 to 1, by where each subject is; a motion where any is who has it."""
    whose = [_slots(recipe, one) for one in recipe.subjects]
    own = {
        slot: [mask for mask, slots in zip(masks, whose, strict=True) if slot in slots] for slot in recipe.ingredients
    }
    return {slot: torch.stack(some).sum(0).clamp(max=1) for slot, some in own.items()}


def _by_place(recipe: VideoRecipe, shape: Sequence[int]) -> list[Float[Tensor, "f h w"]]:
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


def tokens(backbone: Backbone, recipe: VideoRecipe) -> list[list[int]]:
    """Where the word for each subject stands among the tokens of the sentence. Raises UsageError where it does not."""
    return [backbone.tokens_of(recipe.target_prompt, one.noun) for one in recipe.subjects]


class Words:
    """Where the words for subjects are read while a video is drawn: in all cross-attention, over frames and steps."""

    def __init__(self, backbone: Backbone, recipe: VideoRecipe, prompt: PromptEmbeds) -> None:
        self.backbone, self.recipe, self.prompt = backbone, recipe, prompt
        self.shape = _shape(backbone, recipe)
        self.tokens = tokens(backbone, recipe)
        self.read: list[Float[Tensor, "s f h w"]] = []
        """Of the layers of one prediction."""
        self.kept: Float[Tensor, "s f h w"] | None = None
        self.masks: Masks = {}
        self.listens = False

    @contextmanager
    def followed(self) -> Iterator[None]:
        """While this lasts, each prediction from the prompt moves the masks of the next."""
        network = self.backbone.network
        self.masks.update({linear: {} for linear in lora.wrapped(network)})
        with ExitStack() as stack:
            for hook in (network.register_forward_pre_hook(self._begin), network.register_forward_hook(self._end)):
                stack.callback(hook.remove)
            stack.enter_context(self.backbone.attending(self._hear))
            stack.enter_context(lora.masked(network, self.masks))
            yield

    def _begin(self, _: Any, given: tuple[Any, ...]) -> None:
        embeds = given[2]
        self.listens = bool(torch.equal(embeds[0], self.prompt[0].to(embeds)))

    def _hear(self, linear: str, query: Float[Tensor, "r k n d"], key: Float[Tensor, "r k l d"]) -> None:
        """Read one layer: how much each position attends to each subject's word."""
        if not self.listens:
            return
        mask = self.backbone.spread(linear, torch.ones(self.shape, device=key.device))
        assert mask is not None
        (rows, positions, _), (frames, height, width) = mask.shape, self.shape
        query, key = query[:rows].float(), key[:rows].float()
        attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1).mean(1)
        words = torch.stack([attention[..., tokens].sum(-1) for tokens in self.tokens])
        while frames * height * width > rows * positions:
            height, width = -(-height // 2), -(-width // 2)
        small = words.view(len(words), frames, height, width)
        self.read.append(F.interpolate(small, self.shape[1:], mode="bilinear"))

    def _end(self, *_: Any) -> None:
        """After a prediction: mean of the layers, smoothed over frames, and over steps."""
        if not self.read:
            return
        maps = torch.stack(self.read).mean(0)
        around = torch.cat([maps[:, :1], maps, maps[:, -1:]], 1)
        maps = (around[:, :-2] + around[:, 1:-1] + around[:, 2:]) / 3
        self.kept = maps if self.kept is None else KEPT * self.kept + (1 - KEPT) * maps
        self.read.clear()
        _put(self.masks, self.backbone, by_adapter(self.recipe, list(shares(self.kept))))


def shares(read: Float[Tensor, "s f h w"]) -> Float[Tensor, "s f h w"]:
    """Whose each position is, from 0 to 1 and 1 in all, by how much of each word is read there, over its mean."""
    share = (read / read.mean((1, 2, 3), keepdim=True)) ** SHARP
    return share / share.sum(0)
