"""The commands, grouped as the help shows them. Importing this imports neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from customttt import __version__
from customttt_cli import (
    bases,
    compare,
    compose,
    demo,
    doctor,
    evaluate,
    exchange,
    gallery,
    grid,
    influence,
    learn,
    library,
    output,
    ui,
)
from customttt_cli.guard import Guarded
from customttt_cli.options import at_home

EXAMPLE = "Example: customttt demo"
LEARN, COMPOSE, LIBRARY, STUDY, MACHINE = "Learn", "Compose", "Library", "Study", "This machine"


class AtHome(typer.Typer):
    """Every command knows the home folder by its `~`."""

    def command(self, *arguments: Any, **options: Any) -> Callable[[Any], Any]:
        register = super().command(*arguments, **options)
        return lambda function: register(at_home(function))


app = AtHome(
    name="customttt",
    cls=Guarded,
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


app.command("learn-appearance", rich_help_panel=LEARN, epilog=learn.APPEARANCE_EXAMPLE)(learn.learn_appearance)
app.command("learn-motion", rich_help_panel=LEARN, epilog=learn.MOTION_EXAMPLE)(learn.learn_motion)
app.command("compose", rich_help_panel=COMPOSE, epilog=compose.EXAMPLE)(compose.compose)
app.command("grid", rich_help_panel=COMPOSE, epilog=grid.EXAMPLE)(grid.grid)
app.command("gallery", rich_help_panel=COMPOSE, epilog=gallery.EXAMPLE)(gallery.gallery)
app.command("ui", rich_help_panel=COMPOSE, epilog=ui.EXAMPLE)(ui.ui)
app.command("demo", rich_help_panel=COMPOSE, epilog=demo.EXAMPLE)(demo.demo)
app.command("list", rich_help_panel=LIBRARY, epilog=library.LIST_EXAMPLE)(library.list_concepts)
app.command("ls", hidden=True, epilog=library.LIST_EXAMPLE)(library.list_concepts)
app.command("show", rich_help_panel=LIBRARY, epilog=library.SHOW_EXAMPLE)(library.show)
app.command("rename", rich_help_panel=LIBRARY, epilog=library.RENAME_EXAMPLE)(library.rename)
app.command("rm", rich_help_panel=LIBRARY, epilog=library.RM_EXAMPLE)(library.remove)
app.command("path", rich_help_panel=LIBRARY, epilog=library.PATH_EXAMPLE)(library.path)
app.command("verify", rich_help_panel=LIBRARY, epilog=library.VERIFY_EXAMPLE)(library.verify)
app.command("export", rich_help_panel=LIBRARY, epilog=exchange.EXPORT_EXAMPLE)(exchange.export)
app.command("import", rich_help_panel=LIBRARY, epilog=exchange.IMPORT_EXAMPLE)(exchange.import_concept)
app.command("influence", rich_help_panel=STUDY, epilog=influence.EXAMPLE)(influence.influence)
app.command("compare", rich_help_panel=STUDY, epilog=compare.EXAMPLE)(compare.compare)
app.command("evaluate", rich_help_panel=STUDY, epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.add_typer(bases.app, name="bases", rich_help_panel=MACHINE)
app.command("doctor", rich_help_panel=MACHINE, epilog=doctor.EXAMPLE)(doctor.doctor)
