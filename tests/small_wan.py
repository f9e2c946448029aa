"""The twin of Wan, smaller still: what a test can train."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from customttt.lab.twins import Sizes
from customttt.lab.wan_twin import WanTwin
from customttt.tiny import wan_models


class SmallWan(WanTwin):
    SIZES = MappingProxyType(
        {"cpu": Sizes({"crop": 4, "frame": 2, "clip": 1, "window": 2}, 1, clips=2, chunk=2, renew_every=1)}
    )
    FRAMES, SPAN, PICTURES = 5, 5, 2

    @classmethod
    def build(cls, words: int) -> tuple[Any, Any, Any]:
        return (
            wan_models.build_vae(4), wan_models.build_transformer(2, 2, 12), wan_models.build_text_encoder(words),
        )  # fmt: skip
