"""A disk error does not make a clip unusable. When the disk works again, the same command continues the run."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import changed, tiny_recipe, write_clips
from tests.support.parquet_shards import encoded_clip, write_parquet
from tests.support.training import (
    ActingCallback,
    exported,
    run,
)
from tiny_audio.audio.errors import AudioError
from tiny_audio.config import UserError
from tiny_audio.sources import SOURCES, Source, SourceContext
from tiny_audio.sources._row_groups import read_row_group
from tiny_audio.sources.manifest import ManifestConfig
from tiny_audio.sources.parquet import ParquetConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def few_files(count: int) -> Iterator[None]:
    """Limit the number of further files that can be opened."""
    free = os.dup(0)
    os.close(free)
    bounds = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + count, bounds[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, bounds)


# --- whole runs


def test_a_run_continues_after_the_disk_was_unavailable(tmp_path: Path) -> None:
    write_clips(tmp_path / "data", 12)
    settings = {"training__steps": 6, "batching__max_clips": 3, "execution__log_every": 1, "data__evaluation": {}}
    document = changed(tiny_recipe(tmp_path / "data"), execution__checkpoint_every=100, **settings)
    run(document, tmp_path / "undisturbed")
    disk, away = tmp_path / "data", tmp_path / "away"
    with pytest.raises(UserError) as refusal:
        run(document, tmp_path / "run", ActingCallback(2, lambda: disk.rename(away)))
    assert re.search(r": no such file\nstep 2 is saved; the same command continues$", str(refusal.value))
    assert not (tmp_path / "run" / "dropped.jsonl").exists()
    away.rename(disk)
    run(document, tmp_path / "run")
    assert exported(tmp_path / "run") == exported(tmp_path / "undisturbed")


# --- sources


def parquet(folder: Path, **changes: Any) -> Source:
    rows = [{"audio": encoded_clip(number, 0.5), "text": "yes", "duration": 0.5} for number in range(4)]
    table = [{key: value for key, value in row.items() if key not in changes} for row in rows]
    write_parquet(folder / "clips.parquet", table)
    config = ParquetConfig(path=str(folder / "clips.parquet"))
    return SOURCES.build(config, SourceContext(folder / "cache"))


def test_a_row_group_that_cannot_be_opened_is_not_a_bad_clip(tmp_path: Path) -> None:
    source = parquet(tmp_path)
    utterance = source.index().utterances[0]
    read_row_group.cache_clear()
    shard = tmp_path / "clips.parquet"
    with few_files(1), pytest.raises(UserError) as refusal:  # one file: the lock in the cache folder, not the shard
        source.encoded(utterance)
    assert re.match(
        r".*/clips.parquet, row group 0, row 0: cannot be read: .*Too many open files; ",
        str(refusal.value),
    )
    assert not isinstance(refusal.value, AudioError)
    shard.rename(tmp_path / "aside")
    shard.symlink_to(shard)
    with pytest.raises(UserError, match="Too many levels of symbolic links") as refusal:
        source.encoded(utterance)
    assert not isinstance(refusal.value, AudioError)
    shard.unlink()
    (tmp_path / "aside").rename(shard)
    assert source.encoded(utterance) == encoded_clip(0, 0.5)


def test_a_disk_error_while_reading_durations_is_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parquet(tmp_path, duration=None)

    def hidden(self: pq.ParquetFile, group: int, **options: Any) -> Any:
        # The start of this file is never readable, so the operating system returns an error.
        Path("/proc/self/mem").read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "read_row_group", hidden)
        with pytest.raises(UserError, match=r"^clips.parquet: cannot be read: .*Input/output error; "):
            source.index()
    assert len(source.index().utterances) == 4


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 4)
    source = SOURCES.build(ManifestConfig(path=str(manifest)), SourceContext(tmp_path / "cache"))
    before = source.index()
    with few_files(1), pytest.raises(UserError, match=rf"^the folder {tmp_path}.* cannot be read: Too many open files"):
        source.index()
    (tmp_path / "circle").symlink_to("circle")
    assert source.index() == before
