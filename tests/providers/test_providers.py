"""Providers over real connections: what they send, what they make of answers, and of days when nothing works."""

from __future__ import annotations

import io
import itertools
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from pydantic import ValidationError

from tests.support.provider_server import KEY, TEXT, Fault, Vendors, limited, vendors
from tiny_audio.analysis.scoring import normalizer, score
from tiny_audio.audio.load import load_audio
from tiny_audio.config import UserError
from tiny_audio.providers import (
    PROVIDERS,
    Provider,
    ProviderError,
    ProviderRefusedError,
    ProviderTranscript,
    ProviderWord,
    encode,
)
from tiny_audio.providers._http import HttpConfig
from tiny_audio.runtime.retries import asked_wait_s

AUDIO = encode(0.1 * torch.sin(torch.arange(16_000) / 20))
VARIABLES = {
    "assemblyai": "ASSEMBLYAI_API_KEY",
    "deepgram": "DEEPGRAM_API_KEY",
    "elevenlabs": "ELEVENLABS_API_KEY",
    "openai": "OPENAI_API_KEY",
}
OVER_HTTP = [entry.name for entry in PROVIDERS.entries() if issubclass(entry.config, HttpConfig)]
SPEECH = Path(__file__).parents[3] / "shared" / "speech" / "librispeech-sample"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendors]:
    for variable in (*VARIABLES.values(), "MY_KEY"):
        monkeypatch.setenv(variable, KEY)
    with vendors() as state:
        yield state


@pytest.fixture
def make(server: Vendors) -> Iterator[Any]:
    """A provider of a name that asks the server, with short pauses."""
    made: list[Provider] = []

    def build(name: str, **fields: Any) -> Provider:
        fields = {"retry_wait_s": 0.01, "max_retries": 3} | fields
        fields.setdefault("base_url", server.url + ("/v1" if name.startswith("openai") else ""))
        if name == "openai_compatible":
            fields = {"model": "whisper", "key_variable": "MY_KEY"} | fields
        if name == "assemblyai":
            fields.setdefault("poll_every_s", 0.01)
        made.append(PROVIDERS.build(PROVIDERS.parse({"name": name, **fields})))
        return made[-1]

    yield build
    for provider in made:
        provider.close()


def test_there_are_providers() -> None:
    assert PROVIDERS.names() == [
        *("assemblyai", "deepgram", "elevenlabs", "openai", "openai_compatible", "pocketsphinx"),
    ]
    assert len(OVER_HTTP) == 5


@pytest.mark.parametrize("entry", PROVIDERS.entries(), ids=lambda entry: entry.name)
def test_every_config(entry: Any) -> None:
    config = entry.config.tiny()
    assert config == PROVIDERS.parse(config.model_dump(mode="json"))
    mine = entry.config.model_validate(config.model_dump() | {"usd_per_hour": 0.5}, strict=False).price()
    assert (mine.usd_per_hour, mine.source) == (0.5, "usd_per_hour")
    price = config.price()
    if entry.name == "openai_compatible":
        assert price is None
    else:
        assert price.usd_per_hour < 1
        assert price.source
        assert price == config.list_price()


def test_a_model_without_a_known_price_has_none() -> None:
    for name in ("assemblyai", "deepgram", "elevenlabs", "openai"):
        assert PROVIDERS.parse({"name": name, "model": "of tomorrow"}).price() is None


# --- what is asked and answered


def test_assemblyai(server: Vendors, make: Any) -> None:
    heard = make("assemblyai").transcribe(AUDIO)
    assert heard == ProviderTranscript(
        TEXT, (ProviderWord("Hello,", 0.0, 0.5, 0.9), ProviderWord("world.", 1.0, 1.5, 0.9))
    )
    upload, start, *looks = server.asked
    assert (upload.method, upload.path, upload.audio) == ("POST", "/v2/upload", AUDIO)
    assert upload.headers["content-type"] == "application/octet-stream"
    assert (start.method, start.path) == ("POST", "/v2/transcript")
    assert start.form == {
        "audio_url": "https://cdn.assemblyai.com/upload/0",
        "speech_models": ["universal-2"],
        "language_code": "en",
    }
    assert [(look.method, look.path) for look in looks] == [("GET", "/v2/transcript/job-0")] * 3
    assert {asked.headers["authorization"] for asked in server.asked} == {KEY}


