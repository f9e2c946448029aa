"""The codec of `tiny` (ours): how its autoencoder is trained, and how one that is trained gets more latents.

128 x 128 pixels become 16 x 16 latents. The first three are the mean colours of their 8 x 8 pixels, and the others
are small, so that the U-Net learns coarse colours first, and where it is not sure of the details, it blurs instead of
littering.
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
"""The most that latents are disturbed by before they are decoded, drawn evenly: what a U-Net draws is never exact."""
SUBJECT_WEIGHT = 3.0  # how much more a pixel under the subject counts
EDGES, SQUARES, THUMBNAIL, SMALL, KEPT = 0.5, 2.0, 4.0, 0.003, 5.0
"""Weights of the loss's other terms beside the absolute error."""
DETAIL = 0.6
"""The standard deviation of latents that were added, as a share of that of the others."""


class Crops:
    """Crops around subjects out of a pool of frames that is slowly renewed, on the generator's device."""

    def __init__(self, generator: torch.Generator, clips: int, chunk: int) -> None:
        self.generator, self.chunk, self.place = generator, chunk, 0
        rendered = [self._render() for _ in range(max(clips // chunk, 1))]
        self.parts = [torch.cat(part) for part in zip(*rendered, strict=True)]

    def _render(self) -> tuple[Tensor, Tensor, Tensor]:
        """Frames and masks as bytes, and the subjects' centres in pixels."""
        clips = world.sample(self.chunk, self.generator)
        video = clips.video.transpose(1, 2).flatten(0, 1)
        centres = (clips.pose[:, 0, :, :2].flatten(0, 1) + 1) * world.SIZE / 2
        return ((video + 1) * 127.5).round().byte(), (clips.mask.flatten(0, 1) * 255).byte(), centres

    def renew(self) -> None:
        """Render the oldest frames anew."""
        new = self._render()
        count = len(new[0])
        for part, fresh in zip(self.parts, new, strict=True):
            part[self.place : self.place + count] = fresh
        self.place = (self.place + count) % len(self.parts[0])

    def draw(self, count: int) -> tuple[Float[Tensor, "n 3 s s"], Float[Tensor, "n 1 s s"]]:
        """(images in [-1, 1], masks in [0, 1])."""
        device = self.generator.device
        pick = torch.randint(0, len(self.parts[0]), (count,), generator=self.generator, device=device)
        jitter = torch.randint(-30, 31, (count, 2), generator=self.generator, device=device)
        corners = (self.parts[2][pick].round().long() - CROP // 2 + jitter).clamp(0, world.SIZE - CROP)
        line = torch.arange(CROP, device=device)
        rows, columns = (corners[:, axis, None] + line for axis in (1, 0))
        at = pick[:, None, None], rows[:, :, None], columns[:, None]
        images = self.parts[0][at[0], :, at[1], at[2]].permute(0, 3, 1, 2)
        return images.float() / 127.5 - 1, self.parts[1][at].unsqueeze(1).float() / 255


def loss(
    codec: AutoencoderTiny,
    images: Float[Tensor, "n 3 s s"],
    masks: Float[Tensor, "n 1 s s"],
    kept: AutoencoderTiny | None = None,
) -> Tensor:
    """Weighted error of pixels and edges through noisy latents, and what keeps the latents in shape.

    The first latents stay those of `kept`, where one is given: what a U-Net has learned of them stays true.
    """
    dtype = codec.dtype
    latents = codec.encoder(images.to(dtype)).float()
    strength = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    noisy = latents + strength * torch.randn_like(latents)
    decoded = codec.decoder(noisy.to(dtype)).float()
    error, weight = decoded - images, 1 + SUBJECT_WEIGHT * masks
    pixels = (error.abs() * weight).mean() + SQUARES * (error.square() * weight).mean()
    edges = (error.diff(dim=-1).abs() * weight[..., 1:]).mean() + (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    if kept is None:
        old, target, share = 3, F.avg_pool2d(images, 8), THUMBNAIL
    else:
        with torch.no_grad():
            target = kept.encoder(images.to(kept.dtype)).float()
        old, share = target.shape[1], KEPT
    shape = share * F.mse_loss(latents[:, :old], target) + SMALL * latents[:, old:].square().mean()
    whole: Tensor = pixels + EDGES * edges + shape
    return whole


@torch.no_grad()
def decibels(
    codec: AutoencoderTiny, video: Float[Tensor, "b 3 f h w"], mask: Float[Tensor, "b f h w"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Peak signal-to-noise ratio of each clip, whole and under its subject."""
    frames = video.transpose(1, 2).flatten(0, 1)
    parts = (codec.decode(codec.encode(some).latents).sample for some in torch.split(frames.to(codec.dtype), 16))
    decoded = torch.cat([part.float().clamp(-1, 1) for part in parts])
    error = ((decoded - frames) / 2).square().view(len(video), -1, *frames.shape[1:])
    covered = mask.unsqueeze(2).expand_as(error)
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
