"""`customttt`, and `python -m customttt_cli`."""

from __future__ import annotations

import sys

from customttt_cli import output


def main() -> None:
    """Run the command line; `guard.Guarded` turns every error into a sentence and an exit code."""
    try:
        from customttt_cli.app import app

        app(prog_name="customttt")
    except KeyboardInterrupt:  # before Typer has begun
        output.interrupted()
        sys.exit(130)


if __name__ == "__main__":
    main()