def test_deepgram(server: Vendors, make: Any) -> None:
    heard = make("deepgram").transcribe(AUDIO)
    assert heard == ProviderTranscript(
        TEXT, (ProviderWord("Hello,", 0.0, 0.5, 0.9), ProviderWord("world.", 1.0, 1.5, 0.9))
    )
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.audio) == ("POST", "/v1/listen", AUDIO)
    assert asked.query == {"model": "nova-3", "smart_format": "true", "language": "en"}
    assert (asked.headers["authorization"], asked.headers["content-type"]) == (f"Token {KEY}", "audio/flac")


def test_elevenlabs(server: Vendors, make: Any) -> None:
    heard = make("elevenlabs").transcribe(AUDIO)
    assert heard == ProviderTranscript(TEXT, (ProviderWord("Hello,", 0.0, 0.5), ProviderWord("world.", 1.0, 1.5)))
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
    heard = make("openai", **options).transcribe(AUDIO)
    assert heard == ProviderTranscript(TEXT, (ProviderWord("Hello,", 0.0, 0.5), ProviderWord("world.", 1.0, 1.5)))
    form = server.asked[0].form
    assert form["response_format"] == "verbose_json"
    assert form["timestamp_granularities[]"] == "word"
    assert (form["prompt"], form["temperature"]) == ("Names: Morland.", "0.2")


def test_a_compatible_server_may_need_no_key(server: Vendors, make: Any) -> None:
    assert make("openai_compatible", key_variable=None).transcribe(AUDIO).text == TEXT
    assert "authorization" not in server.asked[0].headers


def test_the_language_may_be_found_out(server: Vendors, make: Any) -> None:
    for name in OVER_HTTP:
        make(name, language=None).transcribe(AUDIO)
    said = [asked.query | asked.form for asked in server.asked]
    assert sum("language" in one or "language_code" in one for one in said) == 0
    assert [one["detect_language"] for one in said if "smart_format" in one] == ["true"]
    assert [one["language_detection"] for one in said if "speech_models" in one] == [True]


@pytest.mark.parametrize("name", OVER_HTTP)
def test_silence_is_an_empty_text(server: Vendors, make: Any, name: str) -> None:
    server.texts[AUDIO] = ""
    assert make(name).transcribe(AUDIO).text == ""


@pytest.mark.parametrize("name", OVER_HTTP)
def test_everyone_gets_his_own_answer(server: Vendors, make: Any, name: str) -> None:
    clips = {encode(torch.full((800,), number / 50)): f"clip {number}" for number in range(20)}
    server.texts |= clips
    server.faults = [limited(retry_after_ms="5"), Fault("cut")] * 3
    provider = make(name, concurrency=5)
    with ThreadPoolExecutor(5) as pool:
        heard = list(pool.map(provider.transcribe, clips))
    assert [one.text for one in heard] == list(clips.values())


# --- AssemblyAI's jobs


def test_a_job_that_fails(server: Vendors, make: Any) -> None:
    server.statuses = ["processing", "error"]
    with pytest.raises(ProviderError, match=r"^assemblyai: transcript job-0 failed: Transcoding failed\.$"):
        make("assemblyai").transcribe(AUDIO)


def test_a_job_without_an_end(server: Vendors, make: Any) -> None:
    server.statuses = ["processing"]
    provider = make("assemblyai", timeout_s=0.2)
    with pytest.raises(ProviderError, match=r"transcript job-0 is processing after 0\.2 s \(timeout_s\)"):
        provider.transcribe(AUDIO)
    assert len(server.asked) > 4


def test_a_job_in_a_state_of_its_own(server: Vendors, make: Any) -> None:
    server.statuses = ["asleep"]
    with pytest.raises(ProviderError, match="transcript job-0 has the status 'asleep', which is unknown"):
        make("assemblyai").transcribe(AUDIO)


def test_a_finished_job_without_a_text(server: Vendors, make: Any) -> None:
    done = Fault("body", 200, body='{"id": "job-0", "status": "completed", "text": null}')
    server.statuses = ["queued"]
    provider = make("assemblyai", timeout_s=5)
    uploaded = Fault("body", 200, body='{"upload_url": "https://cdn.assemblyai.com/upload/0"}')
    server.faults = [uploaded, done]
    with pytest.raises(ProviderError, match="transcript job-0 is completed, and has no text"):
        provider.transcribe(AUDIO)


# --- bad days


@pytest.mark.parametrize("name", OVER_HTTP)
@pytest.mark.parametrize(
    "fault",
    [
        limited(retry_after="0"),
        limited(retry_after_ms="10"),
        limited(),
        Fault("status", 500),
        Fault("status", 503, body="<html>come back later</html>"),
        Fault("status", 408),
        Fault("cut"),
    ],
    ids=["429 with seconds", "429 with ms", "429", "500", "503", "408", "cut off"],
)
def test_what_passes_is_tried_again(server: Vendors, make: Any, name: str, fault: Fault) -> None:
    server.faults = [fault, fault]
    assert make(name).transcribe(AUDIO).text == TEXT
    first = server.asked[0]
    assert [asked.path for asked in server.asked].count(first.path) == 3
    assert [asked.audio for asked in server.asked[:3]] == [AUDIO] * 3  # the whole request, again


