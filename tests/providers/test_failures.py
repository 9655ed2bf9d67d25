"""Failures of providers: retries, pauses, rejected keys, and invalid responses."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from tests.providers.requests import AUDIO, OVER_HTTP, VARIABLES
from tests.support.fast import fast_ones
from tests.support.provider_server import TEXT, Fault, Vendors, limited
from tiny_audio.config import UserError
from tiny_audio.providers import (
    PROVIDERS,
    ProviderError,
    ProviderRefusedError,
)
from tiny_audio.runtime.retries import asked_wait_s


def crossed(parameter: str, cases: list[Any], ids: list[str]) -> pytest.MarkDecorator:
    """Parametrize a test with every provider and every case.

    The fast run has the first case for every provider, and all cases for Deepgram, which needs only one request per
    clip.
    """
    rows = []
    for index, (case, label) in enumerate(zip(cases, ids, strict=True)):
        for name in OVER_HTTP:
            marks = () if index == 0 or name == "deepgram" else pytest.mark.slow
            values = (name, *case) if isinstance(case, tuple) else (name, case)
            rows.append(pytest.param(*values, id=f"{label}-{name}", marks=marks))
    return pytest.mark.parametrize(f"name,{parameter}", rows)


# --- failures


@crossed(
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
    ids=["429 with seconds", "429 with ms", "429", "500", "503", "408", "cut connection"],
)
def test_temporary_failures_are_retried(server: Vendors, make: Any, name: str, fault: Fault) -> None:
    server.faults = [fault, fault]
    assert make(name).transcribe(AUDIO).text == TEXT
    first = server.asked[0]
    assert [asked.path for asked in server.asked].count(first.path) == 3
    assert [asked.audio for asked in server.asked[:3]] == [AUDIO] * 3  # the whole request is repeated


# Only Deepgram is in the fast run, because all of these providers share the code for timeouts and retries.
@pytest.mark.parametrize("name", fast_ones(OVER_HTTP, "deepgram"))
def test_a_timeout_is_a_failure(server: Vendors, make: Any, name: str) -> None:
    server.faults = [Fault("stall")] * 2
    message = rf"^{name}: no answer from {server.url}\S* within 0\.2 s \(after 2 tries\)$"
    with pytest.raises(ProviderError, match=message):
        make(name, timeout_s=0.2, max_retries=1).transcribe(AUDIO)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx2.ConnectTimeout, r"no connection to http\S+ within 30 s \(after 2 tries\)$"),
        (httpx2.DecodingError, r"the connection to http\S+ broke off: damaged \(after 2 tries\)$"),
    ],
)
def test_a_failed_connection_is_described(
    make: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("damaged")

    monkeypatch.setattr(httpx2.Client, "request", fail)
    with pytest.raises(ProviderError, match=f"^deepgram: {message}"):
        make("deepgram", max_retries=1).transcribe(AUDIO)


@pytest.mark.parametrize("name", fast_ones(OVER_HTTP, "assemblyai", "deepgram"))
def test_permanent_failures_stop_after_the_last_retry(server: Vendors, make: Any, name: str) -> None:
    server.faults = [Fault("status", 502, body="Bad\n gateway")] * 3
    with pytest.raises(ProviderError, match=rf"^{name}: POST {server.url}/\S+ answered 502: Bad gateway \(after 3 tr"):
        make(name, max_retries=2).transcribe(AUDIO)
    assert len(server.asked) == 3


@crossed("status", [400, 413, 415, 422], ["400", "413", "415", "422"])
def test_a_rejected_clip_is_not_sent_again(server: Vendors, make: Any, name: str, status: int) -> None:
    server.faults = [Fault("status", status)]
    with pytest.raises(ProviderError, match=rf"answered {status}: .*on purpose") as caught:
        make(name).transcribe(AUDIO)
    assert not isinstance(caught.value, UserError)
    assert len(server.asked) == 1


@crossed(
    "fault",
    [
        *(Fault("status", status) for status in (401, 402, 403, 404)),
        Fault("status", 429, body='{"error": {"message": "on purpose", "code": "insufficient_quota"}}'),
    ],
    ids=["401", "402", "403", "404", "quota used up"],
)
def test_a_rejected_account_is_not_retried(server: Vendors, make: Any, name: str, fault: Fault) -> None:
    server.faults = [fault]
    with pytest.raises(
        ProviderRefusedError, match=rf"^{name}: POST {server.url}/\S+ answered {fault.status}: .*purpose"
    ):
        make(name).transcribe(AUDIO)
    assert len(server.asked) == 1


def test_keys_are_not_sent_unencrypted() -> None:
    fields = {"name": "openai_compatible", "base_url": "http://example.com/v1", "model": "whisper"}
    assert PROVIDERS.parse(fields).key_variable is None
    assert PROVIDERS.parse({**fields, "base_url": "https://example.com/v1", "key_variable": "MY_KEY"})
    assert PROVIDERS.parse({**fields, "base_url": "http://127.0.0.1:8000/v1", "key_variable": "MY_KEY"})
    with pytest.raises(ValidationError, match=r"would send the key of key_variable unencrypted; write base_url"):
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


def test_a_long_key_in_a_long_response_is_not_shown(
    server: Vendors, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key must be replaced before the response is shortened, because half a key would not be recognized."""
    secret = "sk-proj-" + "4x" * 80
    monkeypatch.setenv(VARIABLES["openai"], secret)
    server.faults = [Fault("body", 200, body="<" * 200 + secret)]
    with pytest.raises(ProviderError, match=r"without JSON: '<+\(the key\)'") as caught:
        make("openai").transcribe(AUDIO)
    assert secret[:8] not in str(caught.value)


