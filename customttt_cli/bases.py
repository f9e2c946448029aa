"""The commands `bases` and `bases pull`: which base models there are, what they need, and getting one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from customttt_cli import completion, options, output
from customttt_cli.sources import measures

if TYPE_CHECKING:
    from customttt.backbones.survey import BaseStatus

PULL_EXAMPLE = "Example: customttt bases pull zeroscope"

app = typer.Typer(invoke_without_command=True, add_completion=False)


@app.callback()
def bases(context: typer.Context, as_json: options.Json = False) -> None:
    """List the base models, what each needs, and whether it can run here; 'pull' downloads one."""
    if context.invoked_subcommand is not None:
        return
    with output.loading_torch():
        from customttt import backbones
        from customttt.backbones import survey

    statuses = survey.survey()
    if as_json:
        output.result(json.dumps([_fields(status) for status in statuses], indent=2, ensure_ascii=False))
        return
    _table(statuses)
    base, why = backbones.choose_base(None)
    output.say(f"Without --base, {base} is used ({why}).")


def _fields(status: BaseStatus) -> dict[str, Any]:
    known, sample = status.known, status.sample
    return {
        "name": known.name,
        "what": known.what,
        "licence": known.licence,
        "frames": sample.num_frames,
        "size": sample.size,
        "download_bytes": known.download,
        "gpu_memory_bytes": known.memory,
        "repositories": [str(repository) for repository in known.repositories],
        "here": status.here,
        "runs": status.obstacle is None,
        "why_not": status.obstacle,
    }


def _table(statuses: list[BaseStatus]) -> None:
    columns = ("name", "what it is", "frames", "download", "GPU memory", "licence", "runs here")
    rows = [
        (
            status.known.name,
            status.known.what,
            f"{status.sample.num_frames} of {measures(status.sample.sides)}",
            output.gigabytes(status.known.download) if status.known.download else "none",
            output.gigabytes(status.known.memory) if status.known.memory else "none",
            status.known.licence,
            _runs(status),
        )
        for status in statuses
    ]
    output.table(columns, rows, [False] * len(rows))


def _runs(status: BaseStatus) -> str:
    if status.obstacle:
        return f"no: {status.obstacle}"
    return "yes" if status.here else f"after 'customttt bases pull {status.known.name}'"


def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="A base of the list, or a hub id as owner/name.", show_default=False, autocompletion=completion.bases
        ),
    ],
) -> None:
    """Download a base model now, as far as it is not here; after a break, whole files are kept."""
    with output.loading_torch(bars=True):
        from customttt import backbones

    output.goes_on()
    folders = backbones.pull(name, output.downloaded)
    output.say(f"'{name}' is here; use it with --base {name}.")
    for folder in folders:
        output.result(str(folder))


app.command("pull", epilog=PULL_EXAMPLE)(pull)