@pytest.mark.parametrize("name", OVER_HTTP)
def test_no_answer_in_time(server: Vendors, make: Any, name: str) -> None:
    server.faults = [Fault("stall")] * 2
    message = rf"^{name}: no answer from {server.url}\S* within 0\.2 s \(after 2 tries\)$"
    with pytest.raises(ProviderError, match=message):
        make(name, timeout_s=0.2, max_retries=1).transcribe(AUDIO)
    assert len(server.asked) == 2


@pytest.mark.parametrize("name", OVER_HTTP)
def test_errors_without_an_end(server: Vendors, make: Any, name: str) -> None:
    server.faults = [Fault("status", 502, body="Bad\n gateway")] * 3
    with pytest.raises(ProviderError, match=rf"^{name}: POST {server.url}/\S+ answered 502: Bad gateway \(after 3 tr"):
        make(name, max_retries=2).transcribe(AUDIO)
    assert len(server.asked) == 3


@pytest.mark.parametrize("name", OVER_HTTP)
@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_clip_that_is_refused_is_not_sent_again(server: Vendors, make: Any, name: str, status: int) -> None:
    server.faults = [Fault("status", status)]
    with pytest.raises(ProviderError, match=rf"answered {status}: .*on purpose") as caught:
        make(name).transcribe(AUDIO)
    assert not isinstance(caught.value, UserError)
    assert len(server.asked) == 1


@pytest.mark.parametrize("name", OVER_HTTP)
@pytest.mark.parametrize(
    "fault",
    [
        *(Fault("status", status) for status in (401, 402, 403, 404)),
        Fault("status", 429, body='{"error": {"message": "on purpose", "code": "insufficient_quota"}}'),
    ],
    ids=["401", "402", "403", "404", "no money"],
)
def test_who_is_refused_stops(server: Vendors, make: Any, name: str, fault: Fault) -> None:
    server.faults = [fault]
    with pytest.raises(
        ProviderRefusedError, match=rf"^{name}: POST {server.url}/\S+ answered {fault.status}: .*purpose"
    ):
        make(name).transcribe(AUDIO)
    assert len(server.asked) == 1


def test_a_key_goes_nowhere_in_the_open() -> None:
    fields = {"name": "openai_compatible", "base_url": "http://example.com/v1", "model": "whisper"}
    assert PROVIDERS.parse(fields).key_variable is None
    assert PROVIDERS.parse({**fields, "base_url": "https://example.com/v1", "key_variable": "MY_KEY"})
    assert PROVIDERS.parse({**fields, "base_url": "http://127.0.0.1:8000/v1", "key_variable": "MY_KEY"})
    with pytest.raises(ValidationError, match=r"would show the key of key_variable to everybody on the way; write it"):
        PROVIDERS.parse({**fields, "key_variable": "MY_KEY"})


@pytest.mark.parametrize("name", VARIABLES)
def test_a_wrong_key_is_not_shown(server: Vendors, make: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    secret = "sk-Wr0ngButSecret"
    monkeypatch.setenv(VARIABLES[name], secret)
    with pytest.raises(ProviderRefusedError, match="answered 401: ") as caught:
        make(name).transcribe(AUDIO)
    assert secret not in str(caught.value)
    if name == "openai":
        assert "Incorrect API key provided: (the key)." in str(caught.value)


@pytest.mark.parametrize("name", OVER_HTTP)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<html>hello</html>", r"answered 200 without JSON: '<html>hello</html>'"),
        ('{"text": "Hello wor', r"answered 200 without JSON: '\{\"text\": \"Hello wor'"),
        ("", "answered 200 without JSON: ''"),
        ("{}", r"answered something else than is documented: \w+: Field required"),
        ("[]", r"answered something else than is documented: Input should be"),
        ('{"error": "on purpose"}', r"answered something else than is documented: \w+: Field required"),
    ],
    ids=["HTML", "half", "nothing", "no field", "a list", "an error"],
)
def test_answers_that_are_none(server: Vendors, make: Any, name: str, body: str, message: str) -> None:
    server.faults = [Fault("body", 200, body=body)]
    with pytest.raises(ProviderError, match=rf"^{name}: {message}"):
        make(name).transcribe(AUDIO)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("name", "body", "place"),
    [
        ("openai", '{"text": null}', "text: Input should be a valid string"),
        ("elevenlabs", '{"text": "a", "words": [{"type": "word"}]}', r"words\.0\.text: Field required"),
        ("deepgram", '{"results": {"channels": []}}', r"results\.channels: List should have at least 1 item"),
        ("deepgram", '{"results": {"channels": [{"alternatives": []}]}}', r"alternatives: List should have at least"),
        ("deepgram", '{"results": {"channels": [{"alternatives": [{}]}]}}', "transcript: Field required"),
        ("assemblyai", '{"upload_url": 1}', "upload_url: Input should be a valid string"),
    ],
)
def test_answers_with_a_part_that_is_wrong(server: Vendors, make: Any, name: str, body: str, place: str) -> None:
    server.faults = [Fault("body", 200, body=body)]
    with pytest.raises(ProviderError, match=place):
        make(name).transcribe(AUDIO)


