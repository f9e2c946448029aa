"""The codecs of the embedded bases (ours): how they are trained, and how one that is trained gets more latents.

128 x 128 pixels become 16 x 16 latents. The first three are the mean colours of their pixels, and the others are small,
so that a denoiser learns coarse colours first, and where it is not sure of the details, it blurs instead of littering.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny, UNetMotionModel
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from customttt.tiny import models, world

CROP = 64
"""Pixels a side of what the codec is trained on: the surroundings of a subject, where all the detail is."""
LATENT_NOISE = 0.12
"""The most that latents are disturbed by before they are decoded, drawn evenly: what is denoised is never exact."""
SUBJECT_WEIGHT = 3.0  # how much more a pixel under the subject counts
EDGES, SQUARES, THUMBNAIL, SMALL, KEPT = 0.5, 2.0, 4.0, 0.003, 5.0
"""Weights of the loss's other terms beside the absolute error."""
DETAIL = 0.6
"""The standard deviation of latents that were added, as a share of that of the others."""


class Crops:
    """Crops around subjects out of a pool of clips that is slowly renewed, on the generator's device."""

    def __init__(self, generator: torch.Generator, clips: int, chunk: int, frames: int, span: int = 1) -> None:
        """Of clips of so many `frames`; `span` of them, one after the other, are a crop's."""
        self.generator, self.chunk, self.frames, self.span, self.place = generator, chunk, frames, span, 0
        rendered = [self._render() for _ in range(max(clips // chunk, 1))]
        self.parts = [torch.cat(part) for part in zip(*rendered, strict=True)]

    def _render(self) -> tuple[Tensor, Tensor, Tensor]:
        """(n f c h w) frames and (n f h w) masks as bytes, and the subjects' centres in pixels, (n f 2)."""
        clips = world.sample(self.chunk, self.generator, num_frames=self.frames)
        centres = (clips.pose[:, 0, :, :2] + 1) * world.SIZE / 2
        return ((clips.video.transpose(1, 2) + 1) * 127.5).round().byte(), (clips.mask * 255).byte(), centres

    def renew(self) -> None:
        """Render the oldest clips anew."""
        for part, fresh in zip(self.parts, self._render(), strict=True):
            part[self.place : self.place + self.chunk] = fresh
        self.place = (self.place + self.chunk) % len(self.parts[0])

    def draw(self, count: int) -> tuple[Float[Tensor, "n 3 f s s"], Float[Tensor, "n 1 f s s"]]:
        """(images in [-1, 1], masks in [0, 1])."""
        device, starts = self.generator.device, self.frames - self.span + 1
        pick = torch.randint(0, len(self.parts[0]) * starts, (count,), generator=self.generator, device=device)
        clip, first = pick // starts, pick % starts
        jitter = torch.randint(-30, 31, (count, 2), generator=self.generator, device=device)
        centre = self.parts[2][clip, first + self.span // 2]
        corners = (centre.round().long() - CROP // 2 + jitter).clamp(0, world.SIZE - CROP)
        line = torch.arange(CROP, device=device)
        rows, columns = (corners[:, axis, None] + line for axis in (1, 0))
        frames = first[:, None] + torch.arange(self.span, device=device)
        at = clip[:, None, None, None], frames[:, :, None, None], rows[:, None, :, None], columns[:, None, None]
        images = self.parts[0][at[0], at[1], :, at[2], at[3]].permute(0, 4, 1, 2, 3)
        return images.float() / 127.5 - 1, self.parts[1][at].unsqueeze(1).float() / 255


def disturbed(latents: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
    """Latents with noise, as much as each draws."""
    strength = LATENT_NOISE * torch.rand(len(latents), *[1] * (latents.ndim - 1), device=latents.device)
    return latents + strength * torch.randn_like(latents)


def picture_loss(decoded: Float[Tensor, "n 3 *s"], images: Float[Tensor, "n 3 *s"], weight: Tensor) -> Tensor:
    """Weighted error of pixels and edges; weights have one channel."""
    error = decoded - images
    pixels = (error.abs() * weight).mean() + SQUARES * (error.square() * weight).mean()
    edges = (error.diff(dim=-1).abs() * weight[..., 1:]).mean() + (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    whole: Tensor = pixels + EDGES * edges
    return whole


def shape_loss(latents: Float[Tensor, "n c *s"], target: Float[Tensor, "n k *s"], share: float) -> Tensor:
    """What keeps the first k latents at their target, and the others small."""
    old = target.shape[1]
    whole: Tensor = share * F.mse_loss(latents[:, :old], target) + SMALL * latents[:, old:].square().mean()
    return whole


def decibels(
    decoded: Float[Tensor, "b 3 f h w"], video: Float[Tensor, "b 3 f h w"], mask: Float[Tensor, "b f h w"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Peak signal-to-noise ratio of each clip, whole and under its subject."""
    error = ((decoded.clamp(-1, 1) - video) / 2).square()
    covered = mask.unsqueeze(1).expand_as(error)
    whole = -10 * error.flatten(1).mean(1).log10()
    return whole, -10 * ((error * covered).flatten(1).sum(1) / covered.flatten(1).sum(1)).log10()


# --------------------------------------------------------------------------------------------------------- widening


def _grown(weight: Tensor, like: Tensor, fresh: float) -> Tensor:
    """`weight` in the upper left corner of a tensor shaped as `like`; what is new is random, `fresh` times as large."""
    new = torch.randn(like.shape) * weight.std() * fresh
    new[tuple(slice(0, side) for side in weight.shape)] = weight
    return new


def widen(codec: AutoencoderTiny) -> AutoencoderTiny:
    """The same codec with as many latents as `models.build_vae` has: the encoder's last convolution gets outputs, the
    decoder's first one inputs.
    """
    wide = models.build_vae()
    narrow, state = codec.float().state_dict(), wide.state_dict()
    for name, value in state.items():
        if value.shape == narrow[name].shape:
            state[name] = narrow[name]
        else:
            fresh = 0.0 if name.endswith("bias") else 0.5 if name.startswith("encoder") else 0.1
            state[name] = _grown(narrow[name], value, fresh)
    wide.load_state_dict(state)
    wide.register_to_config(scaling_factor=codec.config.scaling_factor)
    return wide


def widen_unet(unet: UNetMotionModel) -> UNetMotionModel:
    """The same U-Net for more latents: its first convolution ignores them, its last one predicts nothing of them."""
    wide = models.build_unet()
    narrow, state = unet.float().state_dict(), wide.state_dict()
    wide.load_state_dict({name: _grown(narrow[name], value, 0.0) for name, value in state.items()})
    return wide


@torch.no_grad()
def settle(codec: AutoencoderTiny, latents: Float[Tensor, "n c h w"], old: int) -> None:
    """Turn the latents after the first `old` into uncorrelated ones, the largest first, DETAIL as large as those.

    What the old ones foretell of them linearly is taken out. The decoder undoes it: pictures stay as they are.
    """
    rows = latents.transpose(0, 1).flatten(1).T.double()
    rows = rows - rows.mean(0)
    first, rest = rows[:, :old], rows[:, old:]
    foretold = torch.linalg.lstsq(first, rest).solution.T
    values, vectors = torch.linalg.eigh(torch.cov((rest - first @ foretold.T).T))
    turned = vectors.flip(1).T * (DETAIL * first.std() / values.flip(0).clamp(min=1e-12).sqrt())[:, None]
    mix = torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device)
    mix[old:, :old], mix[old:, old:] = -turned @ foretold, turned
    back = torch.linalg.inv(mix)
    last, begin = codec.encoder.layers[-1], codec.decoder.layers[0]
    last.weight.copy_(torch.einsum("oc,cihw->oihw", mix, last.weight.double()))
    last.bias.copy_(mix @ last.bias.double())
    begin.weight.copy_(torch.einsum("oihw,ic->ochw", begin.weight.double(), back))
