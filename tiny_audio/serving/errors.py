"""Error responses in the form of OpenAI's API, which OpenAI's clients raise as exceptions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = logging.getLogger(__name__)
_DISCARDED_BYTES, _DISCARD_S = 1 << 20, 1.0
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error that is sent as the response to a request.

    Args:
        status: the HTTP status.
        message: what was given, what is allowed, what to do.
        param: the form field that caused the error.
        code: a code for programs.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON object of the response."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the response."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def handle_errors(app: FastAPI) -> None:
    """Answer every error that a client causes, such as an unknown path, with a JSON object."""

    @app.exception_handler(ApiError)
    def known(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    def of_the_framework(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(RequestValidationError)
    def of_a_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return ApiError(400, f"{request.method} {request.url.path}: {first['loc'][-1]}: {first['msg']}").response()


def failure() -> ApiError:
    """Return the answer to an internal error."""
    return ApiError(500, "the server failed; its log has the reason")


class Failures:
    """ASGI middleware that answers internal errors with a JSON object.

    Starlette's own handler runs outside of all other middleware. Therefore its responses would have no request id, and
    web pages of other origins could not read them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        has_begun = False

        async def send_noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except ClientDisconnect:
            raise
        except Exception:
            if has_begun or scope["type"] != "http":
                raise  # uvicorn then closes the connection, so the client notices that the response is incomplete
            _LOG.exception("%s failed", scope["state"]["request_id"])
            await failure().response()(scope, receive, send)


async def discard_body(receive: Receive) -> None:
    """Read and discard a request's body, up to 1 MiB and for at most a second. Call this before an error response.

    If the connection is closed while a client is still sending, the client often does not see the response.
    """
    size = 0
    try:
        async with asyncio.timeout(_DISCARD_S):
            while size < _DISCARDED_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return
