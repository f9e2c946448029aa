"""A stand-in for the model hub on the loopback device: it serves folders as repositories, and can be unkind."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories by id, what was downloaded, and how to be unkind."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.downloaded: list[str] = []
        self.breaks_at: str | None = None
        """A file of which only the first half is sent."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if not path:
            self._send(200)
        elif path.startswith("api/models/"):
            self._describe("/".join(path.split("/")[2:4]))
        elif "/resolve/" not in path:  # what else clients ask a hub, which differs from version to version
            self._send(404)
        else:
            owner, name, _, _, *rest = path.split("/")
            self._serve(f"{owner}/{name}", "/".join(rest))

    def _describe(self, repository: str) -> None:
        if (folder := self._find(repository)) is None:
            return
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        siblings = [
            {"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "blobId": "0"}
            for path in files
        ]
        self._send(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())

    def _find(self, repository: str) -> Path | None:
        if repository in self.server.gated:
            self._send(403, **{"X-Error-Code": "GatedRepo"})
        elif repository not in self.server.repositories:
            self._send(404, **{"X-Error-Code": "RepoNotFound"})
        else:
            return self.server.repositories[repository]
        return None

    def _serve(self, repository: str, name: str) -> None:
        if (folder := self._find(repository)) is None:
            return
        if not (folder / name).is_file():
            self._send(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = (folder / name).read_bytes()
        if self.command == "GET":
            self.server.downloaded.append(name)
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if self.command == "GET" and name == self.server.breaks_at:
            content = content[: len(content) // 2]
        self._send(206 if asked else 200, content[start:], ETag=etag, **{"X-Repo-Commit": COMMIT})

    def _send(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub is; its client has read HF_ENDPOINT long ago."""
    from huggingface_hub import HfApi, constants

    from customttt.backbones import hub

    template = "{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.format(endpoint=url))
    monkeypatch.setattr(hub, "HfApi", lambda: HfApi(url))
