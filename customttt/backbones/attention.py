"""Attention in fewer operations than diffusers': what a step waits for on a GPU is their number (ours)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from customttt import lora


class Attend:
    """What diffusers' `AttnProcessor2_0` does, but q, k and v of a frozen self-attention are one product.

    Their weights lie one after the other, as parts of `together`. Where a LoRA acts on one of them, each is a product
    of its own again. And nothing is divided by one.
    """

    def __init__(self, attention: Attention) -> None:
        self.heads, self.together = attention.heads, _joined(attention)

    def __call__(
        self,
        attention: Attention,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b l e"] | None = None,
        attention_mask: None = None,  # noqa: ARG002 nothing of ours has one
        temb: Tensor | None = None,  # noqa: ARG002 of norms, which it has not
    ) -> Float[Tensor, "b n d"]:
        batch, length, _ = hidden_states.shape
        each: tuple[Tensor, ...]
        if encoder_hidden_states is None and (together := self.joined(attention)) is not None:
            each = F.linear(hidden_states, together).view(batch, length, 3, self.heads, -1).unbind(2)
        else:
            read = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            products = attention.to_q(hidden_states), attention.to_k(read), attention.to_v(read)
            each = tuple(one.view(batch, -1, self.heads, one.shape[-1] // self.heads) for one in products)
        query, key, value = (one.transpose(1, 2) for one in each)
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, length, -1)
        to_out: Any = attention.to_out
        return to_out[1](to_out[0](out))  # type: ignore[no-any-return]

    def joined(self, attention: Attention) -> Tensor | None:
        """`together`, where the weights still lie in it and no LoRA acts on them."""
        linears: list[Any] = [lora.alone(one) for one in (attention.to_q, attention.to_k, attention.to_v)]
        if self.together is None or [type(one) for one in linears] != [nn.Linear] * 3:
            return None
        return self.together if linears[0].weight.data_ptr() == self.together.data_ptr() else None


def _joined(attention: Attention) -> Tensor | None:
    """The frozen weights of q, k and v as one tensor, of which they are parts from now on; None for others."""
    linears: list[Any] = [attention.to_q, attention.to_k, attention.to_v]
    alike = len({one.weight.shape for one in linears}) == 1 and not attention.is_cross_attention
    if not alike or any(one.bias is not None or one.weight.requires_grad for one in linears):
        return None
    together = torch.cat([one.weight for one in linears])
    for linear, part in zip(linears, together.chunk(3), strict=True):
        linear.weight.data = part
    return together


def attend(network: nn.Module) -> None:
    """Let every attention that does nothing else do it so."""
    for module in network.modules():
        if isinstance(module, Attention) and _is_plain(module):
            module.set_processor(Attend(module))


def _is_plain(attention: Attention) -> bool:
    norms = attention.spatial_norm, attention.group_norm, attention.norm_cross, attention.norm_q, attention.norm_k
    return not (any(norms) or attention.residual_connection or attention.rescale_output_factor != 1)
