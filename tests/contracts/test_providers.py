"""The Provider contract, for all registered providers. Providers of web APIs send their requests to a local server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from tests.support.messages import assert_names
from tests.support.provider_server import KEY, Vendors, vendors
from tests.support.registered_parts import check_config, names, parts
from tiny_audio.providers import PROVIDERS, Provider, ProviderConfig, ProviderTranscript, ProviderWord
from tiny_audio.registry import Entry
from tiny_audio.testing import PROVIDER_CHECKS, check_provider

PARTS = parts(PROVIDERS)
VARIABLES = ("ASSEMBLYAI_API_KEY", "DEEPGRAM_API_KEY", "ELEVENLABS_API_KEY", "OPENAI_API_KEY")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendors]:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, KEY)
    with vendors() as state:
        yield state


def asking(entry: Entry[Any, Any], server: Vendors) -> ProviderConfig:
    """Return the provider's tiny config. If it has a ``base_url``, this becomes the address of the local server."""
    if entry.name == "pocketsphinx" and find_spec("pocketsphinx") is None:
        pytest.skip("needs the package pocketsphinx")
    config: ProviderConfig = entry.config.tiny()
    if "base_url" not in entry.config.model_fields:
        return config
    url = server.url + ("/v1" if entry.name.startswith("openai") else "")
    return entry.config.model_validate({**config.model_dump(), "base_url": url, "concurrency": 2}, strict=False)


@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_config(entry: Entry[Any, Any]) -> None:
    check_config(entry)


@pytest.mark.parametrize("check", PROVIDER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_contract(
    entry: Entry[Any, Any],
    check: Callable[[ProviderConfig], None],
    server: Vendors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if entry.name == "pocketsphinx":  # use short clips, because pocketsphinx is slow
        monkeypatch.setattr("tiny_audio.testing._providers.DURATION_S", 0.2)
    check(asking(entry, server))


class Wrong(Provider):
    """A provider that returns the given answers, which violate the contract."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers

    def transcribe(self, audio: bytes) -> ProviderTranscript:
        transcript: ProviderTranscript = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return transcript

    def close(self) -> None:
        """Release nothing."""


@pytest.mark.parametrize(
    ("answers", "values"),
    [
        (["yes"], "str ProviderTranscript"),
        ([ProviderTranscript("yes ")], "whitespace 'yes '"),
        (
            [ProviderTranscript("a", (ProviderWord("a", 1.0, 0.5),))],
            "the word 'a' from 1.0 to 0.5 s",
        ),
        (
            [ProviderTranscript("a", (ProviderWord("a", 500.0, 700.0),))],
            "the word 'a' from 500.0 to 700.0 s",
        ),
        (
            [ProviderTranscript("a", (ProviderWord("a", 0.0, 1.0, 97.0),))],
            "the word 'a' confidence 97.0;",
        ),
        (
            [ProviderTranscript(""), ProviderTranscript("a"), ProviderTranscript("b")],
            "threads, different transcript",
        ),
    ],
)
def test_violations_are_found(
    answers: list[Any], values: str, server: Vendors, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = PROVIDERS.entry("deepgram")
    monkeypatch.setattr(PROVIDERS, "build", lambda config: Wrong(answers))
    with pytest.raises(AssertionError) as caught:
        check_provider(asking(entry, server))
    assert_names(caught.value, "deepgram:", values)
