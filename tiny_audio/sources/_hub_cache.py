"""Row groups fetched from the hub, kept on disk up to a bound: the ones not used for the longest time go first."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_audio.config import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_ADVICE = "free some space, lower cache_gb, or set TINY_AUDIO_CACHE to a folder on another disk"
_SLACK = 0.05
"""The share of the bound that a process may write before it looks again how much there is."""
_WRITTEN: dict[Path, int] = {}
"""By folder, what this process has written since it looked; a folder that is not here was never looked at."""
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class DiskCache:
    """A folder of Arrow files, one for each row group, which are mapped, so that a clip costs what it is long.

    Several processes may use one folder. What is deleted while another process has it mapped stays readable there.
    """

    folder: Path
    max_bytes: int

    def get(self, name: str, fetch: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        """The row group of that name.

        Args:
            fetch: gets it from elsewhere, where it is not here.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self.folder / f"{name}.arrow"
        clips = self._read(path)
        if clips is not None:
            return clips
        with self._locked(name):
            clips = self._read(path)  # another process may have been fetching it
            if clips is None:
                clips = fetch()
                self._write(path, clips)
                # Mapped, not kept in memory: what was fetched may be large.
                clips = self._read(path) or clips
        return clips

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One fetches, the others wait; a lock goes with its process."""
        path = self.folder / f".lock-{hashlib.sha256(name.encode()).digest()[0]:02x}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written: {error}; {_ADVICE}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read(self, path: Path) -> pa.ChunkedArray | None:
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

    def _write(self, path: Path, clips: pa.ChunkedArray) -> None:
        import pyarrow as pa

        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                table = pa.table({"bytes": clips})
                with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
                size = aside.stat().st_size
                self._make_room(size)
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written: {error}; {_ADVICE}") from error

    def _make_room(self, size: int) -> None:
        with _LOCK:
            written = _WRITTEN.get(self.folder)
            if written is not None and written + size <= _SLACK * self.max_bytes:
                _WRITTEN[self.folder] = written + size
                return
            _WRITTEN[self.folder] = 0
        files = []
        for path in self.folder.glob("*.arrow"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(file[1] for file in files) + size - round((1 - _SLACK) * self.max_bytes)
        for _, file_size, path in sorted(files):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= file_size
