"""What LoRA weights are called in other programs' files, and which module of a base is meant. Knows no files.

The first matrix of one `to_out.0`, as each program writes it (D is `down_blocks.2`, T `transformer_blocks.0`):

    ours, PEFT      D.attentions.0.T.attn1.to_out.0.lora_A.weight; PEFT puts `base_model.model.` before it
    diffusers       unet.D.attentions.0.T.attn1.to_out.0.lora_A.weight; long ago `.lora.down.weight`
    kohya           lora_unet_down_blocks_2_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight, `.alpha`
    AnimateDiff     D.motion_modules.0.temporal_transformer.T.attention_blocks.0.processor.to_out_lora.down.weight
    AnimateDiff-MotionDirector
        spatial     D.attentions.0.T.attn1.processor.to_out_lora.down.weight, and `proj_in`
        temporal    as AnimateDiff, but `.to_out.processor.0_lora.down.weight`; `.ff.net.processor.2_lora.down.weight`
    MotionDirector  no names at all: a list of (up, down, up, down, ...) in the order of the network

And of a transformer's, where Wan's own code and its kin call attn1 `self_attn`, attn2 `cross_attn`, to_out.0 `o`:

    ours, PEFT      blocks.0.attn1.to_out.0.lora_A.weight
    diffusers       transformer.blocks.0.attn1.to_out.0.lora_A.weight
    ComfyUI         diffusion_model.blocks.0.self_attn.o.lora_A.weight
    musubi          lora_unet_blocks_0_self_attn_o.lora_down.weight, `.alpha`

Read in public code: kohya-ss/sd-scripts and musubi-tuner, ComfyUI, guoyww/AnimateDiff, AnimateDiff-Evolved,
ExponentialML/AnimateDiff-MotionDirector (`animatediff/utils/lora.py`) and showlab/MotionDirector (`utils/lora.py`). All
but the list become one flat spelling, which is looked up among the base's modules; what is not found there is an error,
but for what a concept has no part in (`sift`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from customttt.backbones import Place
from customttt.concept import Kind
from customttt.errors import DamagedError
from customttt.interchange import sorts
from customttt.interchange.scales import Strength
from customttt.limits import MAX_LOW_RANK, MAX_MATRICES
from customttt.lora import Weights

_KEY = re.compile(
    r"(?P<module>.+?)(?:[._]lora(?:_linear_layer)?[._](?P<role>A|B|down|up)(?:\.(?P<adapter>[^.]+))?\.weight|\.(?P<alpha>alpha))",
    re.DOTALL,
)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
"""All that float32 holds exactly."""
_ROLES = {"A": "A", "down": "A", "B": "B", "up": "B", None: "alpha"}
_PREFIXES = re.compile(
    r"(?:(?:base_model_model|diffusion_model|lora_unet|lycoris|model|module|motion_module|unet"
    r"|(?:lora_)?transformer(?:_2)?(?=_blocks_\d))_){0,4}"
)
_TEXT_ENCODER = re.compile(r"(?:base_model\.model\.)?(?:lora_te\d?_|text_encoder(?:_\d)?\.|text_model\.)")
_BLOCK = re.compile(r"(?P<block>[a-z]+_block(?:s_\d+)?)_(?P<inside>(?P<branch>[a-z_]+?)_\d.*)")
"""A module in flat spelling: down_blocks_2, and of motion_modules_0_proj_in the branch motion_modules."""
_SPELLINGS = {
    "processor_": "",
    "temporal_transformer_": "",
    "attention_blocks_0": "attn1",
    "attention_blocks_1": "attn2",
}
_EXPERT = re.compile(r"transformer(_2)?\.(?=blocks\.)")
_NATIVE = re.compile(r"(?P<block>blocks_\d+)_(?:(?P<attention>self|cross)_attn_(?P<leaf>[qkvo])|ffn_(?P<linear>[02]))")
"""A linear of a transformer in the flat spelling of Wan's own code."""
_LISTS: tuple[tuple[Kind, str], ...] = (
    ("appearance", r"\.(attn1|ff)\."),  # MotionDirector
    ("appearance", ""),  # AnimateDiff-MotionDirector
    ("motion", r"\.(attn1|attn2|ff)\."),  # both
)
"""What a list without names covers."""


def named(tensors: Sequence[Tensor], places: Mapping[str, Place], kind: Kind | None) -> Weights:
    """A list without names under our keys: the modules, in order, whose shapes are those of the list.

    Raises DamagedError where there are none.
    """
    for wanted, pattern in _LISTS:
        modules = [name for name, place in places.items() if place.kind == wanted and re.search(pattern, name)]
        keys = [f"{name}.lora_{role}.weight" for name in modules for role in "BA"]
        if kind in (None, wanted) and len(keys) == len(tensors):
            weights = dict(zip(keys, tensors, strict=True))
            if not any(_misfit(places[name].shape, *_pair(weights, name)) for name in modules):
                return weights
    raise DamagedError(
        f"its {len(tensors)} tensors without names are not those of a LoRA of this base; "
        "MotionDirector's own are for ModelScope's and ZeroScope's U-Net"
    )


