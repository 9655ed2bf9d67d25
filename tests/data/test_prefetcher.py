"""The prefetcher fetches each row group once, before its clips are used, in the order of the plan."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.conftest import write_clips
from tests.support.hub_server import Hub, Repo, forget, running_hub, use_hub
from tests.support.parquet_shards import loquacious_shard
from tiny_audio.data.clips import Clips, ClipSet
from tiny_audio.data.order import BatchingConfig, EpochPlan
from tiny_audio.data.prefetcher import Prefetcher
from tiny_audio.sources import SOURCES, SourceContext
from tiny_audio.sources._disk_cache import DiskCache
from tiny_audio.sources.hub import HubConfig
from tiny_audio.sources.manifest import ManifestConfig

ROW_GROUP, GROUPS = 5, 12
BATCHING = BatchingConfig(max_clips=2, pool_batches=1, shuffle_clips=15)
COLUMNS = {"audio_column": "wav", "id_column": "ID"}


@pytest.fixture(scope="module")
def shard() -> bytes:
    return loquacious_shard(0, ROW_GROUP * GROUPS, row_group=ROW_GROUP)


@pytest.fixture
def hub(shard: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.repos = {"a/b": Repo({"data/train-00000-of-00001.parquet": shard})}
        use_hub(monkeypatch, hub.endpoint)
        yield hub


@pytest.fixture
def clips(hub: Hub, tmp_path: Path) -> Clips:
    config = HubConfig(repo="a/b", **COLUMNS)
    gathered = ClipSet.gather({"train": SOURCES.build(config, SourceContext(tmp_path))}, 0.0, 60.0)
    hub.requests.clear()
    return gathered.clips


def cached(tmp_path: Path) -> int:
    return len(list((tmp_path / "hub" / "row_groups").glob("*/*.arrow")))


def wait_for(count: int, tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    while cached(tmp_path) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)  # a prefetcher that fetches too much would do so in this time
    assert cached(tmp_path) == count


def needed(clips: Clips, plan: EpochPlan, first: int, stop: int) -> set[int]:
    assert clips.groups is not None
    return set(clips.groups[plan.order[first:stop]].tolist())


def test_row_groups_are_fetched_ahead_of_their_use(hub: Hub, clips: Clips, tmp_path: Path) -> None:
    plan = clips.plan(BATCHING, seed=0, epoch=0)
    with Prefetcher(clips, plan, 0, BATCHING.shuffle_clips) as prefetcher:
        prefetcher.reached(0)
        soon = needed(clips, plan, 0, 15)
        wait_for(len(soon), tmp_path)
        asked = len(hub.requests)
        for place in range(15):
            clip = clips[int(plan.order[place])]
            clip.source.encoded(clip.utterance)
        assert len(hub.requests) == asked
        for batch in range(11):
            prefetcher.reached(batch)
        wait_for(len(needed(clips, plan, 0, int(plan.starts[10]) + 15)), tmp_path)
        for batch in range(11, len(plan)):
            prefetcher.reached(batch)
        wait_for(GROUPS, tmp_path)


def test_a_continued_epoch_fetches_only_the_remaining_row_groups(clips: Clips, tmp_path: Path) -> None:
    plan = clips.plan(BATCHING, seed=0, epoch=0)
    first = len(plan) - 4
    with Prefetcher(clips, plan, first, 1000) as prefetcher:
        prefetcher.reached(first)
        wait_for(len(needed(clips, plan, int(plan.starts[first]), 60)), tmp_path)


def test_errors_of_the_hub_do_not_stop_the_prefetcher(hub: Hub, clips: Clips, tmp_path: Path) -> None:
    hub.refusal = (404, b"", {})
    forget()
    with Prefetcher(clips, clips.plan(BATCHING, seed=0, epoch=0), 0, 1000) as prefetcher:
        prefetcher.reached(0)
    assert cached(tmp_path) == 0


def test_clips_in_files_are_not_prefetched(tmp_path: Path) -> None:
    source = SOURCES.build(ManifestConfig(path=str(write_clips(tmp_path, 4))), SourceContext(tmp_path))
    clips = ClipSet.gather({"train": source}, 0.0, 60.0).clips
    before = threading.active_count()
    with Prefetcher(clips, clips.plan(BATCHING, seed=0, epoch=0), 0, 1000) as prefetcher:
        prefetcher.reached(0)
        assert threading.active_count() == before


def test_a_row_group_needed_by_several_threads_is_fetched_once(tmp_path: Path) -> None:
    fetched = []

    def fetch() -> pa.ChunkedArray:
        fetched.append(None)
        time.sleep(0.2)
        return pa.chunked_array([pa.array([b"clip"])])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: DiskCache(tmp_path, 10**6).get("a", fetch), range(4)))
    assert len(fetched) == 1
    assert [each.clips.to_pylist() for each in found] == [[b"clip"]] * 4


def test_row_groups_of_several_sources_are_distinguished(hub: Hub, tmp_path: Path) -> None:
    hubs = SOURCES.build(HubConfig(repo="a/b", **COLUMNS), SourceContext(tmp_path))
    files = SOURCES.build(ManifestConfig(path=str(write_clips(tmp_path, 4))), SourceContext(tmp_path))
    clips = ClipSet.gather({"one": hubs, "files": files, "two": hubs}, 0.0, 60.0).clips
    assert clips.groups is not None
    sizes = np.unique(clips.groups, return_counts=True)[1].tolist()
    assert sizes == [ROW_GROUP] * GROUPS + [1] * 4 + [ROW_GROUP] * GROUPS
