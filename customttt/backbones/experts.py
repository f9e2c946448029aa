"""Two networks that share the noise, as Wan 2.2's experts do: one denoises where there is much of it, one the rest.

Called as diffusers' `WanPipeline` calls them. A motion is learned in the first, for what moves and where is settled in
much noise, and an appearance in the second; so a LoRA acts only at the noise of its expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from customttt.backbones.interface import PromptEmbeds
from customttt.concept import Kind
from customttt.diffusion import Latents, Timesteps

EXPERTS: Mapping[Kind, str] = MappingProxyType({"motion": "transformer", "appearance": "transformer_2"})
"""In which a LoRA of each kind is learned."""


class Experts(nn.Module):
    """Two networks of one architecture, of which a GPU holds the one that works, and both all LoRAs.

    The first works from a `share` of the noise on, which is 1 at the timestep `noisiest`.
    """

    def __init__(self, much: nn.Module, little: nn.Module, share: float, noisiest: int, device: torch.device) -> None:
        super().__init__()
        self.transformer, self.transformer_2 = much, little
        self.share, self.boundary, self.device = share, share * noisiest, device
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))

    @property
    def config(self) -> Any:
        return self.transformer.config

    def forward(self, latents: Latents, timesteps: Timesteps, embeds: PromptEmbeds) -> Any:
        """Of the expert for each timestep; `sample` of what is returned is the prediction."""
        if timesteps.is_meta:  # a rehearsal, in which nobody knows the noise: of the one that learns
            learns = any(parameter.requires_grad for parameter in self.transformer_2.parameters())
            return (self.transformer_2 if learns else self.transformer)(latents, timesteps, embeds)
        much = timesteps >= self.boundary
        if much.all() or not much.any():
            return self._by(self.transformer if much[0] else self.transformer_2, latents, timesteps, embeds)
        first = self._by(self.transformer, latents[much], timesteps[much], embeds[much])
        second = self._by(self.transformer_2, latents[~much], timesteps[~much], embeds[~much])
        order = torch.cat([much.nonzero()[:, 0], (~much).nonzero()[:, 0]]).argsort()
        first.sample = torch.cat([first.sample, second.sample])[order]
        return first

    def to(self, device: torch.device | str) -> Experts:  # type: ignore[override]
        """What is frozen of both to main memory; to the device they come one by one, when they are needed."""
        if torch.device(device).type == "cpu":
            self._fetch(None)
        return self

    def _by(self, expert: nn.Module, *given: Any) -> Any:
        self._fetch(expert)
        return expert(*given)

    def _fetch(self, wanted: nn.Module | None) -> None:
        """Have an expert on the device, and what is frozen of the others in main memory."""
        if self.device.type in ("cpu", "meta"):
            return
        for expert in sorted((self.transformer, self.transformer_2), key=lambda one: one is wanted):
            for name, parameter in expert.named_parameters():
                if expert is wanted:
                    parameter.data = parameter.data.to(self.device)
                elif ".lora_" not in name:  # whose optimizer is on the device
                    parameter.data = parameter.data.to("cpu")
