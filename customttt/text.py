"""Text that strangers wrote: which characters a terminal or a page would act on, and how they are shown instead."""

from __future__ import annotations

import re

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0, DEL and C1 controls, line and paragraph separators, marks and overrides of direction, lone surrogates."""


def escaped(text: str, keep: str = "") -> str:
    r"""`text` with every character of CONTROL but those in `keep` as \uXXXX, which JSON reads as that character."""
    return CONTROL.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)
