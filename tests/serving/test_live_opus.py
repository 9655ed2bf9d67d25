"""Live transcription of Opus audio, the format that browsers send."""

from __future__ import annotations

import io
import json
import os
import subprocess
from functools import cache

import pytest
import soundfile
from torch import Tensor

from tests.serving.live_client import END, SPEECH, connected, finals, parts, received, sent
from tests.serving.servers import Served, wait_until
from tiny_audio.audio.ffmpeg import has_ffmpeg
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.serving import live

pytestmark = pytest.mark.usefixtures("live_by_loudness")


@cache
def encoded(waveform: Tensor, container: str, codec: str = "libopus") -> bytes:
    wav = io.BytesIO()
    soundfile.write(wav, waveform.numpy(), SAMPLE_RATE, format="WAV")
    command = ["ffmpeg", "-v", "error", "-i", "pipe:0", "-c:a", codec, "-b:a", "64k", "-f", container, "pipe:1"]
    return subprocess.run(command, input=wav.getvalue(), capture_output=True, check=True).stdout


def ffmpeg_children() -> int:
    listed = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True)
    return listed.stdout.split().count("ffmpeg")


needs_ffmpeg = pytest.mark.skipif(not has_ffmpeg(), reason="needs the FFmpeg program")


@needs_ffmpeg
@pytest.mark.parametrize("container", ["webm", "ogg"])
def test_opus_is_decoded_while_it_arrives(server: Served, container: str) -> None:
    data = encoded(SPEECH, container)
    with connected(server, f"?encoding={container}") as socket:
        found = sent(socket, *parts(data, 1000), END)
    assert len(finals(found)) == 2
    assert found[-1]["type"] == "done"
    assert found[-1]["duration_s"] == pytest.approx(len(SPEECH) / SAMPLE_RATE, abs=0.1)
    assert finals(found)[0]["start_s"] == pytest.approx(0.3, abs=0.1)
    assert ffmpeg_children() == 0


@needs_ffmpeg
def test_data_that_is_not_opus_is_an_error(server: Served) -> None:
    vorbis = encoded(SPEECH, "webm", "libvorbis")
    for data in (b"no audio " * 3000, encoded(SPEECH, "ogg"), vorbis):
        with connected(server, "?encoding=webm") as socket:
            *_, error = sent(socket, *parts(data, 1000), END)
            assert (error["type"], socket.close_code) == ("error", 1007)
    assert ffmpeg_children() == 0


@needs_ffmpeg
@pytest.mark.parametrize("container", ["webm", "ogg"])
def test_a_stream_may_end_without_audio(server: Served, container: str) -> None:
    with connected(server, f"?encoding={container}") as socket:
        _, done = sent(socket, END)
        assert (done["type"], done["duration_s"], socket.close_code) == ("done", 0, 1000)


@needs_ffmpeg
def test_ffmpeg_ends_with_the_connection(server: Served) -> None:
    with connected(server, "?encoding=webm") as socket:
        socket.send(encoded(SPEECH, "webm")[:2000])
        assert json.loads(socket.recv())["type"] == "ready"
    wait_until(lambda: ffmpeg_children() == 0)


def test_opus_without_ffmpeg_is_an_error(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "has_ffmpeg", lambda: False)
    with connected(server, "?encoding=webm") as socket:
        (error,) = received(socket)
        assert "FFmpeg" in error["message"]
        assert socket.close_code == 1003
