"""Refuses requests whose Host header names another site, so that a foreign page cannot reach a local studio.

Gradio's own cross-origin check trusts the Host header; this closes that gap. Pure ASGI, no framework.
"""

from collections.abc import Iterable

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
REFUSAL = b"This address is not one that the studio answers to. Set MOBIQUANT_ALLOWED_HOSTS to add it.\n"


def host_name(header: str) -> str:
    """The name part of a Host header, lower case: `Example.org:80` -> `example.org`, `[::1]:80` -> `[::1]`."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[: header.find("]") + 1]
    return header.split(":", 1)[0]


def allowed_names(host: str, extra: str) -> frozenset[str]:
    """Loopback, the address listened on, and the names a deployment adds. `*` in `extra` allows every name."""
    return LOOPBACK | {host.lower()} | {name.strip().lower() for name in extra.split(",") if name.strip()}


class HostCheck:
    """ASGI middleware around the whole application."""

    def __init__(self, app, allowed: Iterable[str]) -> None:
        self.app = app
        self.allowed = frozenset(allowed)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] not in ("http", "websocket") or self._admits(scope):
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 421, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": REFUSAL})

    def _admits(self, scope) -> bool:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        return "*" in self.allowed or (len(hosts) == 1 and host_name(hosts[0].decode("latin-1")) in self.allowed)
