"""The command line reference, made from the code: every command, argument and option, and the exit codes.

It reads what Typer reads, the signatures of the commands, so no page has to be kept up to date by hand. The site shows
it as the page "Commands". `python docs/reference.py` prints it, and with `exit-codes` the table of exit codes.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_args, get_origin

import typer
from typer.models import ArgumentInfo, CommandInfo, OptionInfo
from typer.utils import get_params_from_function

from customttt import errors
from customttt_cli.app import DEFERRED, app

INTRODUCTION = """# Commands

This page is made from the program itself; `customttt COMMAND --help` shows the same in a terminal. Results go to
stdout, everything else to stderr. What a failure returns is on the page [Exit codes and messages](exit-codes.md).
"""


@dataclass(frozen=True)
class Command:
    """A command as it is typed, with what the help shows of it."""

    name: str
    panel: str
    function: Any
    example: str


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a command."""

    name: str
    info: ArgumentInfo | OptionInfo
    hint: Any
    default: Any

    @property
    def is_option(self) -> bool:
        return isinstance(self.info, OptionInfo)

    @property
    def is_flag(self) -> bool:
        return self.hint is bool

    @property
    def type(self) -> Any:
        """The type of one value, without `None` and without a list around it."""
        inner = [one for one in get_args(self.hint) if one is not type(None)]
        hint = inner[0] if inner and get_origin(self.hint) is not list else self.hint
        return get_args(hint)[0] if get_origin(hint) is list else hint

    @property
    def is_repeatable(self) -> bool:
        return "list[" in str(self.hint)

    @property
    def spellings(self) -> tuple[str, ...]:
        """As it is typed: `--output` or `-o`, or `NAME`."""
        if not self.is_option:
            return ((self.info.metavar or self.name.upper()).removesuffix("..."),)
        return tuple(self.info.param_decls or (f"--{self.name.replace('_', '-')}",))

    @property
    def code(self) -> str:
        """All spellings, each as code."""
        return ", ".join(f"`{one}`" for one in self.spellings)

    @property
    def value(self) -> str:
        """What to put there: the choices, or the kind of value; empty for a flag."""
        if self.is_flag:
            return ""
        if inspect.isclass(self.type) and issubclass(self.type, Enum):
            return ", ".join(f"`{one.value}`" for one in self.type)
        return {int: "whole number", float: "number"}.get(self.type, "path" if "Path" in str(self.type) else "text")

    @property
    def meaning(self) -> str:
        """The help, with the default and the environment variable behind it."""
        parts = [self.info.help or ""]
        if self.is_repeatable:
            parts.append("Several may be given.")
        if self.info.show_default is not False and not self.is_flag and self.default not in (None, "", ...):
            parts.append(f"Default: `{getattr(self.default, 'value', self.default)}`.")
        if self.info.envvar:
            parts.append(f"Environment: `{self.info.envvar}`.")
        return " ".join(parts)


def commands() -> list[Command]:
    """All commands in the order of the help, the hidden ones left out, groups followed by what is in them."""
    shown: list[Command] = []
    for name, entry in DEFERRED.items():
        if not entry.hidden:
            inner = entry.code if isinstance(entry.code, typer.Typer) else None
            function = inner.registered_callback.callback if inner and inner.registered_callback else entry.code
            shown.append(Command(name, entry.panel, function, f"customttt {entry.example}"))
            shown += [_command(info, entry.panel, name) for info in (inner.registered_commands if inner else ())]
    return shown


def _command(info: CommandInfo, panel: str, group: str) -> Command:
    return Command(f"{group} {info.name}", panel, info.callback, str(info.epilog).removeprefix("Example: "))


def parameters(function: Any) -> list[Parameter]:
    """The arguments and options of a command's function, as Typer reads its signature."""
    metas = get_params_from_function(function).values()
    infos = [(meta, meta.default) for meta in metas if isinstance(meta.default, ArgumentInfo | OptionInfo)]
    return [Parameter(meta.name, info, meta.annotation, info.default) for meta, info in infos]


def usage(command: Command) -> str:
    """One line: the command, its options in general and its arguments."""
    some = parameters(command.function)
    words = ["customttt", *command.name.split(), *(["[OPTIONS]"] if any(one.is_option for one in some) else [])]
    for one in some:
        if not one.is_option:
            spelling = one.spellings[0] + ("..." if one.is_repeatable else "")
            words.append(spelling if one.default is ... else f"[{spelling}]")
    return " ".join(words)


def section(command: Command) -> Iterator[str]:
    """The lines of one command."""
    yield f"### customttt {command.name}\n"
    yield f"{plain(inspect.getdoc(command.function) or '')}\n"
    yield f"```text\n{usage(command)}\n```\n"
    if rows := parameters(command.function):
        yield "| | value | meaning |\n|---|---|---|"
        for one in rows:
            yield f"| {one.code} | {cell(one.value)} | {cell(one.meaning)} |"
        yield ""
    yield f"```bash\n{command.example}\n```\n"


def root_options() -> Iterator[str]:
    """The lines of what may stand before any command."""
    assert app.registered_callback is not None
    yield "## Before any command\n"
    yield "| | meaning |\n|---|---|"
    for one in parameters(app.registered_callback.callback):
        yield f"| {one.code} | {cell(one.meaning)} |"
    yield "| `--install-completion`, `--show-completion` | Install, or print, the completion for this shell. |"
    yield "| `-h`, `--help` | Help, here and behind every command. |\n"


def page() -> str:
    """The whole reference in Markdown."""
    lines, panel = [INTRODUCTION], ""
    for command in commands():
        if command.panel != panel:
            panel = command.panel
            lines.append(f"## {panel}\n")
        lines += section(command)
    return "\n".join([*lines, *root_options()])


def exit_codes() -> str:
    """The table of exit codes: those of the errors, and those of signals."""
    rows = [
        (0, "", "All went well."),
        (1, "`CustomTTTError`", "Something unexpected. The class is the base of the others."),
    ]
    base = errors.CustomTTTError
    classes = [
        one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, base) and one is not base
    ]
    rows += sorted((one.exit_code, f"`{one.__name__}`", (one.__doc__ or "").strip()) for one in classes)
    rows += [(129, "", "Ended by SIGHUP."), (130, "", "Ended by Ctrl-C."), (143, "", "Ended by SIGTERM.")]
    return "\n".join(
        ["| code | in Python | meaning |", "|---|---|---|", *("| {} | {} | {} |".format(*row) for row in rows)]
    )


def plain(text: str) -> str:
    """A docstring as Markdown, in one line a paragraph."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text))


def cell(text: str) -> str:
    """Text as it may stand in a table."""
    return plain(text).replace("|", "\\|")


if __name__ == "__main__":
    typer.echo(exit_codes() if sys.argv[1:] == ["exit-codes"] else page())
