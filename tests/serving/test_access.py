"""Access to the server: keys, host names and the origins of web pages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message

from tiny_audio.config import UserError
from tiny_audio.serving.access import AccessControl
from tiny_audio.serving.options import Options
from tiny_audio.serving.server import listen

KEYS = ("sk-one", "sk-two")


def ask(
    headers: dict[str, str],
    *,
    path: str = "/v1/models",
    method: str = "GET",
    kind: str = "http",
    encoding: str = "utf-8",
    **options: Any,
) -> tuple[int, dict[str, str]]:
    """Return the status and headers of the response. For a WebSocket, the status is 101 or a close code."""
    sent: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if kind == "websocket":
            await send({"type": "websocket.accept"})
        else:
            await PlainTextResponse("ok")(scope, receive, send)

    async def receive() -> Message:
        return {"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    given = {"Host": "localhost:8000"} | headers
    raw = [(name.lower().encode(), value.encode(encoding)) for name, value in given.items()]
    scope = {"type": kind, "path": path, "method": method, "headers": raw}
    asyncio.run(AccessControl(app, Options("tiny", **options))(scope, receive, send))
    first = sent[0]
    if kind == "websocket":
        return (101 if first["type"] == "websocket.accept" else first["code"]), {}
    return first["status"], {name.decode(): value.decode() for name, value in first["headers"]}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "192.168.0.7:8000"])
def test_local_host_names_are_accepted(host: str) -> None:
    assert ask({"Host": host})[0] == 200
    assert ask({"Host": host, "Origin": f"http://{host}"})[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8000", "", "127.0.0.1.evil.example", "[", "a b"]
)
def test_other_host_names_are_rejected_without_a_key(host: str) -> None:
    assert ask({"Host": host})[0] == 403
    assert ask({"Host": host, "Origin": f"http://{host}"}, kind="websocket")[0] == 1008
    assert ask({"Host": host}, path="/")[0] == 403


def test_an_allowed_origin_without_a_host_allows_no_host_name() -> None:
    assert ask({"Host": ""}, allowed_origins=("null",))[0] == 403


def test_the_configured_host_name_is_accepted() -> None:
    assert ask({"Host": "asr.example"}, host="asr.example")[0] == 200
    assert ask({"Host": "asr.example"}, allowed_origins=("https://asr.example",))[0] == 200
    assert ask({"Host": "asr.example", "Authorization": "Bearer sk-two"}, api_keys=KEYS)[0] == 200


@pytest.mark.parametrize("host", ["..", "a" * 70])
def test_a_host_that_cannot_be_a_name_is_an_error(host: str) -> None:
    with pytest.raises(UserError, match=f"cannot listen on {host} port 0: "):
        listen(host, 0)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9000", "file://", "["])
def test_pages_of_other_origins_are_rejected(origin: str) -> None:
    assert ask({"Origin": origin})[0] == 403
    assert ask({"Origin": origin}, kind="websocket")[0] == 1008
    assert ask({"Origin": origin, "Access-Control-Request-Method": "POST"}, method="OPTIONS")[0] == 403
    key = {"Authorization": "Bearer sk-one"}
    assert ask(key | {"Origin": origin}, api_keys=KEYS)[0] == 403


def test_pages_of_an_allowed_origin_are_accepted() -> None:
    origin = "https://page.example"
    status, headers = ask({"Origin": origin}, allowed_origins=(origin + "/",))
    assert (status, headers["access-control-allow-origin"], headers["vary"]) == (200, origin, "Origin")
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    status, headers = ask(preflight, method="OPTIONS", allowed_origins=(origin,), api_keys=KEYS)
    assert (status, headers["access-control-allow-origin"]) == (204, origin)
    status, headers = ask({"Origin": origin}, allowed_origins=(origin,), api_keys=KEYS)
    assert (status, headers["access-control-allow-origin"]) == (401, origin)
    assert ask({"Origin": origin}, kind="websocket", allowed_origins=(origin,))[0] == 101


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer sk-one"}, 200),
        ({"Authorization": "bearer  sk-two "}, 200),
        ({"Authorization": "Bearer sk-"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic sk-one"}, 401),
        ({"Authorization": "Bearer sk-one,sk-two"}, 401),
        ({"Authorization": "Bearer sk-ünicode"}, 401),
    ],
)
def test_only_correct_keys_are_accepted(headers: dict[str, str], status: int) -> None:
    found, answer = ask(headers, api_keys=KEYS)
    assert found == status
    assert ("www-authenticate" in answer) == (status == 401)


def test_keys_can_have_any_characters() -> None:
    escaped = "sk-\udcff"  # Python's form of the byte 0xFF in an argument
    keys = ("sk-ünicode", "sk-密钥", escaped)
    for given in ("sk-ünicode".encode(), "sk-ünicode".encode("latin-1"), "sk-密钥".encode(), b"sk-\xff"):
        assert ask({"Authorization": f"Bearer {given.decode('latin-1')}"}, encoding="latin-1", api_keys=keys)[0] == 200
    assert ask({"Authorization": "Bearer sk-ünicod"}, api_keys=keys)[0] == 401


def test_the_page_and_the_health_check_need_no_key() -> None:
    for path, status in {"/": 200, "/health": 200, "/page/page.js": 200, "/metrics": 401, "/docs": 401}.items():
        assert ask({}, path=path, api_keys=KEYS)[0] == status


def test_a_websocket_needs_a_key() -> None:
    for protocols, status in {"": 1008, "tiny-audio": 1008, "tiny-audio, openai-insecure-api-key.sk-two": 101}.items():
        headers = {"Sec-WebSocket-Protocol": protocols} if protocols else {}
        assert ask(headers, kind="websocket", api_keys=KEYS)[0] == status
