"""The cache of row groups on disk stays within its limit. Incomplete files of killed processes are deleted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from filelock import FileLock

from tests.support.processes import Process, fork
from tiny_audio.config import UserError
from tiny_audio.sources._disk_cache import DiskCache


def clips(size: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([os.urandom(size)])])


def held(folder: Path) -> int:
    """Return the bytes of all row groups in a folder, including incomplete ones.

    The folder is locked, so that no file is created or renamed during the count.
    """
    with FileLock(folder / ".lock", poll_interval=0.001):
        return sum(path.stat().st_size for path in folder.iterdir() if ".arrow" in path.name)


def test_the_disk_cache_stays_below_its_limit(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 1_000_000)
    for number in range(20):
        cache.get(f"{number}", lambda: clips(100_000))
        cache.get("0", lambda: clips(100_000))
        assert held(cache.folder) <= 1_000_000
    names = {path.stem for path in cache.folder.iterdir()}
    assert {"0", "19", "18", "17"} <= names
    assert not names & {"1", "2", "3"}


def test_small_files_are_counted(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 50_000)
    for number in range(120):
        cache.get(f"{number}", lambda: clips(1_000))
    assert 25_000 < held(cache.folder) <= 50_000


def test_a_truncated_file_is_fetched_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 1_000_000)
    first = cache.get("a", lambda: clips(1_000)).clips
    path = cache.folder / "a.arrow"
    again = cache.get("a", lambda: clips(1_000)).clips
    assert again.equals(first)
    path.write_bytes(path.read_bytes()[:700])
    fresh = clips(1_000)
    assert cache.get("a", lambda: fresh).clips.equals(fresh)


def test_a_deleted_row_group_stays_readable_in_a_process_that_has_opened_it(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 1_000_000)
    kept = clips(50_000)
    mapped = cache.get("a", lambda: kept)
    assert mapped.num_bytes == 0
    shutil.rmtree(cache.folder)
    assert mapped.clips.equals(kept)


def test_an_unwritable_cache_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cache cannot be written: .*; free some space, lower cache_gb, or set TINY_"):
        DiskCache(tmp_path / "cache", 1_000_000).get("a", lambda: clips(10))


def test_row_groups_above_the_limit_are_kept_in_memory_only(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 100_000)
    cache.get("small", lambda: clips(50_000))
    large = clips(200_000)
    found = cache.get("large", lambda: large)
    assert found.clips.equals(large)
    assert found.num_bytes >= 200_000
    assert [path.name for path in cache.folder.glob("*.arrow")] == ["small.arrow"]


# --- several processes -------------------------------------------------------------------------------------------


def child(folder: Path, work: Callable[[DiskCache], object]) -> Process:
    """Start a process with a cache in this folder. It waits for :func:`go`, and then calls ``work`` with the cache."""

    def run() -> None:
        cache = DiskCache(folder, 400_000)
        print("ready", flush=True)
        sys.stdin.readline()
        work(cache)

    process = fork(run, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_the_limit_holds_for_several_processes(tmp_path: Path) -> None:
    tmp_path = tmp_path / "cache"
    tmp_path.mkdir()

    def work(cache: DiskCache) -> None:
        for number in range(20):
            cache.get(f"{os.getpid()}-{number}", lambda: clips(10_000))

    processes = [child(tmp_path, work) for _ in range(4)]
    for process in processes:
        go(process)
    peak = 0
    while any(process.poll() is None for process in processes):
        peak = max(peak, held(tmp_path))
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert 200_000 < held(tmp_path) <= 400_000
    assert peak <= 400_000


def test_incomplete_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    def killed(cache: DiskCache) -> None:
        pytest.MonkeyPatch().setattr(os, "replace", lambda *paths: os.kill(os.getpid(), signal.SIGKILL))
        cache.get("a", lambda: clips(10_000))

    process = child(tmp_path, killed)
    go(process)
    process.communicate()
    assert process.returncode == -9
    (left,) = tmp_path.glob(".a.arrow.*")
    assert left.stat().st_size > 10_000
    process = child(tmp_path, lambda cache: cache.get("b", lambda: clips(10_000)))
    go(process)
    process.communicate()
    assert [path.name for path in tmp_path.iterdir() if ".arrow" in path.name] == ["b.arrow"]


def test_files_that_another_process_is_writing_are_counted_and_kept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1_000_000)
    with cache._writer_lock("other"):
        (tmp_path / ".other.arrow.0123").write_bytes(bytes(700_000))
        for number in range(10):
            cache.get(f"{number}", lambda: clips(100_000))
            assert 700_000 < held(tmp_path) <= 1_000_000
        large = cache.get("large", lambda: clips(400_000))
        assert large.num_bytes >= 400_000, (
            "the unfinished file leaves too little space on the disk, so the clips stay in memory"
        )
    cache.get("large", lambda: clips(900_000))
    assert [path.name for path in tmp_path.iterdir() if ".arrow" in path.name] == ["large.arrow"]
