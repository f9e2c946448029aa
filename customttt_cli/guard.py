"""Every error becomes one sentence on stderr and an exit code; a traceback comes only where it was asked for."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from typer.core import TyperGroup

from customttt.errors import CustomTTTError, OutOfMemoryError, is_out_of_memory
from customttt_cli import output

INTERRUPTED = 130


class Guarded(TyperGroup):
    """The root of all commands: as Typer runs them, with an exit code for every error."""

    def main(self, *args: Any, **options: Any) -> Any:
        output.begin()
        try:
            return super().main(*args, **options)
        except SystemExit as leaving:  # Typer's own way out, Ctrl-C included
            if leaving.code == INTERRUPTED:
                output.interrupted()
            raise
        except Exception as error:
            if output.tracing():
                traceback.print_exception(error)
            code, sentence = explain(error)
            output.error(sentence)
            sys.exit(code)


def explain(error: Exception) -> tuple[int, str]:
    """(exit code, sentence) of an error."""
    if isinstance(error, CustomTTTError):
        return error.exit_code, str(error)
    if is_out_of_memory(error):
        return OutOfMemoryError.exit_code, (
            "There is not enough memory for this; close other programs, or use fewer --frames or --base tiny."
        )
    reason = " ".join(str(error).split())[:300] or "no reason given"
    return CustomTTTError.exit_code, (
        f"Unexpected {type(error).__name__} ({reason}); "
        "'customttt --debug ...' or CUSTOMTTT_DEBUG=1 shows where it comes from."
    )
