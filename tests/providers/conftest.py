"""Fixtures: a local server that imitates every provider, and providers that use this server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.providers.requests import VARIABLES
from tests.support.provider_server import KEY, Vendors, vendors
from tiny_audio.providers import (
    PROVIDERS,
    Provider,
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendors]:
    for variable in (*VARIABLES.values(), "MY_KEY"):
        monkeypatch.setenv(variable, KEY)
    with vendors() as state:
        yield state


@pytest.fixture
def make(server: Vendors) -> Iterator[Any]:
    """Return a function that builds a provider. It uses the server, with short waits before retries and polls."""
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
