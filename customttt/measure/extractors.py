"""The models that metrics look through, from the model hub: CLIP ViT-B/32 and DINO ViT-S/16, DreamVideo's choice [C].

We found no text of CustomTTT that names its own. Safetensors only; neither repository has those on its main branch, so
what is fetched are the conversions by the hub's own bot: CLIP's by its commit, DINO's by its pull request (a7a4d16).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from customttt.backbones import hub
from customttt.errors import BaseUnavailableError
from customttt.media import Frames

CLIP = hub.Repository("openai/clip-vit-base-patch32", "c237dc49a33fc61debc9276459120b7eac67e7ef", parts=("",))
DINO = hub.Repository("facebook/dino-vits16", "refs/pr/1", parts=("",))
BATCH = 32
"""Frames at a time."""


def name(repository: hub.Repository) -> str:
    """`openai/clip-vit-base-patch32@c237dc4`."""
    revision = repository.revision or "main"
    return f"{repository.id}@{revision if '/' in revision else revision[:7]}"


class ClipModel:
    """CLIP (arXiv 2103.00020): pictures and words in one space. Pictures are prepared as its repository says."""

    def __init__(self, notify: hub.Notify = hub.nobody) -> None:
        """Raises BaseUnavailableError where it is not here and cannot be had."""
        folder = hub.fetch(CLIP, notify)
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        self.name = name(CLIP)
        self.device = _device()
        self.prepare = _part(CLIPImageProcessor, folder)
        self.tokenize = _part(CLIPTokenizer, folder)
        self.model = _model(CLIPModel, folder, self.device)

    @torch.no_grad()
    def image_features(self, frames: Frames) -> Float[Tensor, "f d"]:
        seen = [
            self.model.vision_model(pixel_values=batch.to(self.device)) for batch in _prepared(self.prepare, frames)
        ]
        return self.model.visual_projection(torch.cat([one.pooler_output for one in seen])).cpu()  # type: ignore[no-any-return]

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Words beyond the 77 tokens that CLIP reads are cut off."""
        tokens = self.tokenize(list(prompts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        read = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return self.model.text_projection(read.pooler_output).cpu()  # type: ignore[no-any-return]


class DinoModel:
    """DINO (arXiv 2104.14294), which tells individuals of one kind better: the class token of the last layer."""

    def __init__(self, notify: hub.Notify = hub.nobody) -> None:
        """Raises BaseUnavailableError where it is not here and cannot be had."""
        folder = hub.fetch(DINO, notify)
        from transformers import ViTImageProcessor, ViTModel

        self.name = name(DINO)
        self.device = _device()
        self.prepare = _part(ViTImageProcessor, folder)
        self.model = _model(ViTModel, folder, self.device, add_pooling_layer=False)

    @torch.no_grad()
    def image_features(self, frames: Frames) -> Float[Tensor, "f d"]:
        seen = [self.model(pixel_values=batch.to(self.device)) for batch in _prepared(self.prepare, frames)]
        return torch.cat([one.last_hidden_state[:, 0] for one in seen]).cpu()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _part(kind: Any, folder: Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError) as error:  # a cache that another program filled with only what it needed
        raise BaseUnavailableError(
            f"{folder} cannot be read ({' '.join(str(error).split())[:100]}); delete it, and it is downloaded again."
        ) from error


def _model(kind: Any, folder: Path, device: torch.device, **options: Any) -> Any:
    model = _part(kind, folder, use_safetensors=True, dtype=torch.float32, **options)
    return model.to(device).eval()


def _prepared(prepare: Any, frames: Frames) -> Iterator[Float[Tensor, "b 3 h w"]]:
    for start in range(0, len(frames), BATCH):
        yield prepare(list(frames[start : start + BATCH]), return_tensors="pt").pixel_values
