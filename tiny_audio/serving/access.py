"""Access control: API keys, host names, and the web pages that may send requests."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tiny_audio.serving.errors import ApiError, discard_body
from tiny_audio.serving.options import Options

OPEN_PATHS = ("/", "/health")
"""Paths that need no key: the web page, which contains nothing secret, and the health check."""
OPEN_FOLDER = "/page/"
"""Files below this path need no key."""
KEY_PROTOCOL = "openai-insecure-api-key."
"""Prefix of the WebSocket subprotocol that carries the key, as in OpenAI's realtime API. Web pages cannot set the
headers of a WebSocket request, so they send the key as a subprotocol. They also offer another subprotocol, which the
server accepts."""


class AccessControl:
    """ASGI middleware that refuses requests without a valid key, and requests from web pages of other origins.

    A web page of any origin can send requests to a server on its visitor's machine. Therefore a page must come from
    this server or from an allowed origin. An attacker can also make the host name of a page point to that machine, so
    that the page seems to come from this server (DNS rebinding). Therefore a server without keys accepts only requests
    that are addressed to an IP address or to one of its own host names.
    """

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self._app = app
        self._digests = [_digest(key.encode("utf-8", "surrogateescape")) for key in options.api_keys]
        self._allowed = {origin.rstrip("/").lower() for origin in options.allowed_origins}
        self._hosts = {"localhost", options.host.lower(), socket.gethostname().lower()}
        self._hosts |= {name for origin in self._allowed if (name := urlsplit(origin).hostname)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        problem = self._problem(headers, origin)
        if problem is None and scope["type"] == "http":
            if _is_preflight(scope, headers):
                await _preflight(origin)(scope, receive, send)
                return
            # Add the CORS headers before the key check. Without them, the page could not read the error of that check.
            if origin is not None:
                send = _with_origin(send, origin)
        problem = problem or self._key_problem(scope["path"], headers)
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(problem, scope, receive, send)

    def _problem(self, headers: Headers, origin: str | None) -> ApiError | None:
        host = headers.get("host", "")
        if not self._digests and not self._is_own(host):
            return ApiError(
                403,
                f"{_hostname(host)!r} is not a host name of this server; a server without an API key accepts only its "
                "own host names and IP addresses; use the server's IP address, or start the server with --api-key, or "
                "allow the host name with --allow-origin",
                code="host_not_allowed",
            )
        if origin is None or origin.lower() in self._allowed or _netloc(origin) == host.lower():
            return None
        return ApiError(
            403,
            f"a web page of {origin!r} sent this request; start the server with --allow-origin {origin} to allow it",
            code="origin_not_allowed",
        )

    def _is_own(self, host: str) -> bool:
        name = _hostname(host)
        return name in self._hosts or _is_address(name)

    def _key_problem(self, path: str, headers: Headers) -> ApiError | None:
        if not self._digests or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return None
        given = list(_keys(headers))
        if any(_is_among(key, self._digests) for key in given):
            return None
        message = "the API key is not valid" if given else "an API key is needed: send `Authorization: Bearer KEY`"
        return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _keys(headers: Headers) -> Iterable[str]:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield key.strip()
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        if protocol.strip().startswith(KEY_PROTOCOL):
            yield protocol.strip().removeprefix(KEY_PROTOCOL)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _is_among(key: str, digests: Collection[bytes]) -> bool:
    """Whether a key from a header is valid. The duration of this check reveals nothing about the keys."""
    # Headers were decoded as Latin-1. Web pages encode a key as Latin-1, but most other clients as UTF-8. Accept both.
    given, found = [_digest(key.encode(encoding)) for encoding in ("latin-1", "utf-8")], False
    for digest in digests:
        for one in given:
            found |= hmac.compare_digest(one, digest)
    return found


def _hostname(host: str) -> str:
    """Return the host name without a port, in lower case. IPv6 addresses lose their brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host.lower()


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    # A request that is addressed to an IP address uses no host name, so it cannot be DNS rebinding.
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


def _preflight(origin: str | None) -> Response:
    headers = {
        "Access-Control-Allow-Origin": origin or "",
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "*, Authorization, Content-Type",
        "Access-Control-Max-Age": "600",
        "Vary": "Origin",
    }
    return PlainTextResponse("", 204, headers=headers)


def _with_origin(send: Send, origin: str) -> Send:
    async def send_allowed(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message["headers"],
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", b"x-request-id, retry-after, x-hotwords-left-out"),
                (b"vary", b"Origin"),
            ]
        await send(message)

    return send_allowed


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": error.code or ""})
        return
    await discard_body(receive)
    await error.response()(scope, receive, send)
