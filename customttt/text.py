"""Text that strangers wrote: which characters a terminal or a page would act on, and how much JSON is read of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from customttt.limits import MAX_BRACKETS, MAX_NESTING, MAX_NOTE

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0, DEL and C1 controls, line and paragraph separators, marks and overrides of direction, lone surrogates."""
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
"""With whole strings, so that none within them counts."""


def escaped(text: str, keep: str = "") -> str:
    r"""`text` with every character of CONTROL but those in `keep` as \uXXXX, which JSON reads as that character."""
    return CONTROL.sub(lambda match: match[0] if match[0] in keep else f"\\u{ord(match[0]):04x}", text)


def parsed(text: str, most: int, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What JSON of at most `most` characters says; objects may be made by `pairs`.

    Raises ValueError for what is none, or too long, or has more brackets, or deeper ones, than anything of ours.
    """
    if len(text) > most:
        raise ValueError(f"it has {len(text):,} characters, and at most {most:,} are read")
    brackets = text.count("[") + text.count("{")  # also those within strings, of which nobody has as many
    if brackets > MAX_BRACKETS:
        raise ValueError(f"it has {brackets:,} brackets, and at most {MAX_BRACKETS:,} are read")
    if brackets > MAX_NESTING and _nesting(text) > MAX_NESTING:
        raise ValueError(f"its brackets are nested deeper than {MAX_NESTING}")
    return json.loads(text, object_pairs_hook=pairs) if pairs else from_json(text)  # in a fifth of the time


def read_json(path: Path, kind: type) -> Any:
    """What a file beside videos says; an empty `kind` where it says nothing of the kind, or is none of ours."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            content = parsed(file.read(10 * MAX_NOTE), 10 * MAX_NOTE)
    except (OSError, ValueError):
        return kind()
    return content if isinstance(content, kind) else kind()


def _nesting(text: str) -> int:
    """How deep brackets lie in each other at most, or more than MAX_NESTING."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        depth += (match[0] in "[{") - (match[0] in "]}")
        deepest = max(deepest, depth)
        if deepest > MAX_NESTING:
            break
    return deepest
