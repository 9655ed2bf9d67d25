"""The row groups that a process read last, so that clips that lie together are read together."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

MAX_BYTES = 256 * 2**20
"""In memory, in each process that loads clips; the newest row group is kept whatever its size."""
MAX_COUNT = 32
"""Row groups mapped from files take no memory, but a deleted file takes its space for as long as it is mapped."""


class RowGroups:
    """Row groups by key, the ones used last; safe between threads."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_count: int = MAX_COUNT) -> None:
        self._max_bytes, self._max_count = max_bytes, max_count
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[pa.ChunkedArray, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: Hashable, read: Callable[[], tuple[pa.ChunkedArray, int]]) -> pa.ChunkedArray:
        """The row group of this key.

        Args:
            read: reads it, where it is not kept; gives the bytes of memory it takes too.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        clips, size = read()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = clips, size
                self._bytes += size
            while len(self._kept) > 1 and (self._bytes > self._max_bytes or len(self._kept) > self._max_count):
                self._bytes -= self._kept.popitem(last=False)[1][1]
        return clips

    def clear(self) -> None:
        """Keep none."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0


ROW_GROUPS = RowGroups()
"""Of this process."""
