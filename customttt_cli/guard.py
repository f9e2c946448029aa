"""Every error becomes one sentence on stderr and an exit code; a traceback comes only where it was asked for."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

from customttt.errors import CustomTTTError, OutOfMemoryError, is_out_of_memory
from customttt_cli import output

INTERRUPTED = 130
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end a run as Ctrl-C does; its exit code is 128 and their number."""

AGAIN_SECONDS = 0.3
"""After which a dropped signal comes once more: by then Python is done with what it finalized."""


class Guarded(TyperGroup):
    """The root of all commands: as Typer runs them, with an exit code for every error."""

    def main(self, *args: Any, **options: Any) -> Any:
        output.begin()
        received: list[int] = []
        try:
            with _ending(received):
                return super().main(*args, **options)
        except SystemExit as leaving:  # Typer's own way out, Ctrl-C included
            if leaving.code == INTERRUPTED:
                output.interrupted()
                sys.exit(128 + received[0] if received else INTERRUPTED)
            raise
        except Exception as error:
            if output.tracing():
                traceback.print_exception(error)
            code, sentence = explain(error)
            output.error(sentence)
            sys.exit(code)


@contextmanager
def _ending(received: list[int]) -> Iterator[None]:
    """While this lasts, a signal of ENDING is noted and interrupts; only the main thread can see to that."""

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def lost(unraisable: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised while an object is finalized, an interruption too: let it come once more."""
        if unraisable.exc_type is not KeyboardInterrupt:
            hook(unraisable)
            return
        again = threading.Timer(AGAIN_SECONDS, _raise, (received[-1] if received else signal.SIGINT,))
        again.daemon = True
        again.start()

    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, interrupt) for number in (ENDING if mine else ())}
    hook, sys.unraisablehook = sys.unraisablehook, lost if mine else sys.unraisablehook
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int) -> None:
    """Send a signal to the main thread, which may be waiting."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


def explain(error: Exception) -> tuple[int, str]:
    """(exit code, sentence) of an error."""
    if isinstance(error, CustomTTTError):
        return error.exit_code, str(error)
    if is_out_of_memory(error):
        return OutOfMemoryError.exit_code, (
            "There is not enough memory for this; close other programs, or use fewer --frames or a smaller base."
        )
    reason = " ".join(str(error).split())[:300] or "no reason given"
    return CustomTTTError.exit_code, (
        f"Unexpected {type(error).__name__} ({reason}); "
        "'customttt --debug ...' or CUSTOMTTT_DEBUG=1 shows where it comes from."
    )
