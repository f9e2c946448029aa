"""What LoRA weights are called in other programs' files, and which module of a U-Net is meant. Knows no files.

The first matrix of one `to_out.0`, as each program writes it (D is `down_blocks.2`, T `transformer_blocks.0`):

    ours, PEFT      D.attentions.0.T.attn1.to_out.0.lora_A.weight; PEFT puts `base_model.model.` before it
    diffusers       unet.D.attentions.0.T.attn1.to_out.0.lora_A.weight; long ago `.lora.down.weight`
    kohya           lora_unet_down_blocks_2_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight, `.alpha`
    AnimateDiff     D.motion_modules.0.temporal_transformer.T.attention_blocks.0.processor.to_out_lora.down.weight
    AnimateDiff-MotionDirector
        spatial     D.attentions.0.T.attn1.processor.to_out_lora.down.weight, and `proj_in`
        temporal    as AnimateDiff, but `.to_out.processor.0_lora.down.weight`; `.ff.net.processor.2_lora.down.weight`
    MotionDirector  no names at all: a list of (up, down, up, down, ...) in the order of the network

Read in public code: kohya-ss/sd-scripts, guoyww/AnimateDiff, Kosinkadink/ComfyUI-AnimateDiff-Evolved,
ExponentialML/AnimateDiff-MotionDirector (`animatediff/utils/lora.py`) and showlab/MotionDirector (`utils/lora.py`). All
but the list become one flat spelling, which is looked up among the base's modules; what is not found there is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from customttt.backbones import Place
from customttt.concept import Kind
from customttt.errors import DamagedError
from customttt.lora import Weights

MAX_RANK = 1280
"""The width of the widest attention of Stable Diffusion 1.5: more than that is no low rank."""

_KEY = re.compile(
    r"(?P<module>.+?)(?:[._]lora[._](?P<role>A|B|down|up)(?:\.default)?\.weight|\.(?P<alpha>alpha))", re.DOTALL
)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_ROLES = {"A": "A", "down": "A", "B": "B", "up": "B", None: "alpha"}
_PREFIXES = ("base_model_model_", "lora_unet_", "unet_")
_SPELLINGS = {
    "processor_": "",
    "temporal_transformer_": "",
    "attention_blocks_0": "attn1",
    "attention_blocks_1": "attn2",
}
_LISTS: tuple[tuple[Kind, str], ...] = (
    ("appearance", r"\.(attn1|ff)\."),  # MotionDirector
    ("appearance", ""),  # AnimateDiff-MotionDirector
    ("motion", r"\.(attn1|attn2|ff)\."),  # both
)
"""What a list without names covers."""


def kohya(key: str, kind: Kind) -> str:
    """One of our keys as ComfyUI reads it: an appearance in kohya's spelling, a motion in AnimateDiff's."""
    module, role = key.removesuffix(".weight").split(".lora_")
    end = {"A": "down", "B": "up"}[role]
    if kind == "appearance":
        return f"{_PREFIXES[1]}{module.replace('.', '_')}.lora_{end}.weight"
    module = re.sub(r"(\.motion_modules\.\d+)\.", r"\1.temporal_transformer.", module)
    module = module.replace(".attn1.", ".attention_blocks.0.").replace(".attn2.", ".attention_blocks.1.")
    path, _, leaf = module.removesuffix(".0").rpartition(".")
    return f"{path}.processor.{leaf}_lora.{end}.weight"


def named(tensors: Sequence[Tensor], places: Mapping[str, Place], kind: Kind | None) -> Weights:
    """A list without names under our keys: the modules, in order, whose shapes are those of the list.

    Raises DamagedError where there are none.
    """
    for wanted, pattern in _LISTS:
        found = [name for name, place in places.items() if place.kind == wanted and re.search(pattern, name)]
        keys = [f"{name}.lora_{role}.weight" for name in found for role in "BA"]
        if kind in (None, wanted) and len(keys) == len(tensors):
            weights = dict(zip(keys, tensors, strict=True))
            if not any(_misfit(places[name].shape, *_pair(weights, name)) for name in found):
                return weights
    raise DamagedError(
        f"its {len(tensors)} tensors without names are not those of a LoRA of this base; "
        "MotionDirector's own are for ModelScope's and ZeroScope's U-Net"
    )


def _pair(weights: Mapping[str, Tensor], module: str) -> tuple[Tensor, Tensor]:
    return weights[f"{module}.lora_A.weight"], weights[f"{module}.lora_B.weight"]


def translate(weights: Mapping[str, Tensor], places: Mapping[str, Place]) -> Weights:
    """Weights of any spelling under our keys, in float32, at scale 1. Every key must mean a module of the base.

    Raises DamagedError, a part of a sentence that names the key.
    """
    found = _sorted_out(weights, {_flat(module): module for module in places})
    whole: Weights = {}
    for module in filter(found.__contains__, places):
        down, up = _at_scale_one(weights, found[module], places[module].shape)
        whole |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    _check_rank(whole)
    return whole


def _at_scale_one(
    weights: Mapping[str, Tensor], keys: Mapping[str, str], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """A and B of one module whose weight has this shape, alpha / rank multiplied into B. Raises DamagedError."""
    if missing := {"A", "B"} - set(keys):
        key = next(iter(keys.values()))
        raise DamagedError(f"{key!r} is alone: there is no {'down' if 'A' in missing else 'up'} matrix to it")
    down, up = weights[keys["A"]], weights[keys["B"]]
    if misfit := _misfit(shape, down, up):
        found = tuple(weights[keys[misfit]].shape)
        raise DamagedError(f"{keys[misfit]!r} has the shape {found}, which does not fit the base's {shape}")
    scale = _alpha(weights, keys["alpha"]) / len(down) if "alpha" in keys else 1.0
    down, up = (matrix.to(torch.float32, copy=True).contiguous() for matrix in (down, up))  # a pickle's may be shared
    matrices = down, up if scale == 1 else up * scale
    for role, matrix in zip("AB", matrices, strict=True):
        if weights[keys[role]].dtype not in _DTYPES:
            raise DamagedError(f"{keys[role]!r} is {weights[keys[role]].dtype}, not float32, float16 or bfloat16")
        if not matrix.isfinite().all():
            raise DamagedError(f"{keys[role]!r} holds values that are not finite")
    return matrices


def _sorted_out(weights: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The given key of each module's A, B and alpha."""
    found: dict[str, dict[str, str]] = {}
    for key in weights:
        match = _KEY.fullmatch(key)
        module = modules.get(_flat(match["module"])) if match else None
        if match is None or module is None:
            raise DamagedError(f"{key!r} is no part of a LoRA that this base has a place for")
        other = found.setdefault(module, {}).setdefault(_ROLES[match["role"]], key)
        if other != key:
            raise DamagedError(f"{other!r} and {key!r} are the same matrix")
    return found


