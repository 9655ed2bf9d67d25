"""Uploads and event streams, tested without a server. Uploads are decoded in blocks, and their temporary files are
closed. Slow clients get all texts, and clients that do not read are disconnected."""

from __future__ import annotations

import asyncio
import io
import threading
from contextlib import AsyncExitStack
from tempfile import SpooledTemporaryFile
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi import Request
from starlette import formparsers
from starlette.requests import ClientDisconnect
from starlette.types import Message

from tests.serving.servers import encoded, noise, transcriber, wait_until
from tiny_audio.inference.chunking import Chunk
from tiny_audio.serving import transcriptions
from tiny_audio.serving.admission import Admission
from tiny_audio.serving.engine import Engine
from tiny_audio.serving.errors import ApiError
from tiny_audio.serving.options import Limits, Options
from tiny_audio.serving.service import Service
from tiny_audio.serving.uploads import decode, receive_form

pytestmark = pytest.mark.usefixtures("one_thread", "pauses_by_loudness")
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'


def test_uploads_are_decoded_in_blocks() -> None:
    limits, samples = Limits(), 150 * 16_000
    file = io.BytesIO(encoded(torch.zeros(samples).numpy(), "FLAC"))
    with Admission(limits).enter() as ticket:
        blocks = decode(file, limits, ticket, threading.Event())
        first = len(next(blocks))
        assert ticket.samples == first < samples
        assert first + sum(map(len, blocks)) == ticket.samples == samples


def test_decoding_stops_if_a_recording_is_too_long() -> None:
    limits, sizes = Limits(max_duration_s=20.0), list[int]()
    file = io.BytesIO(encoded(torch.zeros(600 * 16_000).numpy(), "FLAC"))
    with Admission(limits).enter() as ticket, pytest.raises(ApiError):
        sizes.extend(len(block) for block in decode(file, limits, ticket, threading.Event()))
    assert sum(sizes) < 150 * 16_000


@pytest.mark.parametrize(("last", "error"), [("large", ApiError), ("slow", ApiError), ("gone", ClientDisconnect)])
def test_files_of_incomplete_uploads_are_closed(
    last: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[Any] = []

    def spooled(**options: Any) -> Any:
        files.append(SpooledTemporaryFile(**options))  # noqa: SIM115
        return files[-1]

    async def receive() -> Message:
        if not files:
            return {"type": "http.request", "body": HEAD + bytes(1000), "more_body": True}
        if last == "slow":
            await asyncio.sleep(10)
        return {"type": "http.request", "body": bytes(2000)} if last == "large" else {"type": "http.disconnect"}

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", spooled)
    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)
    with pytest.raises(error):
        asyncio.run(receive_form(request, Limits(max_upload_bytes=2000, upload_timeout_s=0.05)))
    assert [file.closed for file in files] == [True]


def test_a_client_that_reads_slowly_gets_all_texts_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [Chunk(index * 16_000, torch.from_numpy(noise(1.0, index))) for index in range(3)]
    with Engine(transcriber()) as engine:
        service, request = Service(engine, Options("tiny")), SimpleNamespace(state=SimpleNamespace(request_id="id"))

        async def read() -> list[str]:
            deadline = asyncio.get_running_loop().time() + 60
            events: Any = transcriptions._events(service, request, chunks, 3.0, None, deadline)  # type: ignore[arg-type]
            found = [await anext(events)]
            await asyncio.to_thread(wait_until, lambda: engine.statistics.chunks == len(chunks))
            monkeypatch.setattr(transcriptions, "time", SimpleNamespace(monotonic=lambda: deadline + 1))
            return found + [event async for event in events]

        found = asyncio.run(read())
    assert len(found) == len(chunks) + 1
    assert "transcript.text.done" in found[-1]


def test_a_client_that_does_not_read_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcriptions, "SEND_S", 0.01)

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(10)

    async def events() -> Any:
        yield "data: 1"

    async def respond(admission: Admission) -> None:
        stack = AsyncExitStack()
        stack.enter_context(admission.enter())
        with pytest.raises(ClientDisconnect):
            await transcriptions._Events(events(), stack)(
                {"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send
            )

    admission = Admission(Limits())
    asyncio.run(respond(admission))
    assert admission.requests == 0
