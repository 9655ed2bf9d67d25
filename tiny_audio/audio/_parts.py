"""Divide a file that is damaged or has a wrong header into parts. libsndfile reads each part like a separate file."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tiny_audio.runtime.files import SeekableBytes

_BLOCK_BYTES = 1 << 16
MAX_SILENCE_S = 6 * 3600.0
"""Maximum total silence that replaces missing sound. Without a limit, a hostile file could cause years of silence."""


class Data:
    """Random access to the bytes of a file, on disk or in memory.

    Args:
        stream: the file's descriptor, or its bytes.
    """

    def __init__(self, stream: io.BytesIO | int) -> None:
        self.stream = stream
        self._begin = 0
        self.size = os.fstat(stream).st_size if isinstance(stream, int) else len(stream.getbuffer())

    def read(self, start: int, count: int) -> bytes:
        """Read ``count`` bytes from ``start``, or fewer at the end of the file. A negative count reads nothing."""
        start, count = self._begin + start, max(0, count)
        if isinstance(self.stream, int):
            os.lseek(self.stream, start, os.SEEK_SET)
            return os.read(self.stream, count)
        return bytes(self.stream.getbuffer()[start : start + count])

    @property
    def unread(self) -> int:
        """Number of bytes that a decoder has not read yet."""
        return self.size - (
            os.lseek(self.stream, 0, os.SEEK_CUR) if isinstance(self.stream, int) else self.stream.tell()
        )

    def skip(self, count: int) -> None:
        """Leave out the first bytes. All positions are counted from the byte after them."""
        self._begin, self.size = self._begin + count, self.size - count

    def rewind(self) -> None:
        """Move to the start of a file on disk. In memory, :meth:`read` does not move, so this method does nothing."""
        if isinstance(self.stream, int):
            os.lseek(self.stream, 0, os.SEEK_SET)

    def find(self, what: bytes, start: int, end: int) -> int:
        """Return the position of the first ``what`` between ``start`` and ``end``, or -1."""
        while start + len(what) <= end:
            block = self.read(start, min(_BLOCK_BYTES, end - start))
            at = block.find(what)
            if at >= 0:
                return start + at
            if len(block) < len(what):
                break
            start += len(block) - len(what) + 1
        return -1


@dataclass(frozen=True)
class Part:
    """A section of a recording. Its joined pieces are a file that libsndfile can decode."""

    pieces: tuple[bytes | range, ...]
    """New bytes, and byte ranges of the original file."""
    start_s: float | None = None
    """Time in the recording at which the part begins; None if unknown."""
    end_s: float | None = None
    """Time in the recording at which the part ends. If None, the part begins ``gap_s`` after the end of the previous
    part."""
    gap_s: float = 0.0
    """Duration in seconds of the lost sound before this part. Used only if ``end_s`` is None."""
    frames: tuple[PartFrame, ...] = ()
    """If the part cannot be decoded as a whole, it is divided between these frames. Empty if it cannot be divided."""


@dataclass(frozen=True)
class PartFrame:
    """A frame of a codec whose frames can be decoded independently."""

    offset: int
    """Position in the file of the frame's first byte."""
    end: int
    """Position in the file just after the frame's last byte."""
    start: int
    """Index in the recording of the frame's first sample."""
    samples: int


@dataclass(frozen=True)
class Layout:
    """Instructions for reading a file that libsndfile would read wrongly."""

    parts: tuple[Part, ...]
    note: str | None = None
    """Message about something unusual, such as a wrong header, that loses no audio."""
    cut_off: str | None = None
    """Message that the end of the file is missing."""
    damage: str | None = None
    """Message about damage before the end of the file."""


class Spliced(SeekableBytes):
    """A file object that joins the pieces of a part."""

    def __init__(self, data: Data, pieces: Sequence[bytes | range]) -> None:
        self._data, self._pieces = data, pieces
        self._starts = [0, *accumulate(len(piece) for piece in pieces)]
        super().__init__(self._starts[-1])

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or its beginning if there are fewer bytes."""
        done = 0
        while done < len(buffer) and self.position < self._starts[-1]:
            index = bisect_right(self._starts, self.position) - 1
            piece, skipped = self._pieces[index], self.position - self._starts[index]
            count = min(len(buffer) - done, len(piece) - skipped)
            if isinstance(piece, bytes):
                found = piece[skipped : skipped + count]
            else:
                try:
                    found = self._data.read(piece.start + skipped, count)
                except OSError:
                    found = b""  # C code calls this, so do not raise; the disk error is found later by another read
            if not found:
                break  # the file became shorter
            buffer[done : done + len(found)] = found
            done += len(found)
            self.position += len(found)
        return done
