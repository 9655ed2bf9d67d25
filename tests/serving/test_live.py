"""Live transcription over a WebSocket: the protocol, its errors and its limits."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import pytest
import soundfile
import torch
from torch import Tensor
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from tests.serving.live_client import END, SPEECH, Message, connected, finals, from_pcm16, parts, pcm16, received, sent
from tests.serving.servers import Served, serving, transcriber, wait_until
from tests.support.models import assemble
from tests.support.paths import ROOT, SHARED
from tests.support.voice import Loudness, bursts
from tiny_audio.audio.load import load_audio
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.context import ContextSettings
from tiny_audio.model.prompt import Context
from tiny_audio.serving import live, live_session
from tiny_audio.serving.engine import Engine
from tiny_audio.serving.options import Limits, LiveLimits

pytestmark = pytest.mark.usefixtures("live_by_loudness")
LEARNED_VOICE_ACTIVITY = live.new_voice_activity


def assert_equal_to_transcriber(server: Served, waveform: Tensor, found: list[Message]) -> None:
    """Transcribe each utterance as a recording. Check that its text and words equal those of the stream."""
    spans = [(round(one["start_s"] * SAMPLE_RATE), round(one["end_s"] * SAMPLE_RATE)) for one in found]
    offline = transcriber(ctc=True).transcribe([waveform[start:end] for start, end in spans], word_timestamps=True)
    assert [one["text"] for one in found] == [one.text for one in offline]
    for one, wanted in zip(found, offline, strict=True):
        if "words" in one:
            words = [word for segment in wanted.segments for word in segment.words or ()]
            assert [word["word"] for word in one["words"]] == [word.text for word in words]
            assert [word["start_s"] - one["start_s"] for word in one["words"]] == pytest.approx(
                [word.start_s for word in words]
            )


def test_a_stream_gets_ready_then_texts_then_done(server: Served) -> None:
    data = pcm16(SPEECH)
    with connected(server, "?words=true") as socket:
        ready, *texts, done = sent(socket, *parts(data), END)
        assert socket.close_code == 1000
    assert ready == {"type": "ready", "sample_rate": 16000, "max_delay_s": transcriber(ctc=True).max_chunk_s + 0.5}
    assert done == {"type": "done", "duration_s": len(SPEECH) / SAMPLE_RATE}
    assert [one["utterance"] for one in finals(texts)] == [0, 1]
    assert any(one["words"] for one in finals(texts))
    assert_equal_to_transcriber(server, from_pcm16(data), finals(texts))


def test_partial_texts_come_before_the_end_of_the_utterance(server: Served) -> None:
    data = pcm16(bursts(0.5, 3.0))
    with connected(server) as socket:
        assert json.loads(socket.recv())["type"] == "ready"
        for part in parts(data):
            socket.send(part)
        partial = json.loads(socket.recv(timeout=10))
        assert set(partial) == {"type", "utterance", "start_s", "stable", "text"}
        assert (partial["type"], partial["utterance"]) == ("partial", 0)
        socket.send(END)
        *_, final, done = received(socket)
        assert "words" not in final
        assert (final["type"], done["type"]) == ("final", "done")


def test_voice_activity_does_not_delay_the_event_loop(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()

    class Noted(Loudness):
        def add(self, samples: Tensor) -> list[float]:
            threads.add(threading.current_thread().name)
            return super().add(samples)

    monkeypatch.setattr(live, "new_voice_activity", Noted)
    with connected(server) as socket:
        assert len(finals(sent(socket, *parts(pcm16(SPEECH)), END))) == 2
    assert threads
    assert not [name for name in threads if name.endswith("(run)")], "the event loop's thread must stay free"


def test_streams_do_not_disturb_each_other(server: Served) -> None:
    waveforms = [bursts(0.3, 0.4 + 0.2 * index, 0.7, 0.3) for index in range(3)]
    with connected(server) as one, connected(server) as two, connected(server) as three:
        sockets = (one, two, three)
        for step in range(10):
            for socket, waveform in zip(sockets, waveforms, strict=True):
                socket.send(pcm16(waveform[step * 3200 : (step + 1) * 3200]))
        for socket, waveform in zip(sockets, waveforms, strict=True):
            found = finals(sent(socket, END))
            assert len(found) == 2
            assert_equal_to_transcriber(server, from_pcm16(pcm16(waveform)), found)


@pytest.mark.parametrize("messages", [[END], [b"", END], [b"\0", END], [pcm16(torch.zeros(8000)), END]])
def test_streams_without_speech_end_without_text(server: Served, messages: list[bytes | str]) -> None:
    with connected(server) as socket:
        assert [one["type"] for one in sent(socket, *messages)] == ["ready", "done"]
        assert socket.close_code == 1000


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?encoding=mp3", 1003),
        ("?words=maybe", 1008),
        ("?sample_rate=8000", 1008),
        ("?encoding=", 1003),
        ("?words=true&words=false", 1008),
        ("?language=not+a+code", 1008),
    ],
)
def test_wrong_parameters_give_an_error_message_and_a_close_code(server: Served, query: str, code: int) -> None:
    with connected(server, query) as socket:
        (error,) = received(socket)
        assert (error["type"], socket.close_code) == ("error", code)


@pytest.mark.parametrize(
    ("message", "code"),
    [("hello", 1003), ('{"type":"audio"}', 1003), ("[]", 1003), ("9" * 5000, 1003), (bytes((1 << 20) + 1), 1009)],
)
def test_wrong_messages_give_an_error_message_and_a_close_code(server: Served, message: str | bytes, code: int) -> None:
    with connected(server) as socket:
        ready, error = sent(socket, message)
        assert (ready["type"], error["type"], socket.close_code) == ("ready", "error", code)


def test_prompt_and_language_are_the_context_of_every_utterance() -> None:
    settings = ContextSettings(hotwords=True, languages=("en", "de"))
    found = Transcriber(*assemble(context=settings), filter_hallucinations=False)
    with serving(engine=Engine(found)) as server:
        with connected(server, "?prompt=one,+two,+%C3%96&language=de") as socket:
            ready, *texts_and_done = sent(socket, pcm16(SPEECH), END)
        assert ready["hotwords_left_out"] == ["Ö"]
        texts = [(one["start_s"], one["end_s"], one["text"]) for one in finals(texts_and_done)]
        with connected(server, "?language=fr") as socket:
            (error,) = received(socket)
            assert (error["type"], socket.close_code) == ("error", 1008)
    waveform = from_pcm16(pcm16(SPEECH))
    clips = [waveform[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] for start, end, _ in texts]
    wanted = found.transcribe(clips, contexts=Context(("one", "two"), "", "de"))
    assert [text for _, _, text in texts] == [one.text for one in wanted]
    assert [text for _, _, text in texts] != [one.text for one in found.transcribe(clips)]


def test_a_request_without_a_websocket_gets_status_426(server: Served) -> None:
    with pytest.raises(HTTPError, match="426") as found:
        urllib.request.urlopen(f"{server.url}{live.PATH}")
    assert found.value.headers["Upgrade"] == "websocket"
    assert "WebSocket" in json.load(found.value)["error"]["message"]


def test_words_need_a_ctc_head() -> None:
    with serving(ctc=False) as server, connected(server, "?words=true") as socket:
        (error,) = received(socket)
        assert "CTC head" in error["message"]
        assert socket.close_code == 1008


def test_the_connection_of_a_silent_client_is_closed() -> None:
    with serving(live=LiveLimits(idle_timeout_s=0.1)) as server:
        with connected(server) as socket:
            ready, error = received(socket)
            assert (ready["type"], error["type"], socket.close_code) == ("ready", "error", 1008)
        with connected(server) as socket, pytest.raises(ConnectionClosed, match="1008"):
            wait_until(lambda: socket.send(b""))  # empty messages do not count as audio


def test_running_streams_are_limited() -> None:
    with serving(live=LiveLimits(max_streams=1)) as server:
        for _ in range(2):
            with connected(server) as first:
                assert json.loads(first.recv())["type"] == "ready"
                with connected(server) as second:
                    (error,) = received(second)
                    assert (error["type"], second.close_code) == ("error", 1013)
                assert sent(first, END)[-1]["type"] == "done"
        with connected(server) as lost:
            assert json.loads(lost.recv())["type"] == "ready"

        def is_free() -> bool:
            with connected(server) as socket:
                return bool(json.loads(socket.recv())["type"] == "ready")

        wait_until(is_free)


def test_audio_that_arrives_too_fast_has_to_wait() -> None:
    """If too much audio waits to be decoded, the server stops reading from the connection. No audio is lost."""
    waveform = bursts(*[0.6, 0.3] * 4)
    with serving(live=LiveLimits(max_waiting_s=0.5)) as server, connected(server) as socket:
        found = finals(sent(socket, *parts(pcm16(waveform), 1 << 19), END))
        assert len(found) == 4
        assert_equal_to_transcriber(server, from_pcm16(pcm16(waveform)), found)


def test_the_speed_of_audio_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(live_session, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
    with serving(live=LiveLimits(max_speed=0.01)) as server, connected(server) as socket:
        assert sent(socket, pcm16(torch.zeros(10 * SAMPLE_RATE)), END)[-1]["duration_s"] == 10.0
    # At this speed, 10 s of audio last 1000 s. The wait is shorter by the elapsed time and by the allowed head start.
    assert 900 < waits[-1] <= 10.0 / 0.01


def test_a_server_that_shuts_down_closes_its_streams() -> None:
    with serving() as server, connected(server) as socket:
        assert json.loads(socket.recv())["type"] == "ready"
        server.server.should_exit = True
        assert received(socket) == []
        assert socket.close_code == 1012


def test_metrics_and_the_log_have_the_streams(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tiny_audio.serving")
    with serving() as server, connected(server) as socket:
        assert json.loads(socket.recv())["type"] == "ready"
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            assert b"tiny_audio_live_streams 1.0" in answer.read()
        assert sent(socket, END)[-1]["type"] == "done"
    (message,) = [message for message in caplog.messages if message.startswith(live.PATH)]
    assert message.split()[1] == "1000"


def test_a_failure_of_the_server_gives_an_error_message(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object, **options: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(transcriber(ctc=True), "transcribe_chunks", failing)
    with connected(server) as socket:
        *_, error = sent(socket, pcm16(SPEECH), END)
        assert (error["type"], socket.close_code) == ("error", 1011)
        assert "broken" not in error["message"]


def test_a_stream_is_closed_if_a_transcription_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def transcribe(*arguments: object, **options: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Engine, "transcribe", transcribe)
    with serving(limits=Limits(request_timeout_s=0.2)) as server, connected(server) as socket:
        *_, error = sent(socket, pcm16(SPEECH), END)
        assert (error["type"], socket.close_code) == ("error", 1013)
        assert "0.2 s" in error["message"]
    assert "a live stream failed" not in caplog.text


def with_key(key: str) -> list[dict[str, Any]]:
    """Return two sets of connection options that send a key: the way of programs, and the way of browsers."""
    offered = [Subprotocol(f"openai-insecure-api-key.{key}"), Subprotocol("tiny-audio")]
    return [{"additional_headers": {"Authorization": f"Bearer {key}"}}, {"subprotocols": offered}]


def test_a_key_is_sent_in_a_header_or_as_a_subprotocol() -> None:
    with serving(api_keys=("secret",)) as server:
        for options in with_key("secret"):
            with connected(server, **options) as socket:
                assert json.loads(socket.recv())["type"] == "ready"
                assert socket.subprotocol == ("tiny-audio" if "subprotocols" in options else None)
        for options in with_key("wrong"):
            with pytest.raises(InvalidStatus, match="403"), connected(server, **options):
                pass


def test_web_pages_of_other_origins_are_rejected(server: Served) -> None:
    with pytest.raises(InvalidStatus, match="403"), connected(server, origin=Origin("https://other.example")):
        pass
    with connected(server, origin=Origin(server.url)) as socket:
        assert json.loads(socket.recv())["type"] == "ready"


def test_the_client_in_the_documentation_works(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (ROOT / "docs/live.md").read_text().partition("```python\n")[2].partition("```")[0]
    soundfile.write(tmp_path / "speech.wav", SPEECH.numpy(), SAMPLE_RATE)
    monkeypatch.setattr("sys.argv", ["client.py", str(tmp_path / "speech.wav")])
    exec(code.replace("8000", str(server.port)).replace("sleep(0.1)", "sleep(0)"), {})
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert (printed[0], printed.count("final"), printed[-1]) == ("ready", 2, "done")


@pytest.mark.skipif(not (SHARED / "speech").is_dir(), reason="needs ../shared/speech")
def test_recorded_speech_is_found_by_learned_voice_activity() -> None:
    row = json.loads((SHARED / "speech/an4/dev.jsonl").read_text().splitlines()[0])
    clip = load_audio(SHARED / "speech/an4" / row["audio_filepath"], max_duration_s=60.0)
    waveform = torch.cat([torch.zeros(SAMPLE_RATE), clip, torch.zeros(SAMPLE_RATE)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "new_voice_activity", LEARNED_VOICE_ACTIVITY)
        with serving() as server, connected(server) as socket:
            found = finals(sent(socket, *parts(pcm16(waveform)), END))
    assert found
    assert 0.7 < found[0]["start_s"] < found[-1]["end_s"] < len(waveform) / SAMPLE_RATE - 0.5
    assert_equal_to_transcriber(server, from_pcm16(pcm16(waveform)), found)
