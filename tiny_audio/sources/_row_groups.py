"""Read encoded clips of parquet files, on disk or on the hub, by row group.

A clip can be read only together with all other clips of its row group. So row groups are cached on disk and in memory.
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
"""Maximum number of bytes in the memory cache of row groups. Each process that loads clips has its own memory cache."""
MAX_COUNT = 32
"""Maximum number of row groups in the memory cache. A memory-mapped row group takes no memory. But as long as it is in
this cache, its disk space stays in use, even if its file is deleted."""
_OPEN = 32
"""Maximum number of parquet files on the hub that a process keeps open."""
_ANYWHERE_BYTES = 2 * 10**9
"""Maximum number of bytes in the folder in which :func:`read_cell_anywhere` caches row groups."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The clips in a row group of a parquet file."""

    file: Path | HubFile
    index: int
    column: str

    def cache_name(self) -> str:
        """Return the row group's name in a :class:`DiskCache`. The name changes if a local file changes.

        Raises:
            OSError: the local file does not exist any more.
        """
        if isinstance(self.file, HubFile):
            identity: list[str | int] = [self.file.repo, self.file.revision, self.file.path, self.column]
        else:
            status = self.file.stat()
            identity = [str(self.file), status.st_mtime_ns, status.st_size, self.column]
        return f"{cache_key(identity)}-{self.index}"

    def read(self) -> pa.ChunkedArray:
        """Read the encoded clips from the file, without a cache."""
        import pyarrow.parquet as pq

        if isinstance(self.file, HubFile):
            return read_audio(_opened_for_audio(self.file), self.index, self.column)
        with pq.ParquetFile(self.file) as file:
            return read_audio(file, self.index, self.column)


def row_group_reader(max_bytes: int, max_count: int) -> Callable[[RowGroup, DiskCache], CachedClips]:
    """Return a thread-safe function that reads row groups, and keeps recently used row groups in memory.

    Args:
        max_bytes, max_count: limits of the row groups in memory, see ``MAX_BYTES`` and ``MAX_COUNT``.
    """

    def size(cached_clips: CachedClips) -> int:
        # A row group counts as at most max_bytes, so that even the largest row group fits into the cache. It counts as
        # at least max_bytes // max_count, so that the cache holds at most about max_count row groups.
        return min(max(cached_clips.num_bytes, max_bytes // max_count), max_bytes)

    @cached(LRUCache(max_bytes, size), key=lambda group, cache: group, lock=threading.Lock())
    def read(group: RowGroup, cache: DiskCache) -> CachedClips:
        return cache.get(group.cache_name(), group.read)

    return read


read_row_group = row_group_reader(MAX_BYTES, MAX_COUNT)
"""Return the clips of a row group. They are read from the memory of this process, the cache on disk, or the file."""


def read_cell(address: AudioAddress | None, cache: DiskCache) -> bytes:
    """Return the encoded clip in a cell of a parquet file.

    Raises:
        AudioError: the cell contains no audio, or the file is damaged.
        UserError: the file does not exist any more or cannot be read.
    """
    import pyarrow as pa

    assert address is not None
    assert address.cell is not None
    file, cell = address.file, address.cell
    where = row_name(str(file), cell.row_group, cell.row)
    try:
        clips = read_row_group(RowGroup(file, cell.row_group, cell.column), cache).clips
    except FileNotFoundError as error:
        raise UserError(f"{file} was removed after it was indexed; restore it, or start again") from error
    except (pa.ArrowException, OSError) as error:
        raise read_error(error, where) from error
    return clip_bytes(clips, cell.row, where)


def read_cell_anywhere(address: AudioAddress, cache_dir: Path, *, offline: bool) -> bytes:
    """Read a cell like :func:`read_cell`, but first search the caches of all sources for its row group.

    Raises:
        AudioError, UserError: see :func:`read_cell`.
        NotCachedError: ``offline`` is set, and the row group is on the hub and not in a cache.
    """
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
    """Open a parquet file on the hub.

    Args:
        pre_buffer: whether to fetch neighboring columns in one request.

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
    """Open a parquet file and keep it open. Opening the file again for each row group would take two more requests."""
    return open_on_hub(file, pre_buffer=False)
