"""The only place that prints: results to stdout, everything else to stderr. NO_COLOR is honoured (by rich)."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from customttt.progress import Meter
from customttt.text import escaped

if TYPE_CHECKING:
    from rich.console import Console

    from customttt.progress import Progress, Report

PLAIN_SECONDS = 5.0
"""Between two lines of progress where stderr is not a terminal."""
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
_state = {"results": False, "tracing": False, "kept": False, "going": False}


def _unwritable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


ESCAPED = "customttt.escaped"
codecs.register_error(ESCAPED, _unwritable)


def begin() -> None:
    """Forget what an earlier run in this process printed; a stream that a service has closed is an empty one.

    What the encoding of stdout has not is written as `escaped` writes it.
    """
    _state.update(results=False, tracing=False, kept=False, going=False)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 for the process's life
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ESCAPED)


def trace() -> None:
    """Show tracebacks and let the libraries below talk."""
    _state["tracing"] = True


def tracing() -> bool:
    return _state["tracing"]


def quiet(bars: bool = False) -> None:
    """Keep the talk of torch, transformers and diffusers from the terminal; call it before they are imported.

    With `bars`, a terminal sees the hub's own bars of progress.
    """
    if tracing():
        return
    if bars and sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")


def result(text: str) -> None:
    """One line of what was asked for, on stdout."""
    _state["results"] = True
    _write(sys.stdout, lambda: print(escaped(text, keep="\n\t"), flush=True))


def say(text: str) -> None:
    """A plain sentence on stderr."""
    _line(text)


def warn(text: str) -> None:
    _line(f"warning: {text}", "yellow")


def error(text: str) -> None:
    _line(f"error: {text}", "red")


def kept() -> None:
    """Remember that a checkpoint is there."""
    _state["kept"] = True


def goes_on() -> None:
    """Remember that the same command does not do again what is done."""
    _state["going"] = True


def stored() -> None:
    """Remember that what was asked for is safe, and that the same command does not go on from anything."""
    _state.update(results=True, kept=False, going=False)


def interrupted() -> None:
    if _state["kept"]:
        done = "the same command goes on from the last checkpoint"
    elif _state["going"]:
        done = "the same command goes on"
    else:
        done = "only what is printed above was done" if _state["results"] else "nothing was saved"
    say(f"Interrupted; {done}.")


def _line(text: str, style: str = "") -> None:
    _write(sys.stderr, lambda: _stderr().print(escaped(text, keep="\n"), style=style, markup=False, emoji=False))


def _write(stream: IO[str], write: Callable[[], object]) -> None:
    """A run does not end because nobody reads on: from then on the stream leads nowhere."""
    try:
        write()
    except OSError:
        _abandon(stream)


def _abandon(stream: IO[str]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _stderr() -> Console:
    return _console(stderr=True, soft_wrap=True)


def _console(**options: bool) -> Console:
    from rich.console import Console

    class Patient(Console):
        """One that goes on when its pipe breaks, where rich's own ends the process."""

        def on_broken_pipe(self) -> None:
            _abandon(self.file)

    return Patient(highlight=False, **options)  # type: ignore[arg-type]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], dim: Sequence[bool]) -> None:
    """A table on stdout; a terminal is shown the rows marked `dim` in red. Piped, it is as wide as it needs to be."""
    _state["results"] = True
    rows = [[escaped(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():  # without rich, which takes a third of the time of a `list` of a hundred
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in (columns, *rows))
        _write(sys.stdout, lambda: print("\n".join(lines), flush=True))
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row, marked in zip(rows, dim, strict=True):
        grid.add_row(*map(Text, row), style="red" if marked else "")
    _write(sys.stdout, lambda: _console().print(grid))


def interactive() -> bool:
    """Whether someone is there to answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Ask on stderr; anything but y or yes means no."""
    _write(sys.stderr, lambda: print(f"{escaped(question)} [y/N] ", end="", file=sys.stderr, flush=True))
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def gigabytes(size: int) -> str:
    """`3670000000` as "3.7 GB"."""
    return f"{size / 1e9:.{1 if size < 1e10 else 0}f} GB"


def downloaded(file: str, here: int, total: int) -> None:
    """How much of a file from the hub is here."""
    say(f"{file}: {gigabytes(here)} of {gigabytes(total)} are here.")


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner on a terminal, elsewhere nothing, while something takes a few seconds."""
    if not sys.stderr.isatty():
        yield
        return
    with _stderr().status(text):
        yield


@contextmanager
def loading_torch(bars: bool = False) -> Iterator[None]:
    """While torch, which then computes on the cores that are idle, and what needs it are imported, quietly."""
    from customttt import threads

    quiet(bars)
    threads.bound_spinning()
    with waiting("Loading torch"):
        watch = threads.Watch.start()
        import torch  # noqa: F401 which takes long enough to see who else is busy

        threads.choose(watch.idle_cores())
        yield


@contextmanager
def loading(base: str) -> Iterator[None]:
    """While a base is loaded; one that is no folder here may come from the hub, which takes its time."""
    from customttt import backbones

    if backbones.locate(base).folder is None:
        say(f"Loading {base}; the first time it is downloaded, and 'customttt bases pull {base}' shows how far it is.")
    with waiting(f"Loading {base}"):
        yield


@contextmanager
def progress() -> Iterator[Report]:
    """A bar on a terminal, elsewhere a line every few seconds; both tell phase, step, loss, speed and time left."""
    with _bar() if sys.stderr.isatty() else _lines() as report:
        yield report


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    meter = Meter()
    columns = (TextColumn("{task.description}"), BarColumn(10), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Bars(*columns, console=_stderr(), redirect_stdout=False) as bars:

        def report(progress: Progress) -> None:
            if progress.note:
                warn(progress.note)
                return
            if progress.step == 1 or not bars.task_ids:
                bars.add_task(progress.phase.capitalize(), total=progress.total, note="")
            bars.update(bars.task_ids[-1], completed=progress.step, note=meter.note(progress))

        yield report


@contextmanager
def _lines() -> Iterator[Report]:
    meter, shown = Meter(), time.monotonic() - PLAIN_SECONDS / 2  # a first sign of life comes earlier

    def report(progress: Progress) -> None:
        nonlocal shown
        if progress.note:
            warn(progress.note)
            return
        note = meter.note(progress)
        if progress.step == progress.total or time.monotonic() - shown >= PLAIN_SECONDS:
            shown = time.monotonic()
            say(f"{progress.phase.capitalize()}: step {progress.step} of {progress.total}, {note}")

    yield report
