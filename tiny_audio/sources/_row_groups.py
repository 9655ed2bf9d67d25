"""Encoded clips of parquet files, on disk or on the hub: read by row group, through a cache on disk and one in memory.

Parquet gives a column of a row group only as a whole, so clips that lie together are read together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cachetools import LRUCache, cached

from tiny_audio.config import UserError
from tiny_audio.sources import AudioAddress, HubFile, NotCachedError
from tiny_audio.sources._disk_cache import CachedClips, DiskCache, read_mapped
from tiny_audio.sources._hub.ranges import RangeFile
from tiny_audio.sources._parquet import BrokenShardError, clip_bytes, one_line, read_audio, read_error, row_name
from tiny_audio.sources._shared import cache_key

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_BYTES = 256 * 2**20
"""In memory, in each process that loads clips."""
MAX_COUNT = 32
"""Row groups mapped from files take no memory, but a deleted file takes its space for as long as it is mapped."""
_OPEN = 32
"""Shards on the hub of which a process remembers the footer."""
_ANYWHERE_BYTES = 2 * 10**9
"""On disk, for row groups that are read by their addresses alone."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The column of clips of a row group."""

    file: Path | HubFile
    index: int
    column: str

    def cache_name(self) -> str:
        """Its name in a :class:`DiskCache`; a local file that changes gets another one.

        Raises:
            OSError: the local file is gone.
        """
        if isinstance(self.file, HubFile):
            identity: list[str | int] = [self.file.repo, self.file.revision, self.file.path, self.column]
        else:
            status = self.file.stat()
            identity = [str(self.file), status.st_mtime_ns, status.st_size, self.column]
        return f"{cache_key(identity)}-{self.index}"

    def read(self) -> pa.ChunkedArray:
        """The encoded clips, from the file itself."""
        import pyarrow.parquet as pq

        if isinstance(self.file, HubFile):
            return read_audio(_opened_for_audio(self.file), self.index, self.column)
        with pq.ParquetFile(self.file) as file:
            return read_audio(file, self.index, self.column)


def row_group_reader(max_bytes: int, max_count: int) -> Callable[[RowGroup, DiskCache], CachedClips]:
    """A function that reads row groups and keeps the ones used last in memory; safe between threads."""

    def size(cached_clips: CachedClips) -> int:
        # The newest is kept whatever its size. The least size bounds the count.
        return min(max(cached_clips.num_bytes, max_bytes // max_count), max_bytes)

    @cached(LRUCache(max_bytes, size), key=lambda group, cache: group, lock=threading.Lock())
    def read(group: RowGroup, cache: DiskCache) -> CachedClips:
        return cache.get(group.cache_name(), group.read)

    return read


read_row_group = row_group_reader(MAX_BYTES, MAX_COUNT)
"""The clips of a row group: from the memory of this process, from the cache on disk, or from the file itself."""


def read_cell(address: AudioAddress | None, cache: DiskCache) -> bytes:
    """The encoded clip in a cell of a parquet file.

    Raises:
        AudioError: the cell holds no audio, or the file is damaged.
        UserError: the file is gone or cannot be read.
    """
    import pyarrow as pa

    assert address is not None
    assert address.cell is not None
    file, cell = address.file, address.cell
    where = row_name(str(file), cell.row_group, cell.row)
    try:
        clips = read_row_group(RowGroup(file, cell.row_group, cell.column), cache).clips
    except FileNotFoundError as error:
        raise UserError(f"{file} is gone since it was indexed; put it back, or start again") from error
    except (pa.ArrowException, OSError) as error:
        raise read_error(error, where) from error
    return clip_bytes(clips, cell.row, where)


def read_cell_anywhere(address: AudioAddress, cache_dir: Path, *, offline: bool) -> bytes:
    """As :func:`read_cell`, for a reader that does not know in which source's cache the row group may be."""
    assert address.cell is not None
    file, cell = address.file, address.cell
    folder = cache_dir / ("hub" if isinstance(file, HubFile) else "parquet") / "row_groups"
    try:
        name = RowGroup(file, cell.row_group, cell.column).cache_name()
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    try:
        for path in folder.glob(f"*/{name}.arrow"):
            clips = read_mapped(path)
            if clips is not None:
                return clip_bytes(clips, cell.row, row_name(str(file), cell.row_group, cell.row))
        if offline and isinstance(file, HubFile):
            raise NotCachedError(f"{address} is not in the cache")
        return read_cell(address, DiskCache(folder / "addresses", _ANYWHERE_BYTES))
    except (IndexError, KeyError) as error:
        raise UserError(f"{address} does not exist: {error}") from error


def open_on_hub(file: HubFile, *, pre_buffer: bool) -> pq.ParquetFile:
    """A parquet file on the hub.

    Args:
        pre_buffer: fetch ranges of neighboring columns as one.

    Raises:
        UserError: the hub cannot be reached, or the file is broken.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(RangeFile(file), pre_buffer=pre_buffer)
    except (pa.ArrowException, OSError) as error:
        raise BrokenShardError(
            f"{file.path} of {file.repo} at commit {file.revision} cannot be read: {one_line(error)}; "
            "report it to the maintainers of the dataset, or choose another revision"
        ) from error


@lru_cache(maxsize=_OPEN)
def _opened_for_audio(file: HubFile) -> pq.ParquetFile:
    """Kept open: its location and its footer would take two more requests for each row group."""
    return open_on_hub(file, pre_buffer=False)
