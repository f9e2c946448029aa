"""What the shell offers after Tab: the concepts of the library, the bases that have a name, methods. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from customttt.concept import Kind
from customttt.errors import CustomTTTError
from customttt.library import Library

BASES = ("tiny", "animatediff", "modelscope", "zeroscope", "wan")
"""As `backbones.known_bases` has them, for which torch would have to be imported."""


def concepts(kind: Kind | None = None) -> Callable[[str], Sequence[tuple[str, str]]]:
    """Offers those of a kind, or all, each with what it was learned with."""

    def offer(incomplete: str) -> Sequence[tuple[str, str]]:  # noqa: ARG001 Typer drops what does not begin so
        try:
            return [(concept.name, concept.prompt) for concept in Library().concepts(kind)]
        except CustomTTTError:  # no library is no reason to disturb who types
            return []

    return offer


def subjects(incomplete: str) -> Sequence[str]:
    """Appearances, and after a colon, motions."""
    appearance, colon, _ = incomplete.partition(":")
    if colon:
        return [f"{appearance}:{name}" for name, _ in concepts("motion")("")]
    return [name for name, _ in concepts("appearance")("")]


def bases() -> Sequence[str]:
    return BASES


def methods(incomplete: str) -> Sequence[str]:
    """Those of `compare` that are not typed yet, after the commas that are."""
    from customttt.measure import compare  # which brings along what every other command does without

    typed = incomplete.split(",")[:-1]
    return [",".join([*typed, name]) for name in compare.METHODS if name not in typed]
