"""The losses of learning and of test-time training: predictions in, one number out.

`prediction` and `target` are (b c f h w): what the base's schedule lets its network predict, which is the noise, v, or
the direction of a flow.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Latents = Float[Tensor, "b c f h w"]
Loss = Float[Tensor, ""]


def denoising(prediction: Latents, target: Latents) -> Loss:
    """L_org: the plain error of the prediction (DDPM, arXiv 2006.11239)."""
    return F.mse_loss(prediction.float(), target.float())


def debias(values: Latents, anchor: int, beta: float = 1.0) -> Latents:
    """phi: sqrt(beta^2 + 1) eps_i - beta eps_anchor. What all frames share, their appearance, is weakened to
    sqrt(beta^2 + 1) - beta of it, which is 0.41 at beta 1.

    MotionDirector, arXiv 2310.08465; `anchor` is one frame's index.
    """
    return math.sqrt(beta**2 + 1) * values - beta * values[:, :, anchor : anchor + 1]


def motion(
    prediction: Latents, target: Latents, anchor: int, debias_weight: float = 1.0, plain_weight: float = 1.0
) -> Loss:
    """L_org + L_ad: the plain error and the error of what `debias` leaves (arXiv 2310.08465)."""
    loss = plain_weight * denoising(prediction, target)
    if debias_weight:
        loss = loss + debias_weight * denoising(debias(prediction, anchor), debias(target, anchor))
    return loss
