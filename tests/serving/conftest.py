"""One server for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.servers import Served, serving


@pytest.fixture(scope="module")
def server(one_thread: None, pauses_by_loudness: None) -> Iterator[Served]:
    """A server without a key. Tests must leave it idle."""
    with serving() as served:
        yield served
