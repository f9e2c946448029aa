"""What was measured, by its key: one JSON line each, in a file small enough to be committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Ledger:
    """Append-only: a kill loses at most the line being written, and several processes may write to one file.

    Without a path it remembers only as long as it lives.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        self._read = 0

    def get(self, key: str) -> dict[str, Any] | None:
        """What was put under this key, by whatever process; None where nothing was."""
        if key not in self._known:
            self._catch_up()
        return self._known.get(key)

    def put(self, key: str, **values: Any) -> None:
        """Keep values under a key."""
        if self.path is None:
            self._known[key] = values
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            whole = file.read() in (b"", b"\n")
            file.write((b"" if whole else b"\n") + json.dumps({"key": key, **values}).encode() + b"\n")

    def _catch_up(self) -> None:
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # another process is writing it, or was killed over it
                self._read += len(line)
                self._note(line)

    def _note(self, line: bytes) -> None:
        try:
            values = json.loads(line)
        except ValueError:  # cut by a kill: what it said is measured again
            return
        self._known[values.pop("key")] = values
