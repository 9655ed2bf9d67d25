"""Row groups fetched from elsewhere, kept on disk up to a bound: the ones not used for the longest time go first."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tiny_audio.config import UserError
from tiny_audio.sources._locks import locked

if TYPE_CHECKING:
    import pyarrow as pa

_ADVICE = "free some space, lower cache_gb, or set TINY_AUDIO_CACHE to a folder on another disk"
_FULL = 0.95
"""The share of the bound that is left after a deletion, so that not every row group needs a look at all of them."""
_LOOKED: set[Path] = set()
"""The folders that this process, or the one that it was forked from, has looked through."""


@dataclass(frozen=True, slots=True)
class CachedClips:
    """The clips of a row group."""

    clips: pa.ChunkedArray
    num_bytes: int
    """Of memory; 0 where they are mapped from a file."""


def read_mapped(path: Path) -> pa.ChunkedArray | None:
    """The row group in a file of a cache; None where there is none, or a damaged one."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            clips = pa.ipc.open_file(source).read_all().column(0)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError):
        # A file cut short, by a full disk for example: fetched again, and written over.
        return None
    with contextlib.suppress(OSError):  # a cache folder of somebody else's, or a file just deleted
        os.utime(path)
    return clips


@dataclass(frozen=True, slots=True)
class DiskCache:
    """A folder of Arrow files, one for each row group, which are mapped, so that a clip costs what it is long.

    Several processes may use one folder, and all its files together, those being written too, never pass the bound:
    who writes one first adds its size to a count that the folder's lock guards. What is deleted while another process
    has it mapped stays readable there.
    """

    folder: Path
    max_bytes: int

    def get(self, name: str, fetch: Callable[[], pa.ChunkedArray]) -> CachedClips:
        """The row group of that name.

        Args:
            fetch: gets it from elsewhere, where it is not here. What has no room here stays in memory.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self.folder / f"{name}.arrow"
        clips = read_mapped(path)
        if clips is not None:
            return CachedClips(clips, 0)
        with self._fetching(name):
            clips = read_mapped(path)  # another process may have fetched it meanwhile
            if clips is not None:
                return CachedClips(clips, 0)
            fetched = fetch()
            self._write(path, fetched)
            clips = read_mapped(path)
        return CachedClips(fetched, fetched.nbytes) if clips is None else CachedClips(clips, 0)

    @contextlib.contextmanager
    def _fetching(self, name: str) -> Iterator[None]:
        """One fetches, the others wait."""
        with contextlib.ExitStack() as stack:
            with self._writing():
                stack.enter_context(locked(self.folder / f".lock-{hashlib.sha256(name.encode()).digest()[0]:02x}"))
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written: {error}; {_ADVICE}") from error

    def _write(self, path: Path, clips: pa.ChunkedArray) -> None:
        """Write it where there is room; nothing is written where there is none."""
        import pyarrow as pa

        table = pa.table({"bytes": clips})
        counted = pa.MockOutputStream()
        with pa.ipc.new_file(counted, table.schema) as writer:
            writer.write_table(table)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        with self._writing():
            file = self._reserved(aside, counted.size())
            if file is None:
                return
            try:
                with file:
                    with pa.ipc.new_file(file, table.schema) as writer:
                        writer.write_table(table)
                    file.flush()
                    # Under the lock, as who looks through the folder could miss a file that gets another name.
                    with locked(self.folder / ".lock"):
                        os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)

    def _reserved(self, aside: Path, size: int) -> BinaryIO | None:
        """A file of this size to be written, locked for as long as it is open; None where there is no room."""
        with locked(self.folder / ".lock") as count:
            count.seek(0)
            said = count.read()
            used = int(said) if said.isdigit() else None  # none yet, or damaged
            if used is None or used + size > self.max_bytes or self.folder not in _LOOKED:
                used = self._looked_through(size)
                _LOOKED.add(self.folder)
            fits = used + size <= self.max_bytes
            count.truncate(0)
            count.write(b"%d" % (used + size if fits else used))
            if not fits:
                return None
            file = aside.open("wb")
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.truncate(size)
            except OSError:
                file.close()
                aside.unlink(missing_ok=True)
                raise
            return file

    def _looked_through(self, size: int) -> int:
        """Bytes in the folder, after the deletion of what stands in the way of ``size`` more, and of what the writers
        that were killed left behind.
        """
        files, used = [], 0
        for path in self.folder.iterdir():
            being_written = path.name.startswith(".") and ".arrow." in path.name
            if path.suffix != ".arrow" and not being_written:
                continue
            if being_written:
                with contextlib.suppress(BlockingIOError), locked(path, wait=False):
                    path.unlink()
            with contextlib.suppress(FileNotFoundError):  # deleted by somebody else
                status = path.stat()
                used += status.st_size
                if not being_written:
                    files.append((status.st_mtime_ns, status.st_size, path))
        if used - sum(file[1] for file in files) + size > self.max_bytes:
            return used  # it would have no room even then
        for _, file_size, path in sorted(files):
            if used + size <= _FULL * self.max_bytes:
                break
            path.unlink(missing_ok=True)
            used -= file_size
        return used
