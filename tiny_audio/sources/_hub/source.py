"""Datasets on the Hugging Face hub, for the source ``hub`` and for sources of one corpus, such as ``librispeech``."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat, PositiveInt

from tiny_audio.config import NO_IDENTITY
from tiny_audio.sources import HubFile, Index, Source, SourceConfig, SourceContext, Utterance
from tiny_audio.sources._arrow_files import read_arrow, write_arrow
from tiny_audio.sources._columns import Columns
from tiny_audio.sources._disk_cache import DiskCache
from tiny_audio.sources._hub.files import Shards, Split, pinned_shards
from tiny_audio.sources._index_table import VERSION, CellAddresses, parts_of, read_index, write_index
from tiny_audio.sources._parquet import index_shard
from tiny_audio.sources._row_groups import RowGroup, open_on_hub, read_cell
from tiny_audio.sources._shared import NonEmpty, cache_key, check_any_usable

if TYPE_CHECKING:
    import pyarrow as pa

_LOG = logging.getLogger(__name__)
_THREADS = 8
"""Number of shards that are indexed in parallel. Most of the time, indexing waits for the network."""
_LOG_EVERY = 100


class HubSourceConfig(SourceConfig):
    """Base of the configs of datasets on the hub."""

    revision: NonEmpty = "main"
    """A branch, a tag or a commit. The commit of a branch is looked up once and kept in the cache folder, so that all
    runs on a machine see the same data. To use the same data on another machine, set the commit here."""
    max_shards: PositiveInt | None = None
    """Maximum number of files of the split to use, spread evenly over the split. If None, all files are used."""
    cache_gb: PositiveFloat = Field(default=50.0, json_schema_extra=NO_IDENTITY)
    """Maximum gigabytes of fetched audio on disk for this split. Each split of a mix has its own limit. Clips are
    shuffled within windows of `batching.shuffle_clips` clips. By default, a window has 20,000 clips, which take about 6
    GB if each lasts 10 s. If two windows fit into the limit, each clip's audio is fetched once per epoch. If the whole
    split fits, audio is fetched only once."""


@dataclass(frozen=True, slots=True)
class HubSource(Source):
    """The clips of a split. When a clip is needed, the audio of its row group is fetched.

    Indexing fetches audio only if the dataset has no column of durations.
    """

    split: Split
    columns: Columns
    max_shards: int | None
    cache_bytes: int
    cache_dir: Path
    commits: dict[str, str] = field(compare=False)
    """As in :class:`SourceContext`."""
    keep_silence: bool = False
    """Whether to keep clips that the corpus marks as not speech. They get an empty transcript."""

    def index(self) -> Index:
        """See :meth:`Source.index`. The first call reads the dataset on the hub. Later calls read the cache folder."""
        shards = self._shards()
        identity = json.dumps([VERSION, self.split.repo, shards.commit, shards.paths])
        key = cache_key([identity, astuple(self.columns), *(["keep_silence"] if self.keep_silence else [])])
        folder = self.cache_dir / self.split.repo.replace("/", "--") / key
        if not folder.exists():
            _LOG.info("indexing %d files of %s", len(shards.paths), self.split.repo)
            write_index(folder, self._tables(shards, parts_of(folder)), shards.paths, identity)
        index = read_index(folder, CellAddresses(partial(HubFile, self.split.repo, shards.commit), self.columns.audio))
        return check_any_usable(index, f"the split {self.split.split!r} of {self.split.repo}")

    def encoded(self, utterance: Utterance) -> bytes:
        """Return the clip's bytes. The row group of the clip is fetched if it is not cached."""
        return read_cell(utterance.audio, self._cache())

    def _cache(self) -> DiskCache:
        # One folder per split, because each split has its own size limit.
        key = cache_key([self.split.repo, self.split.config, self.split.split])
        return DiskCache(self.cache_dir / "row_groups" / key, self.cache_bytes)

    def _shards(self) -> Shards:
        """Return the shards to use: all shards of the split, or ``max_shards`` evenly spread shards."""
        shards = _pinned(self.split, self.cache_dir, self.commits.get(str(self.split)))
        self.commits[str(self.split)] = shards.commit
        count = len(shards.paths)
        if self.max_shards is None or self.max_shards >= count:
            return shards
        return Shards(
            shards.commit, tuple(shards.paths[index * count // self.max_shards] for index in range(self.max_shards))
        )

    def _tables(self, shards: Shards, parts: Path) -> Iterator[pa.Table]:
        """Yield the index tables of the shards, in order.

        Each finished table is stored in the folder ``parts``. After an interruption, indexing continues with the tables
        that are missing there.
        """
        with ThreadPoolExecutor(_THREADS, "index") as pool:
            indices = range(len(shards.paths))
            tables = pool.map(lambda index: self._table(shards, index, parts / f"{index:06d}.arrow"), indices)
            try:
                for done, table in enumerate(tables, start=1):
                    if done % _LOG_EVERY == 0:
                        _LOG.info("indexed %d of %d files", done, len(shards.paths))
                    yield table
            finally:
                pool.shutdown(cancel_futures=True)

    def _table(self, shards: Shards, index: int, part: Path) -> pa.Table:
        table = read_arrow(part)
        if table is not None:
            return table
        shard = HubFile(self.split.repo, shards.commit, shards.paths[index])

        def audio(row_group: int) -> pa.ChunkedArray:
            group = RowGroup(shard, row_group, self.columns.audio)
            return self._cache().get(group.cache_name(), group.read).clips

        with open_on_hub(shard, pre_buffer=True) as file:
            table = index_shard(file, shard.path, index, self.columns, audio, keep_silence=self.keep_silence)
        write_arrow(part, table)
        return table


def hub_source(
    settings: HubSourceConfig, repo: str, config: str | None, split: str, columns: Columns, context: SourceContext
) -> HubSource:
    """Return the source of a dataset. No request is sent yet."""
    return HubSource(
        Split(repo, config, split, settings.revision),
        columns,
        settings.max_shards,
        round(settings.cache_gb * 1e9),
        context.cache_dir.absolute() / "hub",
        context.commits,
        keep_silence=context.keep_empty and bool(columns.silence),
    )


@cache
def _pinned(split: Split, cache_dir: Path, commit: str | None) -> Shards:
    return pinned_shards(split, cache_dir, commit)