def _pair(weights: Mapping[str, Tensor], module: str) -> tuple[Tensor, Tensor]:
    return weights[f"{module}.lora_A.weight"], weights[f"{module}.lora_B.weight"]


def sift(weights: Mapping[str, Tensor], places: Mapping[str, Place]) -> tuple[Weights, Counter[str]]:
    """What a concept can take in, and how many keys are left out of what: a text encoder, and layers without motion.

    A base that has motion modules, but not in this layer, takes the others as they are: AnimateDiff's v2 has them in
    the middle, v1 and v3 have not. Raises DamagedError, a part of a sentence, for what is no plain LoRA of a U-Net.
    """
    sorts.check(weights, places)
    flat = {_flat(module): place.kind for module, place in places.items()}
    branches = {(match["block"], match["branch"]) for match in map(_BLOCK.fullmatch, flat) if match}
    moving = {match["inside"] for match in map(_BLOCK.fullmatch, flat) if match and flat[match[0]] == "motion"}
    outside: dict[str, str] = {}
    for key, module in _modules(weights).items():
        match = _BLOCK.fullmatch(_flat(module))
        if _TEXT_ENCODER.match(key):
            outside[key] = "the text encoder"
        elif match and match["inside"] in moving and (match["block"], match["branch"]) not in branches:
            outside[key] = f"{match['branch']} in {match['block']}, where this base has none"
    _check_whole(outside)
    kept = {key: weight for key, weight in weights.items() if key not in outside}
    if outside and not kept:
        raise DamagedError(f"it holds no LoRA weights but those of {next(iter(outside.values()))}")
    return kept, Counter(outside.values())


def _modules(keys: Collection[str]) -> dict[str, str]:
    """The module of each key that is spelt as a LoRA's. Raises DamagedError where they are of several adapters."""
    matches = [match for match in map(_KEY.fullmatch, keys) if match]
    if len(adapters := sorted({match["adapter"] for match in matches if match["adapter"]})) > 1:
        raise DamagedError(f"it holds several adapters ({', '.join(map(repr, adapters))}); save one alone")
    return {match[0]: match["module"] for match in matches}


def _check_whole(keys: Collection[str]) -> None:
    """Raise DamagedError where one of two matrices is missing, though both are to be left out."""
    roles: dict[str, dict[str, str]] = {}
    for match in filter(None, map(_KEY.fullmatch, keys)):
        roles.setdefault(match["module"], {})[_ROLES[match["role"]]] = match[0]
    for pair in roles.values():
        _check_pair(pair)


def translate(weights: Mapping[str, Tensor], places: Mapping[str, Place], strength: Strength | None = None) -> Weights:
    """Weights of any spelling under our keys, in float32, at scale 1 and of one rank. Every key must mean a module.

    Smaller ranks are filled up with zeros, which changes nothing. `strength` is what stands outside the tensors; an
    alpha among them goes before it. Raises DamagedError, a part of a sentence that names the key.
    """
    spellings = _sorted_out(weights, {_flat(module): module for module in places})
    whole: Weights = {}
    for module in filter(spellings.__contains__, places):
        down, up = _at_scale_one(weights, spellings[module], places[module].shape, strength)
        whole |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    return _of_one_rank(whole)


def _check_pair(keys: Mapping[str, str]) -> None:
    if missing := {"A", "B"} - set(keys):
        key = next(iter(keys.values()))
        raise DamagedError(f"{key!r} is alone: there is no {'down' if 'A' in missing else 'up'} matrix to it")


def _at_scale_one(
    weights: Mapping[str, Tensor], keys: Mapping[str, str], shape: tuple[int, ...], strength: Strength | None
) -> tuple[Tensor, Tensor]:
    """A and B of one module whose weight has this shape, its scale multiplied into B. Raises DamagedError."""
    _check_pair(keys)
    down, up = weights[keys["A"]], weights[keys["B"]]
    if misfit := _misfit(shape, down, up):
        misshapen = tuple(weights[keys[misfit]].shape)
        raise DamagedError(f"{keys[misfit]!r} has the shape {misshapen}, which does not fit the base's {shape}")
    scale = _scale(weights, keys, strength)
    down, up = (matrix.to(torch.float32, copy=True).contiguous() for matrix in (down, up))  # a pickle's may be shared
    matrices = down, up if scale == 1 else up * scale
    for role, matrix in zip("AB", matrices, strict=True):
        if weights[keys[role]].dtype not in _DTYPES:
            raise DamagedError(f"{keys[role]!r} is {weights[keys[role]].dtype}, not float32, float16, bfloat16 or fp8")
        if not matrix.isfinite().all():
            raise DamagedError(f"{keys[role]!r} holds values that are not finite")
    return matrices


