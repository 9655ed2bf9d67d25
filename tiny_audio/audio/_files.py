"""Open audio files, and distinguish disk errors from bad clips."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiny_audio.audio._parts import Data
from tiny_audio.audio.errors import AudioError, FileError

_READ_BYTES = 1 << 20
_DISK_REASONS = ("undecodable", "truncated", "empty")
"""Reasons of an :class:`AudioError` that may be caused by a failing disk."""
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP)
"""Numbers of errors that the path itself causes, such as a name that is too long."""


class _Memory(io.BytesIO):
    """The bytes of a clip, as a file.

    A seek to a position before the start does nothing. libsndfile makes such seeks in some files that are cut off.
    """

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset < 0:
            return self.tell()
        return super().seek(offset, whence)


@contextmanager
def opened(source: Path | bytes, name: str) -> Iterator[Data]:
    """Open a file, or the bytes of a file.

    libsndfile treats a disk error as the end of the file, so the clip then looks cut off or damaged. If the body of the
    ``with`` statement raises such an :class:`AudioError`, the whole file is read again to find disk errors.

    Raises:
        AudioError: the source is empty or not a file.
        FileError: the file cannot be read.
    """
    if isinstance(source, bytes):
        if not source:
            raise AudioError("empty", f"{name}: the file is empty")
        yield Data(_Memory(source))
        return
    descriptor = _descriptor(source, name)
    try:
        data = Data(descriptor)
        if data.size == 0:
            raise AudioError("empty", f"{name}: the file is empty")
        yield data
    except AudioError as error:
        if error.reason in _DISK_REASONS:
            _check_readable(source)
        raise
    except OSError as error:
        raise _unreadable(source, error) from error
    finally:
        os.close(descriptor)


def _check_readable(path: Path) -> None:
    """Read a whole file to find disk errors.

    Raises:
        FileError: the disk reports an error.
    """
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                pass
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> FileError:
    if isinstance(error, FileNotFoundError):
        return FileError(f"{path}: no such file")
    return FileError(
        f"{path}: cannot be read: {error.strerror}; the clip may be good, so it is not skipped; check the disk and the "
        "file's permissions"
    )


def _descriptor(path: Path, name: str) -> int:
    try:
        # Without O_NONBLOCK, opening a pipe for reading would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except IsADirectoryError as error:
        raise AudioError("not_a_file", f"{name}: a folder, not an audio file") from error
    except OSError as error:
        if error.errno not in _NAME_ERRORS:
            raise _unreadable(path, error) from error
        raise AudioError("unreadable", f"{name}: cannot be opened: {error.strerror}") from error
    except ValueError as error:
        raise AudioError("unreadable", f"{name}: cannot be opened: {error}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise AudioError("not_a_file", f"{name}: {what}, not an audio file")
    return descriptor
