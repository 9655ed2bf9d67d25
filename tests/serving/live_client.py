"""A client for live transcription over a WebSocket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.serving.servers import Served
from tests.support.voice import bursts
from tiny_audio.serving import live

Message = dict[str, Any]
SPEECH = bursts(0.4, 0.6, 0.7, 0.3, 0.2, 0.2, 0.6)
END = '{"type":"end"}'


@contextmanager
def connected(server: Served, query: str = "", **options: Any) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{server.port}{live.PATH}{query}", compression=None, **options) as socket:
        yield socket


def pcm16(waveform: Tensor) -> bytes:
    return (waveform * 32768).round().to(torch.int16).numpy().astype("<i2").tobytes()


def from_pcm16(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.int16).float() / 32768


def parts(data: bytes, size: int = 6401) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def received(socket: ClientConnection) -> list[Message]:
    """Wait until the server closes the connection. Return all of its messages."""
    found = []
    try:
        while True:
            found.append(json.loads(socket.recv(timeout=20)))
    except ConnectionClosed:
        return found


def sent(socket: ClientConnection, *messages: bytes | str) -> list[Message]:
    """Send messages, wait until the server closes the connection, and return all of its messages."""
    try:
        for message in messages:
            socket.send(message)
    except ConnectionClosed:
        pass
    return received(socket)


def finals(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message["type"] == "final"]
