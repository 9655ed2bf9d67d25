"""Requests and results of providers, over real connections to a local server."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import soundfile
import torch

from tests.providers.requests import AUDIO, OVER_HTTP, SPEECH
from tests.support.fast import fast_ones
from tests.support.provider_server import KEY, TEXT, Fault, Vendors, limited
from tiny_audio.analysis.scoring import normalizer, score
from tiny_audio.audio.load import load_audio
from tiny_audio.config import UserError
from tiny_audio.providers import (
    PROVIDERS,
    Provider,
    ProviderError,
    ProviderTranscript,
    ProviderWord,
    encode,
)


def test_providers_are_registered() -> None:
    assert PROVIDERS.names() == [
        *("assemblyai", "deepgram", "elevenlabs", "openai", "openai_compatible", "pocketsphinx"),
    ]
    assert len(OVER_HTTP) == 5


# --- requests and responses


def test_assemblyai(server: Vendors, make: Any) -> None:
    transcript = make("assemblyai").transcribe(AUDIO)
    assert transcript == ProviderTranscript(
        TEXT, (ProviderWord("Hello,", 0.0, 0.5, 0.9), ProviderWord("world.", 1.0, 1.5, 0.9))
    )
    upload, start, *polls = server.asked
    assert (upload.method, upload.path, upload.audio) == ("POST", "/v2/upload", AUDIO)
    assert upload.headers["content-type"] == "application/octet-stream"
    assert (start.method, start.path) == ("POST", "/v2/transcript")
    assert start.form == {
        "audio_url": "https://cdn.assemblyai.com/upload/0",
        "speech_models": ["universal-2"],
        "language_code": "en",
    }
    assert [(poll.method, poll.path) for poll in polls] == [("GET", "/v2/transcript/job-0")] * 3
    assert {asked.headers["authorization"] for asked in server.asked} == {KEY}


def test_deepgram(server: Vendors, make: Any) -> None:
    transcript = make("deepgram").transcribe(AUDIO)
    assert transcript == ProviderTranscript(
        TEXT, (ProviderWord("Hello,", 0.0, 0.5, 0.9), ProviderWord("world.", 1.0, 1.5, 0.9))
    )
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.audio) == ("POST", "/v1/listen", AUDIO)
    assert asked.query == {"model": "nova-3", "smart_format": "true", "language": "en"}
    assert (asked.headers["authorization"], asked.headers["content-type"]) == (f"Token {KEY}", "audio/flac")


def test_elevenlabs(server: Vendors, make: Any) -> None:
    transcript = make("elevenlabs").transcribe(AUDIO)
    assert transcript == ProviderTranscript(TEXT, (ProviderWord("Hello,", 0.0, 0.5), ProviderWord("world.", 1.0, 1.5)))
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.audio) == ("POST", "/v1/speech-to-text", AUDIO)
    assert asked.form == {
        "model_id": "scribe_v2",
        "language_code": "en",
        "tag_audio_events": "false",
        "timestamps_granularity": "word",
        "filename": "clip.flac",
        "file_type": "audio/flac",
    }
    assert asked.headers["xi-api-key"] == KEY


@pytest.mark.parametrize("name", ["openai", "openai_compatible"])
def test_openai(server: Vendors, make: Any, name: str) -> None:
    assert make(name, model="whisper-1").transcribe(AUDIO) == ProviderTranscript(TEXT)
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.audio) == ("POST", "/v1/audio/transcriptions", AUDIO)
    assert asked.form == {
        "model": "whisper-1",
        "language": "en",
        "response_format": "json",
        "filename": "clip.flac",
        "file_type": "audio/flac",
    }
    assert asked.headers["authorization"] == f"Bearer {KEY}"


def test_openai_with_all_options(server: Vendors, make: Any) -> None:
    options = {"model": "whisper-1", "word_timestamps": True, "prompt": "Names: Morland.", "temperature": 0.2}
    transcript = make("openai", **options).transcribe(AUDIO)
    assert transcript == ProviderTranscript(TEXT, (ProviderWord("Hello,", 0.0, 0.5), ProviderWord("world.", 1.0, 1.5)))
    form = server.asked[0].form
    assert form["response_format"] == "verbose_json"
    assert form["timestamp_granularities[]"] == "word"
    assert (form["prompt"], form["temperature"]) == ("Names: Morland.", "0.2")


def test_a_compatible_server_may_need_no_key(server: Vendors, make: Any) -> None:
    assert make("openai_compatible", key_variable=None).transcribe(AUDIO).text == TEXT
    assert "authorization" not in server.asked[0].headers


def test_the_language_can_be_detected(server: Vendors, make: Any) -> None:
    for name in OVER_HTTP:
        make(name, language=None).transcribe(AUDIO)
    sent = [asked.query | asked.form for asked in server.asked]
    assert sum("language" in one or "language_code" in one for one in sent) == 0
    assert [one["detect_language"] for one in sent if "smart_format" in one] == ["true"]
    assert [one["language_detection"] for one in sent if "speech_models" in one] == [True]


@pytest.mark.parametrize("name", OVER_HTTP)
def test_silence_is_an_empty_text(server: Vendors, make: Any, name: str) -> None:
    server.texts[AUDIO] = ""
    assert make(name).transcribe(AUDIO).text == ""


@pytest.mark.parametrize("name", fast_ones(OVER_HTTP, "assemblyai", "openai"))
def test_concurrent_requests_get_their_own_results(server: Vendors, make: Any, name: str) -> None:
    clips = {encode(torch.full((800,), number / 50)): f"clip {number}" for number in range(12)}
    server.texts |= clips
    server.faults = [limited(retry_after_ms="5"), Fault("cut")] * 3
    provider = make(name, concurrency=5)
    with ThreadPoolExecutor(5) as pool:
        transcripts = list(pool.map(provider.transcribe, clips))
    assert [one.text for one in transcripts] == list(clips.values())


# --- AssemblyAI's jobs


def test_a_failed_job_is_a_failure(server: Vendors, make: Any) -> None:
    server.statuses = ["processing", "error"]
    with pytest.raises(ProviderError, match=r"^assemblyai: transcript job-0 failed: Transcoding failed\.$"):
        make("assemblyai").transcribe(AUDIO)


def test_a_job_that_does_not_end_is_a_failure(server: Vendors, make: Any) -> None:
    server.statuses = ["processing"]
    provider = make("assemblyai", timeout_s=0.2)
    with pytest.raises(ProviderError, match=r"transcript job-0 is processing after 0\.2 s \(timeout_s\)"):
        provider.transcribe(AUDIO)
    assert len(server.asked) > 4


def test_an_unknown_job_status_is_a_failure(server: Vendors, make: Any) -> None:
    server.statuses = ["asleep"]
    with pytest.raises(ProviderError, match="transcript job-0 has the status 'asleep', which is unknown"):
        make("assemblyai").transcribe(AUDIO)


def test_a_finished_job_without_a_text_is_handled(server: Vendors, make: Any) -> None:
    done = Fault("body", 200, body='{"id": "job-0", "status": "completed", "text": null}')
    server.statuses = ["queued"]
    provider = make("assemblyai", timeout_s=5)
    uploaded = Fault("body", 200, body='{"upload_url": "https://cdn.assemblyai.com/upload/0"}')
    server.faults = [uploaded, done]
    with pytest.raises(ProviderError, match="transcript job-0 is completed but has no text"):
        provider.transcribe(AUDIO)


# --- audio


def test_audio_is_sent_as_flac() -> None:
    waveform = 0.5 * torch.sin(torch.arange(4_000) / 7)
    info = soundfile.info(io.BytesIO(encode(waveform)))
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 16_000, 1)
    torch.testing.assert_close(load_audio(encode(waveform), max_duration_s=1), waveform, atol=1e-4, rtol=0)
    loud = load_audio(encode(8 * waveform), max_duration_s=1)
    torch.testing.assert_close(loud, 2 * waveform, atol=1e-3, rtol=0)  # attenuated instead of clipped
    assert len(load_audio(encode(torch.zeros(800)), max_duration_s=1)) == 800


# --- pocketsphinx


@pytest.fixture(scope="module")
def sphinx() -> Iterator[Provider]:
    pytest.importorskip("pocketsphinx")
    provider = PROVIDERS.build(PROVIDERS.parse("pocketsphinx"))
    yield provider
    provider.close()


@pytest.mark.slow
def test_pocketsphinx_transcribes_real_speech(sphinx: Provider) -> None:
    if not SPEECH.exists():
        pytest.skip("no recorded speech on this machine")
    rows = [json.loads(line) for line in (SPEECH / "all.jsonl").read_text().splitlines()]
    rows = sorted(rows, key=lambda row: float(row["duration"]))[:6]
    clips = [encode(load_audio(SPEECH / row["audio_filepath"], max_duration_s=20)) for row in rows]
    transcripts = [sphinx.transcribe(clip) for clip in clips]
    result = score([row["text"] for row in rows], [one.text for one in transcripts], normalizer("whisper_english"))
    assert result.wer < 0.6
    for one, row in zip(transcripts, rows, strict=True):
        assert one.words
        assert " ".join(word.text for word in one.words) == one.text
        assert all(0 <= word.start_s < word.end_s <= row["duration"] + 0.05 for word in one.words)
        assert all(0 <= (word.confidence or 0) <= 1 for word in one.words)
    assert [sphinx.transcribe(clip) for clip in reversed(clips)] == transcripts[::-1]


def test_pocketsphinx_gives_no_text_for_very_short_audio(sphinx: Provider) -> None:
    assert sphinx.transcribe(encode(torch.zeros(400))) == ProviderTranscript("", ())


def test_a_missing_pocketsphinx_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(UserError, match=r"needs the package pocketsphinx: pip install 'tiny-audio\[pocketsphinx\]'"):
        PROVIDERS.build(PROVIDERS.parse("pocketsphinx"))
