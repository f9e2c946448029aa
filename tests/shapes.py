"""The checker of every signature in the tests: beartype, to which an int is a float as it is to mypy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped = jaxtyping.jaxtyped


def jaxtyped(fn: Callable[..., object] | None = None, *, typechecker: Any) -> Any:
    """jaxtyping's own decorator, for what speaks of shapes alone: it binds every call's arguments to their names, which
    took more than a third of all tests; the checker by itself is one cheap call.
    """
    if fn is None:
        return partial(jaxtyped, typechecker=typechecker)
    shaped = not inspect.isfunction(fn) or _speaks_of_shapes(fn)
    return _jaxtyped(fn, typechecker=typechecker) if shaped else typechecker(fn)


def _speaks_of_shapes(fn: Callable[..., object]) -> bool:
    """Whether an annotation has a shape in it, or cannot be read here: jaxtyping leaves such a one unchecked."""
    try:
        hints = list(get_type_hints(fn).values())
    except Exception:  # as jaxtyping does: a name that is there for mypy alone, or not there yet
        return True
    while hints:
        hint = hints.pop()
        if inspect.isclass(hint) and issubclass(hint, AbstractArray):
            return True
        hints += [one for one in get_args(hint) if one is not hint]
    return False
