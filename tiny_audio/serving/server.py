"""The HTTP server. It finishes running requests before it stops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from tiny_audio.config import UserError
from tiny_audio.serving.metrics import LOG

HEAD_S = 20.0
"""Interval in seconds at which each connection is checked. The connection is closed if no request is running and none
has begun since the previous check."""
_MAX_CONNECTIONS = 1000
_SHUTDOWN_S = 600
_MAX_MESSAGE_BYTES = 2 << 20
"""After a larger message, uvicorn closes a WebSocket without an error message. Live streams have a lower limit,
``LiveLimits.max_message_bytes``. If a message exceeds that limit, the client receives an error message."""


class TimedProtocol(H11Protocol):
    """Closes a connection if the headers of a request arrive too slowly. uvicorn would wait for them forever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer."""
        super().connection_made(transport)
        self._seen: object = None
        self.loop.call_later(HEAD_S, self._check)

    def _check(self) -> None:
        # A WebSocket is not in `self.connections`, because uvicorn's WebSocket protocol has taken over its connection.
        if self.transport.is_closing() or self not in self.connections:
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is self._seen:
            self.transport.close()
            return
        self._seen = self.cycle
        self.loop.call_later(HEAD_S, self._check)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Port 0 means any free port.

    Raises:
        UserError: the address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: a part of the host name is empty or long
        raise UserError(
            f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}; give another --port "
            "or --host"
        ) from error


class Server(uvicorn.Server):
    """A server for an application.

    Args:
        app: the application.
        on_started: called when the server accepts requests and handles signals.
        end_at_once: called after a second Ctrl-C if requests are still running. It ends the process.
    """

    def __init__(
        self,
        app: FastAPI,
        on_started: Callable[[], object] = lambda: None,
        end_at_once: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=TimedProtocol,
                ws="websockets-sansio",
                ws_max_size=_MAX_MESSAGE_BYTES,
                # Compression hardly shrinks audio. And a small compressed message could expand to a huge one.
                ws_per_message_deflate=False,
                # While the server makes a client wait, it reads nothing from the client, not even answers to pings.
                ws_ping_timeout=None,
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,  # the access log would contain the queries
                server_header=False,
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_graceful_shutdown=_SHUTDOWN_S,
            )
        )
        self._on_started, self._end_at_once = on_started, end_at_once

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and then call ``on_started``."""
        await super().startup(sockets)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the running requests, or end at once after a second Ctrl-C."""
        if self.server_state.tasks:
            LOG.info("finishing the running requests, then stopping; press Ctrl-C to stop at once")
        await super().shutdown(sockets)
        if self.force_exit:
            self._end_at_once()

    def serve_until_signal(self, listening: socket.socket) -> None:
        """Serve until SIGTERM or Ctrl-C. Then finish the running requests."""
        with contextlib.suppress(KeyboardInterrupt):  # after the shutdown, uvicorn raises the signal again
            self.run(sockets=[listening])