def test_a_server_that_is_not_there(make: Any) -> None:
    provider = make("openai_compatible", base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(ProviderError, match=r"http://127\.0\.0\.1:9/v1 cannot be reached: .* \(after 1 try\)$"):
        provider.transcribe(AUDIO)


def test_a_redirect_is_not_followed_with_the_key(server: Vendors, make: Any) -> None:
    server.faults = [Fault("status", 301, {"Location": "http://127.0.0.1:9/elsewhere"})]
    with pytest.raises(ProviderError, match="answered 301: "):
        make("openai").transcribe(AUDIO)


def test_a_server_may_say_whether_to_try_again(server: Vendors, make: Any) -> None:
    server.faults = [Fault("status", 400, {"x-should-retry": "true"})]
    assert make("openai").transcribe(AUDIO).text == TEXT
    server.faults = [Fault("status", 500, {"x-should-retry": "false"})]
    with pytest.raises(ProviderError, match="answered 500: "):
        make("openai").transcribe(AUDIO)


# --- pauses


def test_a_pause_is_as_long_as_is_asked_for(server: Vendors, make: Any) -> None:
    server.faults = [limited(retry_after_ms="150"), limited(retry_after="0.1")]
    make("deepgram").transcribe(AUDIO)
    first, second, third = (asked.at for asked in server.asked)
    assert second - first >= 0.15
    assert third - second >= 0.1


def test_where_one_is_told_to_wait_all_wait(server: Vendors, make: Any) -> None:
    provider = make("deepgram")
    server.faults = [limited(retry_after_ms="300")]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(provider.transcribe, AUDIO)
        while not server.asked or server.faults:
            time.sleep(0.002)
        time.sleep(0.1)  # the answer has to arrive
        second = pool.submit(provider.transcribe, AUDIO)
        assert first.result() == second.result()
    refused, *others = (asked.at for asked in server.asked)
    assert len(others) == 2
    assert min(others) - refused >= 0.3


def test_without_a_word_pauses_double(server: Vendors, make: Any) -> None:
    server.faults = [limited()] * 3
    make("deepgram", retry_wait_s=0.04).transcribe(AUDIO)
    times = [asked.at for asked in server.asked]
    pauses = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert all(pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08), strict=True))


def test_a_server_that_asks_for_no_pause_gets_one(server: Vendors, make: Any) -> None:
    server.faults = [limited(retry_after="0")] * 3
    make("deepgram", retry_wait_s=0.04).transcribe(AUDIO)
    pauses = [later.at - sooner.at for sooner, later in itertools.pairwise(server.asked)]
    assert all(pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08), strict=True))


def test_too_long_a_pause_is_a_failure(server: Vendors, make: Any) -> None:
    server.faults = [limited(retry_after="3600")]
    with pytest.raises(ProviderError, match=r"answered 429: .*\(it asks to wait 3600 s; max_wait_s is 120\)"):
        make("deepgram").transcribe(AUDIO)
    assert len(server.asked) == 1


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30),
        ({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"x-ratelimit-reset": "12"}, 12),
        ({"x-ratelimit-reset": "1800000009"}, 9),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m1.5s"}, 361.5),
        ({"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "6m0s"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h2s"}, 3602),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "?"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": ""}, None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    asked = asked_wait_s(headers, NOW)
    assert asked == (None if seconds is None else pytest.approx(seconds))


