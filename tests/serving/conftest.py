"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.servers import Served, serving
from tests.support.voice import Loudness
from tiny_audio.serving import live


@pytest.fixture(scope="module")
def server(one_thread: None, pauses_by_loudness: None) -> Iterator[Served]:
    """Serve a tiny model without an API key. Tests share it, so each test must wait until its requests end."""
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def live_by_loudness() -> Iterator[None]:
    """Detect voice activity in live streams by loudness, so that noise counts as speech."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "new_voice_activity", Loudness)
        yield
