"""What a pickle would build, weighed before anything of it is built: a few bytes may stand for more than fits.

A pickle is a program for a machine with a stack and a memory. Two tuples of the same tuple, forty times over, are a
hundred bytes whose hash takes a year, a hundred thousand tuples within each other end the process, and `bytearray` of a
number is as many zeros. So the program is gone through once with weights in place of things, as `pickletools` describes
its operations. Knows no tensors.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from customttt.errors import DamagedError
from customttt.limits import MAX_PICKLED, MAX_PICKLED_DEPTH

_NAMES = re.compile(r"(torch[\w.]*|collections|_codecs) \w+")
"""What may be asked for by name: of these PyTorch takes what makes tensors, of others `bytearray`."""
_KEPT = ("PUT", "BINPUT", "LONG_BINPUT")
_FETCHED = ("GET", "BINGET", "LONG_BINGET")
_GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
"""Operations on a thing that stays the same thing."""


@dataclass(slots=True)
class _Thing:
    """What stands for something on the stack: how much is in it, counted as often as it is in there, and how deep."""

    weight: int = 1
    depth: int = 0

    def take(self, parts: list[_Thing]) -> None:
        self.weight += sum(part.weight for part in parts)
        self.depth = max([self.depth, *(part.depth + 1 for part in parts)])


class Scales:
    """Weighs pickles, all that it is given together."""

    def __init__(self) -> None:
        self.total = 0

    def weigh(self, file: BytesIO) -> None:
        """Go through the pickle that begins here. Raises DamagedError, a part of a sentence, for what is none."""
        stack: list[_Thing] = []
        marks: list[int] = []
        memory: dict[Any, _Thing] = {}
        try:
            for operation, argument, _ in pickletools.genops(file):
                self._do(operation, argument, stack, marks, memory)
        except (ValueError, IndexError, KeyError, OverflowError, RecursionError, EOFError) as error:
            raise DamagedError("its pickle is cut off or damaged") from error

    def _do(
        self,
        operation: pickletools.OpcodeInfo,
        argument: Any,
        stack: list[_Thing],
        marks: list[int],
        memory: dict[Any, _Thing],
    ) -> None:
        name = operation.name
        if name == "MARK":
            marks.append(len(stack))
        elif name in _KEPT:
            memory[argument] = stack[-1]
        elif name == "MEMOIZE":
            memory[len(memory)] = stack[-1]
        elif name in _FETCHED:
            stack.append(memory[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            if name == "GLOBAL" and not _NAMES.fullmatch(argument):
                raise DamagedError("it holds more than weights, and nothing else is read")
            self._build(operation, stack, marks)
        self._add(1)

    def _build(self, operation: pickletools.OpcodeInfo, stack: list[_Thing], marks: list[int]) -> None:
        """Take off the stack what an operation takes, and put there what it leaves."""
        before = operation.stack_before
        parts: list[_Thing] = []
        if pickletools.markobject in before:
            at = marks.pop()
            parts = stack[at:]
            del stack[at:]
            before = before[: before.index(pickletools.markobject)]
        parts = [stack.pop() for _ in before][::-1] + parts
        growing = operation.name in _GROWING
        thing = parts.pop(0) if growing else _Thing()
        self._add(sum(part.weight for part in parts))
        thing.take(parts)
        if thing.depth > MAX_PICKLED_DEPTH:
            raise DamagedError(f"its pickle nests things deeper than {MAX_PICKLED_DEPTH}")
        stack.extend(thing for _ in operation.stack_after)

    def _add(self, weight: int) -> None:
        self.total += weight
        if self.total > MAX_PICKLED:
            raise DamagedError(f"its pickle builds more than {MAX_PICKLED:,} things, and no LoRA has as many")