# --- configs and keys


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", [None, "", "  "])
def test_without_a_key(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    monkeypatch.delenv(VARIABLES[name], raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLES[name], value)
    message = rf"provider {name} needs a key, and the environment variable {VARIABLES[name]} is not set; .*export"
    with pytest.raises(UserError, match=message):
        PROVIDERS.build(PROVIDERS.parse(name))


@pytest.mark.parametrize("key", ["sk-two\nlines", "sk with a blank", "sk-ключ"])
def test_a_key_that_cannot_be_one(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("DEEPGRAM_API_KEY", key)
    with pytest.raises(UserError, match="DEEPGRAM_API_KEY holds characters that no key has; set it again") as caught:
        PROVIDERS.build(PROVIDERS.parse("deepgram"))
    assert key not in str(caught.value)


def test_the_variable_of_a_compatible_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    fields = {"name": "openai_compatible", "base_url": "http://localhost/v1", "model": "a", "key_variable": "MY_KEY"}
    with pytest.raises(UserError, match="openai_compatible needs a key, and the environment variable MY_KEY"):
        PROVIDERS.build(PROVIDERS.parse(fields))


@pytest.mark.parametrize(
    ("name", "url", "message"),
    [
        ("openai", "api.openai.com", "'api.openai.com' is no address; write it as https://host/path"),
        ("openai", "ftp://api.openai.com", "is no address"),
        ("openai", "https://", "is no address"),
        ("openai", "https://host:99999", "is no address"),
        ("openai", "http://api.openai.com/v1", "would show your key to everybody on the way; write it as https"),
        ("deepgram", "https://me:secret@api.deepgram.com", "must be a plain address, without user, password"),
        ("deepgram", "https://api.deepgram.com/?key=1", "must be a plain address"),
        ("openai_compatible", "nowhere", "is no address"),
    ],
)
def test_addresses_that_are_none(name: str, url: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PROVIDERS.parse({"name": name, "base_url": url, "model": "a"})


def test_addresses_that_may_be() -> None:
    for url in ("http://localhost:1/v1/", "http://127.0.0.1:1/v1", "http://[::1]:1/v1", "https://api.eu.example.com"):
        assert PROVIDERS.parse({"name": "openai", "base_url": url}).base_url == url.rstrip("/")  # type: ignore[attr-defined]
    PROVIDERS.parse({"name": "openai_compatible", "base_url": "http://gpu-box:8000/v1", "model": "a"})


# --- audio


def test_audio_as_it_is_sent() -> None:
    waveform = 0.5 * torch.sin(torch.arange(4_000) / 7)
    info = soundfile.info(io.BytesIO(encode(waveform)))
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 16_000, 1)
    torch.testing.assert_close(load_audio(encode(waveform), max_duration_s=1), waveform, atol=1e-4, rtol=0)
    loud = load_audio(encode(8 * waveform), max_duration_s=1)
    torch.testing.assert_close(loud, 2 * waveform, atol=1e-3, rtol=0)  # quieter, not clipped
    assert len(load_audio(encode(torch.zeros(800)), max_duration_s=1)) == 800


# --- pocketsphinx


@pytest.fixture(scope="module")
def sphinx() -> Iterator[Provider]:
    pytest.importorskip("pocketsphinx")
    provider = PROVIDERS.build(PROVIDERS.parse("pocketsphinx"))
    yield provider
    provider.close()


def test_pocketsphinx_hears_real_speech(sphinx: Provider) -> None:
    if not SPEECH.exists():
        pytest.skip("no recorded speech on this machine")
    rows = [json.loads(line) for line in (SPEECH / "all.jsonl").read_text().splitlines()]
    rows = sorted(rows, key=lambda row: float(row["duration"]))[:6]
    clips = [encode(load_audio(SPEECH / row["audio_filepath"], max_duration_s=20)) for row in rows]
    heard = [sphinx.transcribe(clip) for clip in clips]
    result = score([row["text"] for row in rows], [one.text for one in heard], normalizer("whisper_english"))
    assert result.wer < 0.6
    for one, row in zip(heard, rows, strict=True):
        assert one.words
        assert " ".join(word.text for word in one.words) == one.text
        assert all(0 <= word.start_s < word.end_s <= row["duration"] + 0.05 for word in one.words)
        assert all(0 <= (word.confidence or 0) <= 1 for word in one.words)
    assert [sphinx.transcribe(clip) for clip in reversed(clips)] == heard[::-1]


def test_pocketsphinx_on_what_is_too_short(sphinx: Provider) -> None:
    assert sphinx.transcribe(encode(torch.zeros(400))) == ProviderTranscript("", ())


def test_pocketsphinx_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(UserError, match=r"needs the package pocketsphinx: pip install 'tiny-audio\[pocketsphinx\]'"):
        PROVIDERS.build(PROVIDERS.parse("pocketsphinx"))