@crossed(
    "body,message",
    [
        ("<html>hello</html>", r"answered 200 without JSON: '<html>hello</html>'"),
        ('{"text": "Hello wor', r"answered 200 without JSON: '\{\"text\": \"Hello wor'"),
        ("", "answered 200 without JSON: ''"),
        ("{}", r"returned a response that does not match its documentation: \w+: Field required"),
        ("[]", r"returned a response that does not match its documentation: Input should be"),
        ('{"error": "on purpose"}', r"returned a response that does not match its documentation: \w+: Field required"),
    ],
    ids=["HTML", "incomplete JSON", "empty", "missing field", "list", "error"],
)
def test_responses_that_are_not_json_are_failures(
    server: Vendors, make: Any, name: str, body: str, message: str
) -> None:
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
def test_responses_with_wrong_fields_are_failures(server: Vendors, make: Any, name: str, body: str, place: str) -> None:
    server.faults = [Fault("body", 200, body=body)]
    with pytest.raises(ProviderError, match=place):
        make(name).transcribe(AUDIO)


def test_an_unavailable_server_is_a_failure(make: Any) -> None:
    provider = make("openai_compatible", base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(ProviderError, match=r"http://127\.0\.0\.1:9/v1 cannot be reached: .* \(after 1 try\)$"):
        provider.transcribe(AUDIO)


def test_a_redirect_is_not_followed_with_the_key(server: Vendors, make: Any) -> None:
    server.faults = [Fault("status", 301, {"Location": "http://127.0.0.1:9/elsewhere"})]
    with pytest.raises(ProviderError, match="answered 301: "):
        make("openai").transcribe(AUDIO)


def test_the_server_can_decide_about_retries(server: Vendors, make: Any) -> None:
    server.faults = [Fault("status", 400, {"x-should-retry": "true"})]
    assert make("openai").transcribe(AUDIO).text == TEXT
    server.faults = [Fault("status", 500, {"x-should-retry": "false"})]
    with pytest.raises(ProviderError, match="answered 500: "):
        make("openai").transcribe(AUDIO)


# --- pauses


def test_pauses_last_as_long_as_requested(server: Vendors, make: Any) -> None:
    server.faults = [limited(retry_after_ms="150"), limited(retry_after="0.1")]
    make("deepgram").transcribe(AUDIO)
    first, second, third = (asked.at for asked in server.asked)
    assert second - first >= 0.15
    assert third - second >= 0.1


def test_a_requested_pause_applies_to_all_requests(server: Vendors, make: Any) -> None:
    provider = make("deepgram")
    server.faults = [limited(retry_after_ms="300")]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(provider.transcribe, AUDIO)
        while not server.asked or server.faults:
            time.sleep(0.002)
        time.sleep(0.1)  # wait for the response to arrive
        second = pool.submit(provider.transcribe, AUDIO)
        assert first.result() == second.result()
    refused, *others = (asked.at for asked in server.asked)
    assert len(others) == 2
    assert min(others) - refused >= 0.3


def test_pauses_double_by_default(server: Vendors, make: Any) -> None:
    server.faults = [limited()] * 3
    make("deepgram", retry_wait_s=0.04).transcribe(AUDIO)
    times = [asked.at for asked in server.asked]
    pauses = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert all(pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08), strict=True))


def test_a_requested_pause_of_zero_is_replaced(server: Vendors, make: Any) -> None:
    server.faults = [limited(retry_after="0")] * 3
    make("deepgram", retry_wait_s=0.04).transcribe(AUDIO)
    pauses = [later.at - sooner.at for sooner, later in itertools.pairwise(server.asked)]
    assert all(pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08), strict=True))


def test_a_too_long_pause_is_a_failure(server: Vendors, make: Any) -> None:
    server.faults = [limited(retry_after="3600")]
    with pytest.raises(ProviderError, match=r"answered 429: .*\(the server asks to wait 3600 s; max_wait_s is 120\)"):
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
def test_requested_pauses_are_read_from_headers(headers: dict[str, str], seconds: float | None) -> None:
    asked = asked_wait_s(headers, NOW)
    assert asked == (None if seconds is None else pytest.approx(seconds))
