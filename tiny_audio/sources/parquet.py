"""Source ``parquet``: local parquet files with the audio inside, as the ``datasets`` library writes them."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, PositiveFloat

from tiny_audio.config import NO_IDENTITY, LocalPath, UserError
from tiny_audio.runtime.files import files_below
from tiny_audio.sources import SOURCES, Index, Source, SourceContext, Utterance
from tiny_audio.sources._columns import Columns, ColumnsConfig
from tiny_audio.sources._disk_cache import DiskCache
from tiny_audio.sources._index_table import VERSION, CellAddresses, read_index, write_index
from tiny_audio.sources._parquet import BrokenShardError, index_shard, one_line, read_audio
from tiny_audio.sources._row_groups import read_cell
from tiny_audio.sources._shared import cache_key, check_any_usable

if TYPE_CHECKING:
    import pyarrow as pa

_LOG = logging.getLogger(__name__)
_MAGIC = b"PAR1"


class ParquetConfig(ColumnsConfig):
    """Local parquet files that contain the audio, as in Hugging Face's datasets."""

    name: Literal["parquet"] = "parquet"
    path: LocalPath = Field(json_schema_extra=NO_IDENTITY)
    """A file, a folder with `.parquet` files at any depth, or a pattern such as `data/train-*.parquet`. `~` is your
    home folder."""
    cache_gb: PositiveFloat = Field(default=50.0, json_schema_extra=NO_IDENTITY)
    """Maximum gigabytes on disk for cached row groups of this path. Parquet files can be read only by whole row groups,
    but single clips can be read from the cache. If the clips that are shuffled together (`batching.shuffle_clips`) do
    not fit into the cache, each row group is read many times. Each path of a mix has its own limit."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests. The tests write a `clips.parquet` to the current folder."""
        return cls(path="clips.parquet")


@dataclass(frozen=True)
class ParquetSource(Source):
    """The clips of some parquet files."""

    path: Path
    columns: Columns
    cache_bytes: int
    cache_dir: Path

    def index(self) -> Index:
        """See :meth:`Source.index`. The first call reads the files. Later calls read the files' footers and a cache.

        A repaired file can have the same footer as the damaged file. So if clips were dropped, and a file has changed
        since then, all files are read again.
        """
        root, shards = self._shards()
        footers = {shard: _footer(root / shard) for shard in shards}
        identity = json.dumps([VERSION, astuple(self.columns), list(footers.items())])
        folder = self.cache_dir / "parquet" / cache_key(identity)
        addresses = CellAddresses(root.joinpath, self.columns.audio)
        index = read_index(folder, addresses) if folder.exists() else None
        if index is None or (index.dropped and _has_newer(folder, [root / shard for shard in shards])):
            _LOG.info("indexing %d parquet files in %s", len(shards), root)
            # The names of the columns affect the key of the folder, but not the fingerprint of the data.
            identity = json.dumps(list(footers.values()))
            write_index(folder, self._tables(root, shards), shards, identity, anew=index is not None)
            index = read_index(folder, addresses)
        return check_any_usable(index, str(self.path))

    def encoded(self, utterance: Utterance) -> bytes:
        """Return the clip's bytes, from its row group."""
        return read_cell(utterance.audio, self._cache())

    def _cache(self) -> DiskCache:
        # One folder per source, because each source has its own size limit.
        folder = self.cache_dir / "parquet" / "row_groups" / cache_key(str(self.path))
        return DiskCache(folder, self.cache_bytes)

    def _tables(self, root: Path, shards: list[str]) -> Iterator[pa.Table]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for index, shard in enumerate(shards):
            path = root / shard
            try:
                file = pq.ParquetFile(path)
            except (pa.ArrowException, OSError) as error:
                raise BrokenShardError(
                    f"{path} cannot be read: {one_line(error)}; download or write the file again"
                ) from error
            with file:
                yield index_shard(
                    file, shard, index, self.columns, partial(read_audio, file, column=self.columns.audio)
                )

    @cached_property
    def _root(self) -> Path:
        """The folder that the shards' names are relative to. With relative names, ids are the same on all machines."""
        parts = self.path.parts
        special = next((index for index, part in enumerate(parts) if glob.has_magic(part)), None)
        if special is not None and not self.path.exists():
            return Path(*parts[:special])
        return self.path if self.path.is_dir() else self.path.parent

    def _shards(self) -> tuple[Path, list[str]]:
        root = self._root
        if self.path.is_dir():
            found = self._below()
            what = "no .parquet file is in the folder"
        elif self.path.exists() or not glob.has_magic(str(self.path)):
            found = [self.path] if self.path.is_file() else []
            what = "there is no file or folder"
        else:
            found = [Path(path) for path in glob.glob(str(self.path), recursive=True) if os.path.isfile(path)]
            what = "no file matches"
        if not found:
            raise UserError(
                f"{what} {self.path}; path must be a parquet file, a folder with parquet files, or a pattern such as "
                "data/*.parquet"
            )
        return root, sorted(path.relative_to(root).as_posix() for path in found)

    def _below(self) -> list[Path]:
        try:
            return [self.path / name for name in files_below(self.path, lambda name: name.endswith(".parquet"))]
        except OSError as error:
            raise UserError(
                f"the folder {error.filename} cannot be read: {error.strerror}; allow reading it, or give another path"
            ) from error


@SOURCES.register
def build_parquet(config: ParquetConfig, context: SourceContext) -> Source:
    """Return the source of local parquet files."""
    return ParquetSource(
        Path(config.path).absolute(),
        Columns.of(config),
        round(config.cache_gb * 1e9),
        context.cache_dir.absolute(),
    )


def _has_newer(folder: Path, files: Sequence[Path]) -> bool:
    """Return whether one of the files has changed since the folder was written."""
    # A program can restore the modification time of a file that it changes, but not `st_ctime_ns`.
    return max(file.stat().st_ctime_ns for file in files) > folder.stat().st_mtime_ns


def _footer(path: Path) -> str:
    """Return a hash of the file's size and its footer.

    The footer contains the position and the size of each column and, in most files, the range of its values. So most
    changes of the content also change the hash.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 8))
            end = file.read()
            length = int.from_bytes(end[:4], "little")
            if len(end) < 8 or end[4:] != _MAGIC or length + 12 > size:
                raise BrokenShardError(f"{path} is not a complete parquet file; download or write it again")
            file.seek(size - 8 - length)
            return hashlib.sha256(size.to_bytes(8, "little") + file.read()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
