"""Datasets on the Hugging Face hub, for the source ``hub`` and the presets that name one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat, PositiveInt

from tiny_audio.config import NO_IDENTITY, UserError
from tiny_audio.sources import HubFile, Index, Source, SourceConfig, SourceContext, Utterance
from tiny_audio.sources._columns import Columns, NonEmpty
from tiny_audio.sources._hub.cache import DiskCache
from tiny_audio.sources._hub.files import Shards, Split, pinned_shards
from tiny_audio.sources._index_table import VERSION, CellAddresses, parts_of, read_index, write_index
from tiny_audio.sources._parquet import index_shard
from tiny_audio.sources._row_groups import RowGroup, open_on_hub, read_cell

if TYPE_CHECKING:
    import pyarrow as pa

_LOG = logging.getLogger(__name__)
_THREADS = 8
"""Shards that are indexed at a time; all of it is waiting."""
_LOG_EVERY = 100


class HubSourceConfig(SourceConfig):
    """Base of the configs of datasets on the hub."""

    revision: NonEmpty = "main"
    """A branch, a tag or a commit. A branch is looked up once and then kept in the cache folder, so that all runs on a
    machine see the same data; write the commit to have the same elsewhere."""
    max_shards: PositiveInt | None = None
    """At most so many of the split's files, evenly spread over it, since corpora are often sorted; None takes all."""
    cache_gb: PositiveFloat = Field(default=50.0, json_schema_extra=NO_IDENTITY)
    """Gigabytes of fetched audio to keep on disk for this split of this dataset; a mix may use the sum over its splits.
    Two windows of `batching.shuffle_clips` (20,000 clips of 10 s are 6 GB) are the least that is fetched once in an
    epoch; what holds all is fetched once in all."""


@dataclass(frozen=True, slots=True)
class HubSource(Source):
    """The clips of a split. The index needs the shards' metadata columns only; audio is fetched by row group."""

    split: Split
    columns: Columns
    max_shards: int | None
    cache_bytes: int
    cache_dir: Path
    commits: dict[str, str] = field(compare=False)
    """As in :class:`SourceContext`."""

    def index(self) -> Index:
        """See :meth:`Source.index`; the first call asks the hub, later ones read the cache folder."""
        shards = self._shards()
        identity = json.dumps([VERSION, self.split.repo, shards.commit, shards.paths])
        key = hashlib.sha256(json.dumps([identity, astuple(self.columns)]).encode()).hexdigest()[:24]
        folder = self.cache_dir / self.split.repo.replace("/", "--") / key
        if not folder.exists():
            _LOG.info("indexing %d files of %s", len(shards.paths), self.split.repo)
            write_index(folder, self._tables(shards, parts_of(folder)), shards.paths, identity)
        index = read_index(folder, CellAddresses(partial(HubFile, self.split.repo, shards.commit), self.columns.audio))
        if not index.utterances:
            first = f"; the first of {len(index.dropped)}: {index.dropped[0].detail}" if index.dropped else ""
            raise UserError(f"no row of the split {self.split.split!r} of {self.split.repo} can be used{first}")
        return index

    def encoded(self, utterance: Utterance) -> bytes:
        """The clip's bytes, out of its row group, which is fetched where the cache does not have it."""
        return read_cell(utterance.audio, self._cache())

    def _cache(self) -> DiskCache:
        # A folder for each split, as each has a bound of its own.
        split = json.dumps([self.split.repo, self.split.config, self.split.split])
        folder = self.cache_dir / "row_groups" / hashlib.sha256(split.encode()).hexdigest()[:24]
        return DiskCache(folder, self.cache_bytes)

    def _shards(self) -> Shards:
        """Those that are used; of a split that has more, evenly spread ones."""
        shards = _pinned(self.split, self.cache_dir, self.commits.get(str(self.split)))
        self.commits[str(self.split)] = shards.commit
        count = len(shards.paths)
        if self.max_shards is None or self.max_shards >= count:
            return shards
        return Shards(
            shards.commit, tuple(shards.paths[index * count // self.max_shards] for index in range(self.max_shards))
        )

    def _tables(self, shards: Shards, parts: Path) -> Iterator[pa.Table]:
        """The shards' rows, in order; kept one by one in ``parts``, so that an interrupted index goes on."""
        with ThreadPoolExecutor(_THREADS, "index") as pool:
            numbers = range(len(shards.paths))
            tables = pool.map(lambda number: self._table(shards, number, parts / f"{number:06d}.arrow"), numbers)
            try:
                for number, table in enumerate(tables, start=1):
                    if number % _LOG_EVERY == 0:
                        _LOG.info("indexed %d of %d files", number, len(shards.paths))
                    yield table
            finally:
                pool.shutdown(cancel_futures=True)

    def _table(self, shards: Shards, number: int, part: Path) -> pa.Table:
        import pyarrow as pa

        try:
            with pa.memory_map(str(part)) as source:
                return pa.ipc.open_file(source).read_all()
        except (pa.ArrowException, OSError):
            pass  # none yet, or one that a machine that went down cut short: indexed anew
        shard = HubFile(self.split.repo, shards.commit, shards.paths[number])

        def audio(row_group: int) -> pa.ChunkedArray:
            group = RowGroup(shard, row_group, self.columns.audio)
            return self._cache().get(group.cache_name(), group.read).clips

        with open_on_hub(shard, pre_buffer=True) as file:
            table = index_shard(file, shard.path, number, self.columns, audio)
        aside = part.with_name(f".{part.name}.{uuid.uuid4().hex}")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                with pa.ipc.new_file(file, table.schema) as writer:
                    writer.write_table(table)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(part)
        except OSError as error:
            raise UserError(f"the cache folder {part.parent} cannot be written: {error}") from error
        return table


def hub_source(
    settings: HubSourceConfig, repo: str, config: str | None, split: str, columns: Columns, context: SourceContext
) -> HubSource:
    """The source of a dataset; it asks nothing of the hub before it is indexed."""
    return HubSource(
        Split(repo, config, split, settings.revision),
        columns,
        settings.max_shards,
        round(settings.cache_gb * 1e9),
        context.cache_dir.absolute() / "hub",
        context.commits,
    )


@cache
def _pinned(split: Split, cache_dir: Path, commit: str | None) -> Shards:
    return pinned_shards(split, cache_dir, commit)
