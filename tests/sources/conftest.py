"""A local hub and Parquet shards for tests of sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources.loquacious_hub import CARD, CLIPS, NAME
from tests.support.hub_server import Hub, Repo, running_hub, use_hub
from tests.support.parquet_shards import (
    LOQUACIOUS,
    loquacious_row,
    loquacious_shard,
    write_parquet,
)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Return the files of a small LoquaciousSet by path. A training shard has 20 clips in row groups of 5."""
    shards = {f"small/train-{n:05d}-of-00003.parquet": loquacious_shard(20 * n, 20, row_group=5) for n in range(3)}
    dev = {"dev/dev-00000-of-00001.parquet": loquacious_shard(CLIPS, 4)}
    return shards | dev | {"README.md": b"---\n---\n", "small.csv": b"ID,text\n", "large/README.md": b""}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Return a hub that serves the small LoquaciousSet. It simulates no faults unless the test sets them."""
    server.repos = {NAME: Repo(dict(files), CARD)}
    server.forget_requests()
    server.fault = lambda number, path: None
    server.signature, server.refusal, server.knows_ranges = 0, None, True
    use_hub(monkeypatch, server.endpoint)
    return server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that collects the seconds of all waits before retries. The waits themselves are skipped."""
    waited: list[float] = []
    monkeypatch.setattr("tiny_audio.runtime.retries._sleep", waited.append)
    return waited


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write Parquet files with LoquaciousSet's schema: two with 25 clips in ``a``, and one with 1 clip in ``b``."""
    folder = tmp_path_factory.mktemp("shards")
    for name, first, count in (("a/train-0.parquet", 0, 25), ("a/train-1.parquet", 25, 25), ("b/dev.parquet", 50, 1)):
        write_parquet(folder / name, [loquacious_row(number) for number in range(first, first + count)], LOQUACIOUS)
    (folder / "a" / "README.md").write_text("no parquet")
    return folder
