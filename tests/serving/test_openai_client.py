"""Requests from OpenAI's client and curl to a server with a tiny model."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pysubs2
import pytest
import webvtt
from openai.types import Model
from openai.types.audio import Transcription, TranscriptionVerbose
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.servers import LONG, Served, bursts, encoded, noise, text_of

CLIP, LONG_CLIP = encoded(noise(1.0)), encoded(bursts(LONG), "FLAC")


@pytest.fixture(scope="module")
def texts(one_thread: None) -> tuple[str, str]:
    """Return the texts that ``Transcriber.transcribe`` gives for the short and the long file."""
    return text_of(CLIP), text_of(LONG_CLIP)


def ask(server: Served, data: bytes = CLIP, name: str = "a clip.wav", **parameters: Any) -> Any:
    with server.client() as client:
        found = client.audio.transcriptions.create(file=(name, data), **({"model": "tiny"} | parameters))
        return list(found) if parameters.get("stream") else found


def test_json_is_the_default(server: Served, texts: tuple[str, str]) -> None:
    found = ask(server)
    assert isinstance(found, Transcription)
    Transcription.model_validate(found.model_dump(), strict=True)
    assert texts[0]
    assert found.text == texts[0]
    assert found.usage is not None
    assert found.usage.to_dict() == {"type": "duration", "seconds": 1}
    assert found._request_id


def test_text_can_be_requested(server: Served, texts: tuple[str, str]) -> None:
    assert ask(server, response_format="text") == texts[0] + "\n"


def test_long_recordings_get_the_text_of_transcribe(server: Served, texts: tuple[str, str]) -> None:
    found = ask(server, LONG_CLIP, "long.flac", response_format="verbose_json")
    assert len(found.segments) > LONG // 2
    assert found.text == texts[1]


def test_verbose_json_has_the_fields_that_openai_documents(server: Served, texts: tuple[str, str]) -> None:
    granularities = ["word", "segment"]
    raw = ask(server, language="en", response_format="verbose_json", timestamp_granularities=granularities)
    found = TranscriptionVerbose.model_validate(raw.model_dump(), strict=True)
    assert (found.text, found.language, found.duration) == (texts[0], "en", 1.0)
    (segment,) = found.segments or []
    assert (segment.id, segment.text, segment.start, segment.end) == (0, texts[0], 0.0, 1.0)
    assert segment.avg_logprob <= 0
    words = found.words or []
    assert [word.word for word in words] == texts[0].split()
    assert all(0 <= word.start < word.end <= 1.0 for word in words)


@pytest.mark.parametrize(
    ("granularities", "fields"), [(["word"], {"words"}), (["segment"], {"segments"}), ([], {"segments"})]
)
def test_only_the_requested_times_are_returned(server: Served, granularities: list[Any], fields: set[str]) -> None:
    parameters = {"timestamp_granularities": granularities} if granularities else {}
    found = ask(server, response_format="verbose_json", **parameters)
    assert {name for name in ("words", "segments") if getattr(found, name) is not None} == fields


def test_subtitles_can_be_requested(server: Served, texts: tuple[str, str]) -> None:
    for response_format in ("srt", "vtt"):
        found = ask(server, LONG_CLIP, response_format=response_format)
        parsed = pysubs2.SSAFile.from_string(found, format_=response_format)
        assert " ".join(event.plaintext.replace("\n", " ") for event in parsed) == texts[1]
    captions = webvtt.from_string(found)
    assert " ".join(caption.text.replace("\n", " ") for caption in captions) == texts[1]


def test_texts_can_be_streamed_as_events(server: Served, texts: tuple[str, str]) -> None:
    *deltas, done = ask(server, LONG_CLIP, stream=True)
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert len(deltas) > 3
    assert "".join(event.delta for event in deltas) == texts[1]
    assert (done.type, done.text) == ("transcript.text.done", texts[1])


def test_models_can_be_listed_and_retrieved(server: Served) -> None:
    with server.client() as client:
        (model,) = client.models.list().data
        Model.model_validate(model.model_dump(), strict=True)
        assert model.id == "tiny"
        assert client.models.retrieve("whisper-1") == client.models.retrieve("tiny") == model
        with pytest.raises(openai.NotFoundError, match="'other/one'"):
            client.models.retrieve("other/one")


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"include": ["logprobs"]}, "include"),
        ({"languages": ["en", "de"]}, "languages"),
        ({"known_speaker_names": ["ann"]}, "known_speaker_names"),
        ({"chunking_strategy": {"type": "server_vad"}}, "chunking_strategy"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[]"),
        ({"language": "../en"}, "language"),
        ({"extra_body": {"vad_filter": "true"}}, "vad_filter"),
        ({"stream": True, "response_format": "srt"}, "stream"),
    ],
)
def test_unsupported_parameters_are_an_error(server: Served, parameters: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, **parameters)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_parameters_without_effect_are_accepted(server: Served, texts: tuple[str, str]) -> None:
    found = ask(
        server,
        model="gpt-4o-transcribe",
        temperature=0,
        prompt="names",
        language="en",
        keywords=["ann"],
        chunking_strategy="auto",
    )
    assert found.text == texts[0]


def test_an_unknown_model_is_not_found(server: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(server, model="large")
    assert caught.value.code == "model_not_found"


def test_files_that_are_not_audio_are_an_error(server: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, b"no audio at all" * 100)
    assert (caught.value.param, caught.value.code) == ("file", "undecodable")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_the_sound_of_a_video_is_transcribed(server: Served, texts: tuple[str, str], tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    (tmp_path / "clip.wav").write_bytes(CLIP)
    picture = ("-f", "lavfi", "-i", "color=size=32x32:rate=5:duration=1")
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "clip.wav", *picture, "-c:a", "alac", film]
    subprocess.run(command, check=True)
    assert ask(server, film.read_bytes(), "film.mp4").text == texts[0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_can_be_used(server: Served, texts: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "long.flac").write_bytes(LONG_CLIP)
    form = ["-F", f"file=@{tmp_path / 'long.flac'}", "-F", "model=tiny"]
    command = ["curl", "-sS", f"{server.url}/v1/audio/transcriptions", *form]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["text"] == texts[1]


def test_health_and_metrics_are_available(server: Served, texts: tuple[str, str]) -> None:
    ask(server)
    with urlopen(f"{server.url}/health") as response:
        assert json.load(response)["status"] == "ok"
    with urlopen(f"{server.url}/metrics") as response:
        families = {family.name: family for family in text_string_to_metric_families(response.read().decode())}
    samples = families["tiny_audio_requests"].samples
    counted = {sample.labels["status"]: sample.value for sample in samples if "transcriptions" in sample.labels["path"]}
    assert counted["200"] >= 1
    assert families["tiny_audio_audio_seconds"].samples[0].value >= 1.0
    assert families["tiny_audio_active_requests"].samples[0].value == 0