def _flat(module: str) -> str:
    flat = module.replace(".", "_")
    for prefix in _PREFIXES:
        flat = flat.removeprefix(prefix)
    for theirs, ours in _SPELLINGS.items():
        flat = flat.replace(theirs, ours)
    return re.sub(r"to_out_0$", "to_out", flat)


def _misfit(shape: tuple[int, ...], down: Tensor, up: Tensor) -> str:
    """Which of the two, "A" or "B", has not the shape that it needs here; empty if both do."""
    rank = down.shape[0] if down.ndim else 0
    if down.shape != (rank, *shape[1:]) or not rank:
        return "A"
    return "" if up.shape == (shape[0], rank, *(1 for _ in shape[2:])) else "B"


def _alpha(weights: Mapping[str, Tensor], key: str) -> float:
    if weights[key].numel() != 1:
        raise DamagedError(f"{key!r} is not one number")
    return float(weights[key])


def _check_rank(weights: Mapping[str, Tensor]) -> None:
    ranks = {len(weight): key for key, weight in weights.items() if ".lora_A." in key}
    if not ranks:
        raise DamagedError("it holds no LoRA weights")
    if len(ranks) > 1:
        least, most = min(ranks), max(ranks)
        raise DamagedError(f"its ranks differ ({least} in {ranks[least]}, {most} in {ranks[most]})")
    if max(ranks) > MAX_RANK:
        raise DamagedError(f"its rank is {max(ranks):,}, and at most {MAX_RANK:,} is a low rank")


def wrapped(weights: Mapping[str, Tensor]) -> Iterator[str]:
    """The modules that weights under our keys wrap."""
    return (key.removesuffix(".lora_A.weight") for key in weights if key.endswith(".lora_A.weight"))
