"""How strongly a LoRA acts where that stands outside its tensors: in the configuration that PEFT writes.

PEFT adds lora_alpha / r * B A to a weight, or lora_alpha / sqrt(r) * B A with `use_rslora` (arXiv 2312.03732). A module
that a `rank_pattern` or an `alpha_pattern` fits has an r or an alpha of its own: the first that fits the end of its
name. The configuration is `adapter_config.json` beside the weights, or `lora_adapter_metadata` in their header, where
diffusers puts the network's name before each field ("unet.r"). Whatever makes more than a plain LoRA is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from customttt.errors import DamagedError
from customttt.interchange.sorts import PLAIN
from customttt.limits import MAX_CONFIG, MAX_PATTERN, MAX_PATTERNS, MAX_WILD
from customttt.text import parsed

CONFIG = "adapter_config.json"
HEADER = "lora_adapter_metadata"
DEFAULT = 8
"""What PEFT takes for r and lora_alpha where they are not given."""
_NETWORK, _WRAPPER = "unet.", "base_model.model."
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),  # all others change the base, too
}
"""Values of fields of which others would make more than a plain LoRA."""
_WITHOUT_EFFECT = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
"""Fields that are read here, or that change nothing once a linear or a convolution is trained."""
_INTRICATE = re.compile(r"\)[*+{]|\\[1-9]|\(\?[^:]")
"""A repeated group, a reference back, a look around: what can keep a regular expression busy for years."""

Patterns = Sequence[tuple[re.Pattern[str], float]]


@dataclass(frozen=True)
class Strength:
    """What a configuration says of how strongly its LoRA acts."""

    rank: float
    alpha: float
    rooted: bool
    ranks: Patterns = ()
    alphas: Patterns = ()
    prefix: str = ""
    """Before the names of modules in the file, and not in the patterns."""

    def scale(self, module: str, rank: int) -> float:
        """Of a module by the file's own name, whose matrices have this rank. Raises DamagedError where r is another."""
        name = module.removeprefix(_WRAPPER).removeprefix(self.prefix)
        if (said := _first(self.ranks, name, self.rank)) != rank:
            raise DamagedError(
                f"its configuration says rank {said:g} of {module!r}, whose matrices have {rank}; "
                f"if {CONFIG} belongs to another file, move it away"
            )
        return _first(self.alphas, name, self.alpha) / (math.sqrt(rank) if self.rooted else rank)


def _first(patterns: Patterns, name: str, otherwise: float) -> float:
    return next((value for pattern, value in patterns if pattern.match(name)), otherwise)


def find(metadata: Mapping[str, str], beside: str) -> Strength | None:
    """What a file's header says, else the text of the configuration beside it; None where neither says anything.

    Raises DamagedError, a part of a sentence.
    """
    if HEADER not in metadata:
        return _read(_fields(beside, CONFIG)) if beside else None
    fields = _fields(metadata[HEADER], HEADER)
    own = {key.removeprefix(_NETWORK): value for key, value in fields.items() if key.startswith(_NETWORK)}
    if own:
        return _read(own, _NETWORK)
    return _read(fields) if "r" in fields or "lora_alpha" in fields else None


def is_peft(keys: Collection[str]) -> bool:
    """Whether they are spelt as PEFT does, so that what it wrote beside them may be meant for them."""
    return any(re.search(r"\.lora_[AB]\.", key) for key in keys)


def is_nowhere(keys: Collection[str]) -> bool:
    """Whether they are those of a file that PEFT itself wrote, in which there never is a scale."""
    return any(key.startswith(_WRAPPER) for key in keys) and not any(key.endswith(".alpha") for key in keys)


def _fields(text: str, where: str) -> dict[str, Any]:
    try:
        fields = parsed(text, MAX_CONFIG)
    except ValueError as error:
        raise DamagedError(f"{where} is not JSON") from error
    if not isinstance(fields, dict):
        raise DamagedError(f"{where} is no JSON object")
    return fields


def _read(fields: Mapping[str, Any], prefix: str = "") -> Strength:
    _check_plain(fields)
    rank, alpha = (_number(field, fields.get(field, DEFAULT)) for field in ("r", "lora_alpha"))
    ranks, alphas = (_patterns(fields, field) for field in ("rank_pattern", "alpha_pattern"))
    return Strength(rank, alpha, bool(fields.get("use_rslora")), ranks, alphas, prefix)


def _check_plain(fields: Mapping[str, Any]) -> None:
    sort = fields.get("peft_type") or "LORA"
    if sort != "LORA":
        raise DamagedError(f"it is an adapter of PEFT's sort {sort!r}, and only 'LORA' is read; {PLAIN}")
    if fields.get("use_dora"):
        raise DamagedError(f"it is a DoRA, and only plain LoRAs are read; {PLAIN}")
    for field, value in fields.items():
        if value and field not in _WITHOUT_EFFECT and value not in _HARMLESS.get(field, ()):
            raise DamagedError(f"its configuration makes more of it than a plain LoRA ({field}: {value!r}); {PLAIN}")


def _number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**31:
        raise DamagedError(f"its configuration holds {str(value)[:40]} in {field!r}, which is no number it can be")
    return float(value)


def _patterns(fields: Mapping[str, Any], field: str) -> Patterns:
    """A field's patterns with their values, in order, each as PEFT holds it against names."""
    table = fields.get(field) or {}
    if not isinstance(table, dict):
        raise DamagedError(f"its configuration holds no patterns in {field!r}")
    if len(table) > MAX_PATTERNS:
        raise DamagedError(f"its configuration has {len(table):,} patterns in {field!r}, and at most {MAX_PATTERNS:,}")
    if sum(bool(re.search(r"[*+{]", pattern)) for pattern in table) > MAX_WILD:
        raise DamagedError(f"its configuration has more than {MAX_WILD} patterns with repetitions in {field!r}")
    return [(_compiled(pattern), _number(field, value)) for pattern, value in table.items()]


def _compiled(pattern: str) -> re.Pattern[str]:
    if len(pattern) > MAX_PATTERN or len(re.findall(r"[*+{]", pattern)) > 2 or _INTRICATE.search(pattern):
        raise DamagedError(f"its configuration's pattern {pattern[:60]!r} is too intricate to be trusted")
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError) as error:
        raise DamagedError(f"its configuration's pattern {pattern!r} is no regular expression") from error
