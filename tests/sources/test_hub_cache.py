"""Files that the source ``hub`` keeps on disk: indexes, and row groups.

If several processes need the same index, only one of them writes it. The cache of row groups has a size limit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from tests.sources.loquacious_hub import assert_audio, build
from tests.support.hub_server import Hub, forget
from tests.support.parquet_shards import loquacious_row
from tests.support.processes import fork
from tiny_audio.sources import _row_groups


def test_a_split_is_indexed_once_by_two_processes(hub: Hub, tmp_path: Path) -> None:
    index = build(tmp_path / "another").index()
    alone = sorted(str(request.range) for request in hub.requests if request.is_place)
    hub.requests.clear()
    hub.fault = lambda number, path: time.sleep(0.02) if path.startswith("/places/") else None

    def run() -> None:
        forget()
        source = build(tmp_path / "cache")
        print("ready", flush=True)
        sys.stdin.readline()
        print(source.index().fingerprint)

    processes = [fork(run, stdin=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in processes]
    assert said == [f"{index.fingerprint}\n"] * 2
    assert sorted(str(request.range) for request in hub.requests if request.is_place) == alone


def test_files_of_killed_indexing_are_removed(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "speechbrain--LoquaciousSet"
    for name in (".dead.writing", ".live.writing", "old.shards", "live.shards", "recent.shards"):
        (folder / name).mkdir(parents=True)
        (folder / name / "000000.arrow").write_bytes(b"x")
    for name in ("old.shards", "live.shards"):
        os.utime(folder / name, (time.time() - 8 * 86_400,) * 2)
    with FileLock(folder / ".live.lock"):
        index = build(tmp_path).index()
        left = {path.name for path in folder.iterdir() if path.suffix in (".writing", ".shards")}
        assert left == {".live.writing", "live.shards", "recent.shards"}
    shutil.rmtree(next(path for path in folder.iterdir() if len(path.name) == 24))
    assert build(tmp_path).index() == index
    assert {path.name for path in folder.iterdir() if path.suffix in (".writing", ".shards")} == {"recent.shards"}


def test_a_small_cache_returns_all_clips(hub: Hub, tmp_path: Path) -> None:
    source = build(tmp_path, cache_gb=0.0004)
    index = source.index()
    for _ in range(2):
        forget()
        assert_audio(source, index)
        (folder,) = (tmp_path / "hub" / "row_groups").iterdir()
        assert 200_000 < sum(path.stat().st_size for path in folder.iterdir()) <= 400_000


def cached(cache: Path) -> set[Path]:
    return set((cache / "hub" / "row_groups").rglob("*.arrow"))


def test_each_split_has_its_own_limit(hub: Hub, tmp_path: Path) -> None:
    large = build(tmp_path)
    index = large.index()
    assert_audio(large, index)
    kept = cached(tmp_path)
    assert len(kept) == 12
    small = build(tmp_path, split="dev", cache_gb=0.0002)
    for utterance in small.index().utterances:
        assert small.encoded(utterance) == loquacious_row(int(utterance.id.split("-")[1]))["wav"]["bytes"]
    assert len(cached(tmp_path)) == 13
    count = len(hub.requests)
    forget()
    assert_audio(build(tmp_path), index)
    assert {request.path for request in hub.requests[count:] if request.is_place} == set()
    assert cached(tmp_path) > kept


def test_row_groups_above_the_disk_limit_are_kept_in_memory_up_to_a_limit(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = build(tmp_path, cache_gb=1e-9)
    utterances = source.index().utterances
    size = sum(len(loquacious_row(number)["wav"]["bytes"]) for number in range(15))
    # The memory limit has room for two of the three row groups.
    monkeypatch.setattr(_row_groups, "read_row_group", _row_groups.row_group_reader(size - 1, 32))
    fetched = []
    for number in (0, 5, 0, 5, 10, 5, 0):  # each number is the first clip of one of three row groups
        before = len(hub.requests)
        source.encoded(utterances[number])
        fetched.append(len(hub.requests) > before)
    assert fetched == [True, True, False, False, True, False, True]
    assert cached(tmp_path) == set()
