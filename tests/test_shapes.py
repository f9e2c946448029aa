"""The tests check what every function of the package is given, and its shapes where a signature speaks of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from customttt import losses, text


def test_shapes_that_belong_together_are_checked_together() -> None:
    clip = torch.zeros(1, 4, 2, 8, 8)
    assert losses.denoising(clip, clip) == 0
    with pytest.raises(TypeCheckError):
        losses.denoising(clip, clip[:, :3])


def test_a_signature_without_a_shape_is_checked_too() -> None:
    number: Any = 1
    with pytest.raises(BeartypeCallHintParamViolation):
        text.escaped(number)