def _sorted_out(weights: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The given key of each module's A, B and alpha."""
    by_module: dict[str, dict[str, str]] = {}
    for key in weights:
        match = _KEY.fullmatch(key)
        module = modules.get(_flat(match["module"])) if match else None
        if match is None or module is None:
            raise DamagedError(_unknown(key, modules))
        other = by_module.setdefault(module, {}).setdefault(_ROLES[match["role"]], key)
        if other != key:
            raise DamagedError(f"{other!r} and {key!r} are the same matrix")
    return by_module


def _unknown(key: str, modules: Mapping[str, str]) -> str:
    match = _KEY.fullmatch(key)
    inside = _BLOCK.fullmatch(_flat(match["module"])) if match else None
    if inside and not any(f"_{inside['branch']}_" in flat for flat in modules):
        return f"it was learned in {inside['branch']!r}, which this base has nowhere ({key!r}); use one for this base"
    return f"{key!r} is no part of a LoRA that this base has a place for"


def _flat(module: str) -> str:
    flat = _PREFIXES.sub("", module.replace(".", "_"), count=1)
    for theirs, ours in _SPELLINGS.items():
        flat = flat.replace(theirs, ours)
    if native := _NATIVE.fullmatch(flat):
        return _of_diffusers(**native.groupdict())
    return re.sub(r"to_out_0$", "to_out", flat)


def _of_diffusers(block: str, attention: str | None, leaf: str | None, linear: str | None) -> str:
    """What diffusers calls a linear of a transformer, in flat spelling."""
    if attention:
        return f"{block}_attn{1 if attention == 'self' else 2}_to_{'out' if leaf == 'o' else leaf}"
    return f"{block}_ffn_net_{'0_proj' if linear == '0' else linear}"


def _misfit(shape: tuple[int, ...], down: Tensor, up: Tensor) -> str:
    """Which of the two, "A" or "B", has not the shape that it needs here; empty if both do."""
    rank = down.shape[0] if down.ndim else 0
    if down.shape != (rank, *shape[1:]) or not rank:
        return "A"
    return "" if up.shape == (shape[0], rank, *(1 for _ in shape[2:])) else "B"


def _scale(weights: Mapping[str, Tensor], keys: Mapping[str, str], strength: Strength | None) -> float:
    rank = len(weights[keys["A"]])
    if key := keys.get("alpha"):
        if weights[key].numel() != 1:
            raise DamagedError(f"{key!r} is not one number")
        return float(weights[key]) / rank
    module = next(iter(_modules([keys["A"]]).values()))
    return strength.scale(module, rank) if strength else 1.0


def _of_one_rank(weights: Weights) -> Weights:
    """Zeros in place of what smaller ranks lack. Raises DamagedError."""
    rank = max((len(weight) for key, weight in weights.items() if ".lora_A." in key), default=0)
    if not rank:
        raise DamagedError("it holds no LoRA weights")
    if rank > MAX_LOW_RANK:
        raise DamagedError(f"its rank is {rank:,}, and at most {MAX_LOW_RANK:,} is a low rank")
    axes = {key: int(".lora_B." in key) for key in weights}
    size = sum(4 * rank * weight.numel() // weight.shape[axes[key]] for key, weight in weights.items())
    if size > MAX_MATRICES:
        raise DamagedError(f"its ranks differ, and at the largest, {rank}, it would have {size / 1e6:,.0f} MB")
    return {key: _filled(weight, axes[key], rank) for key, weight in weights.items()}


def _filled(weight: Tensor, axis: int, rank: int) -> Tensor:
    if weight.shape[axis] == rank:
        return weight
    shape = list(weight.shape)
    shape[axis] = rank - weight.shape[axis]
    return torch.cat([weight, weight.new_zeros(shape)], axis)


def of_diffusers(key: str) -> str:
    """One of our keys as diffusers has it: after the name of the network, which is the same for both of two experts."""
    bare = _EXPERT.sub("", key)
    return f"{'transformer' if bare.startswith('blocks.') else 'unet'}.{bare}"


def expert(weights: Collection[str]) -> str:
    """In which of two experts weights under our keys act, as diffusers calls it; empty where the base has not two."""
    return next((match[0].rstrip(".") for match in map(_EXPERT.match, weights) if match), "")


def are_twins(places: Mapping[str, Place]) -> bool:
    """Whether the base has two experts, whose linears other programs call alike: a file holds a LoRA of one of them."""
    return len({_flat(module) for module in places}) < len(places)


def wrapped(weights: Mapping[str, Tensor]) -> Iterator[str]:
    """The modules that weights under our keys wrap."""
    return (key.removesuffix(".lora_A.weight") for key in weights if key.endswith(".lora_A.weight"))
