"""A cache of parquet row groups on disk, with a size limit. The least recently used row groups are deleted first."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from tiny_audio.config import UserError
from tiny_audio.sources._arrow_files import read_arrow

if TYPE_CHECKING:
    import pyarrow as pa

_ADVICE = "free some space, lower cache_gb, or set TINY_AUDIO_CACHE to a folder on another disk"
_FULL = 0.95
"""If the cache is full, old files are deleted until at most this share of the size limit is in use. The next few files
then fit without another scan of the folder."""
_POLL_S = 0.005
"""Seconds between attempts to acquire the folder's lock, which is held only briefly."""
_SCANNED: set[Path] = set()
"""Folders whose size this process has measured. A forked process inherits this set, and need not measure them again."""


@dataclass(frozen=True, slots=True)
class CachedClips:
    """The clips of a row group."""

    clips: pa.ChunkedArray
    num_bytes: int
    """Bytes in memory. 0 if the clips are mapped from a file."""


def read_mapped(path: Path) -> pa.ChunkedArray | None:
    """Return the clips in a file of a cache, memory-mapped. Return None if the file is missing or damaged.

    The file is marked as recently used.
    """
    table = read_arrow(path)
    if table is None:
        return None
    with contextlib.suppress(OSError):  # the file is read-only or was just deleted
        os.utime(path)
    return table.column(0)


@dataclass(frozen=True, slots=True)
class DiskCache:
    """A folder of memory-mapped Arrow files, one for each row group.

    Several processes may share a folder. A file is written only if the total size stays within ``max_bytes``. Before
    writing, a process adds the file's size to the folder's count of used bytes. The folder's lock protects this count.
    A mapped file can still be read after another process has deleted it.
    """

    folder: Path
    max_bytes: int

    def get(self, name: str, fetch: Callable[[], pa.ChunkedArray]) -> CachedClips:
        """Return the clips of the row group with this name.

        Args:
            fetch: reads the row group. Called if the row group is not cached. If the result does not fit into the
                cache, it is returned but not written to the folder.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self.folder / f"{name}.arrow"
        clips = read_mapped(path)
        if clips is not None:
            return CachedClips(clips, 0)
        with contextlib.ExitStack() as stack:
            with self._writing():
                stack.enter_context(self._writer_lock(name))
            clips = read_mapped(path)  # another process may have written the file during the wait for the lock
            if clips is None:
                fetched = fetch()
                self._write(name, fetched)
                clips = read_mapped(path)
                if clips is None:
                    return CachedClips(fetched, fetched.nbytes)
        return CachedClips(clips, 0)

    def _writer_lock(self, name: str) -> FileLock:
        """Return the lock to hold while fetching and writing a row group.

        If the process is killed, the operating system releases the lock.
        """
        return FileLock(self.folder / f".lock-{_bucket(name):02x}", poll_interval=10 * _POLL_S)

    def _lock(self) -> FileLock:
        """Return the folder's lock. Hold it to change the count of used bytes, scan the folder, or rename a file."""
        return FileLock(self.folder / ".lock", poll_interval=_POLL_S)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written: {error}; {_ADVICE}") from error

    def _write(self, name: str, clips: pa.ChunkedArray) -> None:
        """Write the row group if there is room for it."""
        import pyarrow as pa

        table = pa.table({"bytes": clips})
        counted = pa.MockOutputStream()
        with pa.ipc.new_file(counted, table.schema) as writer:
            writer.write_table(table)
        temporary = self.folder / f".{name}.arrow.{uuid.uuid4().hex}"
        with self._writing():
            if not self._reserve(name, temporary, counted.size()):
                return
            try:
                with temporary.open("r+b") as file:
                    with pa.ipc.new_file(file, table.schema) as writer:
                        writer.write_table(table)
                    file.flush()
                # Hold the lock while renaming. Otherwise, a concurrent scan could miss the file.
                with self._lock():
                    os.replace(temporary, self.folder / f"{name}.arrow")
            finally:
                temporary.unlink(missing_ok=True)

    def _reserve(self, name: str, temporary: Path, size: int) -> bool:
        """Create a temporary file of ``size`` bytes, and count them as used. Return False if there is no room."""
        with self._lock():
            count = self.folder / ".size"
            used = _read_count(count)
            if used is None or used + size > self.max_bytes or self.folder not in _SCANNED:
                used = self._make_room(name, size)
                _SCANNED.add(self.folder)
            fits = used + size <= self.max_bytes
            count.write_text(str(used + size if fits else used))
            if fits:
                try:
                    with temporary.open("wb") as file:
                        file.truncate(size)
                except OSError:
                    temporary.unlink(missing_ok=True)
                    raise
            return fits

    def _make_room(self, name: str, size: int) -> int:
        """Make room for ``size`` more bytes, if possible. Return the count of used bytes.

        First, temporary files of killed processes are deleted. Then the least recently used row groups are deleted, but
        only if this makes enough room.

        Args:
            name: the row group whose writer lock this process holds.
        """
        files, used = [], 0
        for path in self.folder.iterdir():
            is_temporary = path.name.startswith(".") and ".arrow." in path.name
            if path.suffix != ".arrow" and not is_temporary:
                continue
            if is_temporary:
                self._delete_if_abandoned(path, name)
            with contextlib.suppress(FileNotFoundError):  # another process may delete it first
                status = path.stat()
                used += status.st_size
                if not is_temporary:
                    files.append((status.st_mtime_ns, status.st_size, path))
        if used - sum(file[1] for file in files) + size > self.max_bytes:
            return used  # even if all row groups were deleted, there would not be enough room
        for _, file_size, path in sorted(files):
            if used + size <= _FULL * self.max_bytes:
                break
            path.unlink(missing_ok=True)
            used -= file_size
        return used

    def _delete_if_abandoned(self, temporary: Path, own_name: str) -> None:
        """Delete a temporary file if no other process holds the writer lock of the file's row group."""
        name = temporary.name[1:].rsplit(".arrow.", 1)[0]
        own = _bucket(name) == _bucket(own_name)
        with contextlib.suppress(Timeout), contextlib.nullcontext() if own else self._writer_lock(name).acquire(0):
            temporary.unlink(missing_ok=True)


def _bucket(name: str) -> int:
    """Return the number of the lock file for a row group. All row groups share 256 lock files."""
    return hashlib.sha256(name.encode()).digest()[0]


def _read_count(path: Path) -> int | None:
    """Return the stored count of used bytes. Return None if the file is missing or damaged."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
