"""Limits of upload size, duration and number of requests. Slow and disconnecting clients. The content of the log."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openai
import pytest
from torch import Tensor

from tests.serving.servers import Served, encoded, noise, serving, text_of, transcriber, wait_until
from tiny_audio.inference.chunking import Chunk
from tiny_audio.serving import errors, uploads
from tiny_audio.serving import server as server_module
from tiny_audio.serving.engine import Engine
from tiny_audio.serving.options import Limits

pytestmark = pytest.mark.usefixtures("one_thread")
CLIP = encoded(noise(1.0))
LIMITS = Limits(max_upload_bytes=200_000, max_duration_s=20.0, max_requests=2, upload_timeout_s=1.0)
END = b"\r\n--x--\r\n"
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'


@pytest.fixture(scope="module")
def limited(one_thread: None) -> Iterator[Served]:
    with serving(limits=LIMITS) as served:
        yield served


def ask(server: Served, data: bytes = CLIP, **parameters: Any) -> Any:
    with server.client() as client:
        found = client.audio.transcriptions.create(file=("a.wav", data), **({"model": "tiny"} | parameters))
        return list(found) if parameters.get("stream") else found


def is_idle(server: Served) -> bool:
    statistics = server.engine.statistics
    return statistics.waiting_chunks == 0 and _active(server) == 0


def _active(server: Served) -> int:
    return int(server.app.state.service.admission.requests)


@contextmanager
def connected(server: Served, *parts: bytes, length: int | None = None) -> Iterator[socket.socket]:
    """Send the head of a request and parts of its body. The head states ``length``, else the real one of the parts."""
    size = sum(map(len, parts)) if length is None else length
    head = (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {size}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head.encode() + b"".join(parts))
        yield connection


def answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Return the status, headers and JSON of a response."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += _some(connection)
    return int(first.split()[1]), headers, json.loads(body)


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    assert data, "the connection was closed without a response"
    return data


@dataclass
class Held:
    """The events of :func:`held`. ``has_stopped`` is set when the engine has paused."""

    has_stopped: threading.Event = field(default_factory=threading.Event)
    may_run: threading.Event = field(default_factory=threading.Event)


@contextmanager
def held(server: Served) -> Iterator[Held]:
    """Pause the engine before its next batch, until ``may_run`` is set or the context ends."""
    found, original = Held(), server.engine._transcriber.transcribe_chunks

    def wait_first(*arguments: Any, **options: Any) -> Any:
        found.has_stopped.set()
        assert found.may_run.wait(60)
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.engine._transcriber, "transcribe_chunks", wait_first)
        try:
            yield found
        finally:
            found.may_run.set()
            wait_until(lambda: is_idle(server))


def test_too_many_requests_get_429_with_a_retry_time(limited: Served) -> None:
    with held(limited), connected(limited, HEAD, CLIP, END) as one, connected(limited, HEAD, CLIP, END) as two:
        wait_until(lambda: _active(limited) == 2)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(limited)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        assert caught.value.code == "rate_limit_exceeded"
    with connected(limited, HEAD, CLIP, END) as one, connected(limited, HEAD, CLIP, END) as two:
        assert [answer(connection)[0] for connection in (one, two)] == [200, 200]
    # If the two requests have not ended yet, the client waits and sends its request again.
    with limited.client(max_retries=2) as client:
        assert client.audio.transcriptions.create(file=("a.wav", CLIP), model="tiny").text


def test_the_audio_in_memory_is_limited() -> None:
    with serving(limits=Limits(max_audio_s=3.0)) as server:
        with held(server), connected(server, HEAD, encoded(noise(2.0)), END):
            wait_until(lambda: server.engine.statistics.waiting_chunks or server.app.state.service.admission.audio_s)
            with pytest.raises(openai.RateLimitError, match="audio are waiting"):
                ask(server, encoded(noise(2.0)))
        assert server.app.state.service.admission.audio_s == 0
        assert ask(server, encoded(noise(2.0))).text


@pytest.mark.parametrize("is_stated", [True, False])
def test_large_uploads_are_rejected_while_they_arrive(
    limited: Served, is_stated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "_DISCARD_S", 0.1)
    if is_stated:
        with connected(limited, HEAD, length=10**12) as connection:
            status, _, body = answer(connection)
    else:
        chunk = b"%x\r\n" % 100_000 + b"x" * 100_000 + b"\r\n"
        head = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        with socket.create_connection(("127.0.0.1", limited.port), timeout=30) as connection:
            kind = b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            connection.sendall(head + kind + b"%x\r\n" % len(HEAD) + HEAD + b"\r\n" + chunk * 3)
            status, _, body = answer(connection)
    assert (status, body["error"]["code"]) == (413, "file_too_large")
    wait_until(lambda: is_idle(limited))


def test_long_recordings_in_small_files_are_rejected(limited: Served) -> None:
    bomb = encoded(np.zeros(600 * 16_000, np.float32), "FLAC")
    assert len(bomb) < LIMITS.max_upload_bytes
    with pytest.raises(openai.BadRequestError) as caught:
        ask(limited, bomb)
    assert caught.value.code == "too_long"


def test_slow_uploads_are_stopped() -> None:
    limits = Limits(upload_timeout_s=0.05)
    with serving(limits=limits) as server, connected(server, HEAD, length=100_000) as connection:
        status, _, body = answer(connection)
    assert (status, body["error"]["code"]) == (408, "upload_timeout")


def test_idle_uploads_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "IDLE_S", 0.05)
    limits = Limits(upload_timeout_s=600.0)
    with serving(limits=limits) as server, connected(server, HEAD, length=100_000) as connection:
        assert answer(connection)[0] == 408


def test_connections_with_slow_headers_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        with monkeypatch.context() as patch:
            patch.setattr(server_module, "HEAD_S", 0.05)
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
                connection.sendall(b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost:")
                assert connection.recv(1) == b""
        with connected(server, HEAD, CLIP, END) as running:
            with held(server):
                wait_until(lambda: _active(server) == 1)
                (protocol,) = server.server.server_state.connections
                for _ in range(2):  # check now, instead of waiting for the timer
                    protocol.loop.call_soon_threadsafe(protocol._check)  # type: ignore[union-attr]
            assert answer(running)[0] == 200


def test_a_request_that_takes_too_long_is_stopped() -> None:
    with serving(limits=Limits(request_timeout_s=0.2)) as server, held(server):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(server)
        assert caught.value.status_code == 504
        assert caught.value.response.headers["x-should-retry"] == "false"
        wait_until(lambda: server.engine.statistics.waiting_chunks == 0)
        with pytest.raises(openai.APIError, match="too long"):
            ask(server, stream=True)


def test_the_search_for_cuts_stops_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    has_ended = threading.Event()

    def search(blocks: Iterable[Tensor], is_stopped: Callable[[], bool]) -> list[Chunk]:
        wait_until(is_stopped)
        has_ended.set()
        return []

    with serving(limits=Limits(request_timeout_s=0.2)) as server:
        monkeypatch.setattr(server.engine, "chunks", search)
        with pytest.raises(openai.InternalServerError):
            ask(server)
        assert has_ended.wait(30)


@pytest.mark.parametrize("stream", [False, True])
def test_the_work_of_a_disconnected_client_is_canceled(limited: Served, stream: bool) -> None:
    more = b'--x\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n' if stream else b""
    with held(limited) as engine:
        with connected(limited, HEAD, CLIP, END):
            assert engine.has_stopped.wait(30)
            with connected(limited, more, HEAD, CLIP, END):
                wait_until(lambda: limited.engine.statistics.waiting_chunks == 1)
            wait_until(lambda: limited.engine.statistics.waiting_chunks == 0)
        wait_until(lambda: _active(limited) == 0)


def test_a_client_that_disconnects_while_sending_does_not_count(limited: Served) -> None:
    with connected(limited, HEAD, length=50_000):
        wait_until(lambda: _active(limited) == 1)
    wait_until(lambda: _active(limited) == 0, 0.9)


def test_running_requests_are_finished_before_shutdown() -> None:
    with serving() as server, held(server) as engine, connected(server, HEAD, CLIP, END) as connection:
        wait_until(lambda: _active(server) == 1)
        server.server.should_exit = True
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(30)
        engine.may_run.set()
        status, _, body = answer(connection)
    assert (status, body["text"]) == (200, text_of(CLIP))


def test_the_log_has_no_transcripts_unless_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    text = text_of(CLIP)
    for log_transcripts in (False, True):
        caplog.clear()
        with serving(log_transcripts=log_transcripts) as server:
            assert ask(server, prompt="a secret prompt").text == text
            assert "".join(event.delta for event in ask(server, stream=True) if event.type.endswith("delta")) == text
            # The server logs a request after its response was sent.
            wait_until(lambda: caplog.text.count("/v1/audio/transcriptions 200") == 2)
        assert caplog.text.count(text) == (2 if log_transcripts else 0)
        assert "secret" not in caplog.text
        assert "a.wav" not in caplog.text


def test_a_failure_of_the_server_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("on purpose")

    caplog.set_level(logging.INFO)
    origin = "https://page.example"
    with serving(allowed_origins=(origin,)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.engine, "enqueue", fail)
        with pytest.raises(openai.InternalServerError) as caught:
            ask(server, extra_headers={"Origin": origin})
        counted = 'tiny_audio_requests_total{path="/v1/audio/transcriptions",status="500"} 1.0'
        # The server counts and logs a request after its response was sent.
        wait_until(lambda: counted in server.app.state.service.metrics.text().decode())
        wait_until(lambda: "/v1/audio/transcriptions 500" in caplog.text)
    assert caught.value.status_code == 500
    headers = caught.value.response.headers
    assert headers["access-control-allow-origin"] == origin
    assert f"{headers['x-request-id']} failed" in caplog.text


def test_words_without_a_ctc_head_are_an_error() -> None:
    with serving(engine=Engine(transcriber(ctc=False))) as server:
        with pytest.raises(openai.BadRequestError, match="CTC head"):
            ask(server, response_format="verbose_json", timestamp_granularities=["word"])
        assert ask(server, response_format="vtt").startswith("WEBVTT\n")
