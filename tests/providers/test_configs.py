"""Configs of providers: prices, keys and addresses."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.providers.requests import VARIABLES
from tiny_audio.config import UserError
from tiny_audio.providers import (
    PROVIDERS,
)


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


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    monkeypatch.delenv(VARIABLES[name], raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLES[name], value)
    message = rf"provider {name} needs a key, but the environment variable {VARIABLES[name]} is not set; .*export"
    with pytest.raises(UserError, match=message):
        PROVIDERS.build(PROVIDERS.parse(name))


@pytest.mark.parametrize("key", ["sk-two\nlines", "sk with a blank", "sk-ключ"])
def test_an_invalid_key_is_an_error(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("DEEPGRAM_API_KEY", key)
    with pytest.raises(
        UserError, match="DEEPGRAM_API_KEY contains characters that keys never have; set it again"
    ) as caught:
        PROVIDERS.build(PROVIDERS.parse("deepgram"))
    assert key not in str(caught.value)


def test_a_compatible_server_can_have_its_own_key_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    fields = {"name": "openai_compatible", "base_url": "http://localhost/v1", "model": "a", "key_variable": "MY_KEY"}
    with pytest.raises(UserError, match="openai_compatible needs a key, but the environment variable MY_KEY"):
        PROVIDERS.build(PROVIDERS.parse(fields))


@pytest.mark.parametrize(
    ("name", "url", "message"),
    [
        ("openai", "api.openai.com", "'api.openai.com' is not a URL; write it as https://host/path"),
        ("openai", "ftp://api.openai.com", "is not a URL"),
        ("openai", "https://", "is not a URL"),
        ("openai", "https://host:99999", "is not a URL"),
        ("openai", "http://api.openai.com/v1", "would send your key unencrypted; write it as https"),
        ("deepgram", "https://me:secret@api.deepgram.com", "must be a plain address, without user, password"),
        ("deepgram", "https://api.deepgram.com/?key=1", "must be a plain address"),
        ("openai_compatible", "nowhere", "is not a URL"),
    ],
)
def test_invalid_addresses_are_rejected(name: str, url: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PROVIDERS.parse({"name": name, "base_url": url, "model": "a"})


def test_valid_addresses_are_accepted() -> None:
    for url in ("http://localhost:1/v1/", "http://127.0.0.1:1/v1", "http://[::1]:1/v1", "https://api.eu.example.com"):
        assert PROVIDERS.parse({"name": "openai", "base_url": url}).base_url == url.rstrip("/")  # type: ignore[attr-defined]
    PROVIDERS.parse({"name": "openai_compatible", "base_url": "http://gpu-box:8000/v1", "model": "a"})
