"""Files with a wrong header or damage as parts that a decoder can read, each like a file of its own."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

_BLOCK_BYTES = 1 << 16


class Data:
    """Random access to the bytes of a file or of memory.

    Args:
        stream: the bytes, or a descriptor of the file.
    """

    def __init__(self, stream: io.BytesIO | int) -> None:
        self.stream = stream
        self.size = os.fstat(stream).st_size if isinstance(stream, int) else len(stream.getbuffer())

    def read(self, start: int, count: int) -> bytes:
        """At most ``count`` bytes, fewer at the end, and none if ``count`` is negative."""
        count = max(0, count)
        if isinstance(self.stream, int):
            os.lseek(self.stream, start, os.SEEK_SET)
            return os.read(self.stream, count)
        return bytes(self.stream.getbuffer()[start : start + count])

    @property
    def unread(self) -> int:
        """Bytes that a decoder has not read yet."""
        return self.size - (
            os.lseek(self.stream, 0, os.SEEK_CUR) if isinstance(self.stream, int) else self.stream.tell()
        )

    def rewind(self) -> None:
        """Move to the start, where a decoder begins."""
        if isinstance(self.stream, int):
            os.lseek(self.stream, 0, os.SEEK_SET)

    def find(self, what: bytes, start: int, end: int) -> int:
        """The first position of ``what`` that begins and ends between two positions, or -1."""
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
    """A stretch of a recording. Its pieces together are a file that libsndfile decodes."""

    pieces: tuple[bytes | range, ...]
    """Bytes, and ranges of the bytes of the original file."""
    start_s: float | None = None
    """Where the stretch begins."""
    end_s: float | None = None
    """Where it ends. If neither is known, the stretch begins after the one before."""
    gap_s: float = 0.0
    """How much is lost between the stretch before and this one, if neither is known."""
    frames: tuple[PartFrame, ...] = ()
    """What the part can be divided into if it cannot be decoded as a whole; empty: it cannot be divided."""


@dataclass(frozen=True)
class PartFrame:
    """A frame of a codec whose frames can be decoded on their own."""

    offset: int
    """Of its first byte in the file."""
    end: int
    start: int
    """Of its first sample in the recording."""
    samples: int


@dataclass(frozen=True)
class Layout:
    """How to read a file that must not be read as its header says."""

    parts: tuple[Part, ...]
    note: str | None = None
    """What is wrong with the header, if anything. Nothing is lost by it."""
    cut_off: str | None = None
    """How much the header states and how much there is, if the end of the file is missing."""
    damage: str | None = None
    """What is missing in the middle."""


class Spliced(io.RawIOBase):
    """The pieces of a part as one file."""

    def __init__(self, data: Data, pieces: Sequence[bytes | range]) -> None:
        self._data, self._pieces = data, pieces
        self._starts = [0, *accumulate(len(piece) for piece in pieces)]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._starts[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as there are bytes."""
        done = 0
        while done < len(buffer) and self._position < self._starts[-1]:
            index = bisect_right(self._starts, self._position) - 1
            piece, skipped = self._pieces[index], self._position - self._starts[index]
            count = min(len(buffer) - done, len(piece) - skipped)
            if isinstance(piece, bytes):
                found = piece[skipped : skipped + count]
            else:
                try:
                    found = self._data.read(piece.start + skipped, count)
                except OSError:
                    found = b""  # C code calls this. Afterwards, the file is read again to find the disk error.
            if not found:
                break  # the file became shorter
            buffer[done : done + len(found)] = found
            done += len(found)
            self._position += len(found)
        return done
