"""The command `ui`: a page in the browser of this machine."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Annotated

import typer

from customttt.errors import UsageError
from customttt.library import Library
from customttt_cli import options, output

LAST_PORT = 65535


def ui(
    videos: Annotated[Path, typer.Option("--output", "-o", help="A folder for the videos.")] = Path("customttt-ui"),
    port: Annotated[
        int | None, typer.Option(help="Where on this machine; by default the first free from 7860 on.")
    ] = None,
    base: options.Base = None,
    view: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Learn, compose and keep house on a page in the browser. It answers on this machine alone."""
    _check_ui(port)
    from customttt import media

    library = Library()
    media.check_output(videos / "video.mp4")
    with output.loading_torch():
        from customttt import backbones, threads
        from customttt.ui import page
        from customttt.ui.desk import Desk
        from customttt.ui.studio import Studio
    backbones.choose_base(base)  # raises for one that is none
    desk = Desk()
    studio = Studio(library, desk, videos, base, threads.number())
    try:
        with desk:
            url = page.Page(studio).serve(port)
            output.result(url)
            output.say("Open this address in a browser of this machine. Ctrl-C ends it; what is being learned is kept.")
            if view:
                typer.launch(url)
            threading.Event().wait()
    finally:
        studio.close()


def _check_ui(port: int | None) -> None:
    """Raise UsageError where Gradio is not installed, or the port is none or taken."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise UsageError("The page needs Gradio, which is not installed; pip install 'customttt[ui]'.")
    if port is None:
        return
    if not 1 <= port <= LAST_PORT:
        raise UsageError(f"--port is {port}; it must be 1 to {LAST_PORT}.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(
                f"Port {port} of this machine cannot be used ({error.strerror}); give another with --port."
            ) from error
