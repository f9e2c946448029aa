"""Who may speak to the page: this machine's own browser, on the page itself. No other site may, by whatever trick."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

OURS = ("127.0.0.1", "localhost")
Scope = MutableMapping[str, Any]
Channel = Callable[..., Awaitable[Any]]


class Door:
    """ASGI middleware that refuses what is asked for under another name (DNS rebinding) or from another site's page."""

    def __init__(self, app: Callable[[Scope, Channel, Channel], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        if scope["type"] != "http" or _is_ours(dict(scope["headers"])):
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"This page answers to itself alone."})


def _is_ours(headers: dict[bytes, bytes]) -> bool:
    host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin", b"").decode("latin-1")
    try:
        return urlsplit(f"//{host}").hostname in OURS and origin in ("", f"http://{host}")
    except ValueError:
        return False
