"""The commands, grouped as the help shows them. Importing this imports neither torch nor numpy, nor any command."""

from __future__ import annotations

from collections import UserDict
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.main import get_command

from customttt import __version__
from customttt_cli import output
from customttt_cli.guard import Guarded
from customttt_cli.options import at_home

EXAMPLE = "Example: customttt demo"
LEARN, COMPOSE, LIBRARY, STUDY, MACHINE = "Learn", "Compose", "Library", "Study", "This machine"


class Deferred(NamedTuple):
    """Where the help shows a command, and where its function, or its Typer app, is to be imported from."""

    panel: str
    module: str
    function: str
    example: str
    """What follows `customttt`."""
    hidden: bool = False

    @property
    def code(self) -> Any:
        """The function, or the Typer app of several."""
        return getattr(import_module(f"customttt_cli.{self.module}"), self.function)

    def made(self, name: str) -> Any:
        """As Typer runs it; it knows the home folder by its `~`."""
        one = self.code
        if not isinstance(one, typer.Typer):
            one = typer.Typer(add_completion=False, rich_markup_mode="rich")
            one.command(name)(at_home(self.code))
        command: Any = get_command(one)
        command.name, command.hidden, command.rich_help_panel = name, self.hidden, self.panel
        command.epilog = f"Example: customttt {self.example}"
        return command


DEFERRED = {
    "learn-appearance": Deferred(LEARN, "learn", "learn_appearance", "learn-appearance koala ./imgs --steps 300"),
    "learn-motion": Deferred(LEARN, "learn", "learn_motion", "learn-motion swimming clip.mp4 --start 1.5 --end 4"),
    "compose": Deferred(COMPOSE, "compose", "compose", 'compose koala swimming "on Mars" --seed 3 -o mars.mp4'),
    "grid": Deferred(
        COMPOSE, "grid", "grid", 'grid --appearances koala,dog --motions all --prompt "on Mars" --seeds 3'
    ),
    "gallery": Deferred(COMPOSE, "gallery", "gallery", "gallery customttt-grid"),
    "ui": Deferred(COMPOSE, "ui", "ui", "ui --port 7861"),
    "demo": Deferred(COMPOSE, "demo", "demo", "demo --output ./customttt-demo"),
    "list": Deferred(LIBRARY, "library", "list_concepts", "list --kind motion"),
    "ls": Deferred(LIBRARY, "library", "list_concepts", "list --kind motion", hidden=True),
    "show": Deferred(LIBRARY, "library", "show", "show koala"),
    "rename": Deferred(LIBRARY, "library", "rename", "rename koala my-koala"),
    "rm": Deferred(LIBRARY, "library", "remove", "rm koala --dry-run"),
    "path": Deferred(LIBRARY, "library", "path", "path koala"),
    "verify": Deferred(LIBRARY, "library", "verify", "verify"),
    "export": Deferred(LIBRARY, "exchange", "export", "export koala --format kohya --output koala.safetensors"),
    "import": Deferred(LIBRARY, "exchange", "import_concept", "import koala.safetensors --name my-koala --base tiny"),
    "influence": Deferred(STUDY, "influence", "influence", 'influence "A koala." "A tiger." --seeds 3'),
    "compare": Deferred(
        STUDY, "compare", "compare", 'compare koala swimming "on Mars" --seeds 3 --images ./imgs --clip clip.mp4'
    ),
    "evaluate": Deferred(STUDY, "evaluate", "evaluate", "evaluate koala-swimming.mp4 --images ./imgs --clip clip.mp4"),
    "bases": Deferred(MACHINE, "bases", "app", "bases --json"),
    "doctor": Deferred(MACHINE, "doctor", "doctor", "doctor"),
}  # fmt: skip


class Commands(UserDict[str, Any]):
    """By name, each made when it is asked for: making all takes a third of the time in which one begins."""

    def __getitem__(self, name: str) -> Any:
        one = super().__getitem__(name)
        if isinstance(one, Deferred):
            one = self.data[name] = one.made(name)
        return one


class Root(Guarded):
    """`customttt` itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = Commands(DEFERRED)

    def list_commands(self, _: object) -> list[str]:
        return list(DEFERRED)


app = typer.Typer(
    name="customttt",
    cls=Root,
    epilog=EXAMPLE,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        output.result(f"customttt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[  # noqa: ARG001 its callback does it all
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="CUSTOMTTT_DEBUG", help="Show tracebacks and all warnings.")
    ] = False,
) -> None:
    """Teach a text-to-video model your subject and your movement, and compose them by test-time training."""
    if debug:
        output.trace()
