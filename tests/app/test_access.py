"""Only hosts that were named get an answer."""

import pytest

from app.access import HostCheck, allowed_names, host_name


@pytest.mark.parametrize(
    "header, name",
    [("Example.org:80", "example.org"), ("[::1]:7860", "[::1]"), ("localhost", "localhost"), ("", "")],
)
def test_host_name(header, name):
    assert host_name(header) == name


def ask(host_headers: list[bytes], allowed=None) -> int:
    seen = []

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        seen.append(message)

    scope = {"type": "http", "headers": [(b"host", value) for value in host_headers]}
    names = allowed_names("127.0.0.1", "") if allowed is None else allowed
    # Nothing here waits, so it ends at its first step; a loop of its own could not run beside the browser's.
    with pytest.raises(StopIteration):
        HostCheck(application, names)(scope, None, send).send(None)
    return seen[0]["status"]


@pytest.mark.parametrize("host", [b"localhost:7860", b"127.0.0.1", b"[::1]:7860", b"LOCALHOST"])
def test_own_names_are_served(host):
    assert ask([host]) == 200


@pytest.mark.parametrize(
    "hosts",
    [
        [b"evil.example"],
        [b"localhost.evil.example"],
        [b"127.0.0.1.evil"],
        [b""],
        [],
        [b"localhost", b"evil"],
        [b"\xff"],
    ],
)
def test_foreign_names_are_refused(hosts):
    assert ask(hosts) == 421


def test_more_names_can_be_added():
    assert ask([b"studio.example:443"], allowed_names("0.0.0.0", " Studio.example ")) == 200  # noqa: S104
    assert ask([b"anything"], allowed_names("127.0.0.1", "*")) == 200
