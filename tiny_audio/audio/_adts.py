"""Keep times correct in damaged raw AAC files (the ADTS format), whose frames have no timestamps.

FFmpeg skips damaged bytes without counting their duration, so all later sound would begin too early. This module
replaces damaged bytes by empty frames. FFmpeg outputs no samples for an empty frame, but counts its duration.
:mod:`tiny_audio.audio.ffmpeg` fills the resulting gap between timestamps with silence and reports it.
"""

from __future__ import annotations

import mmap
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tiny_audio.audio._parts import Data, Spliced
from tiny_audio.audio._tags import after_id3, before_tags

_HEADER_BYTES = 7
_SYNC = re.compile(rb"\xff[\xf0\xf1\xf8\xf9]")
_NUM_RATES = 13
_END = b"\xe0"
"""The content of an empty frame: only the code that marks the end of a frame."""


@contextmanager
def with_lost_frames(path: Path) -> Iterator[tuple[Path, int]]:
    """Yield the path of a copy in which empty frames replace damaged bytes, and the number of damaged bytes.

    If there are no damaged bytes, or if the file is not ADTS, the path is ``path`` itself and the number is 0.

    Raises:
        OSError: the file cannot be read, or there is no space for a copy.
    """
    with path.open("rb") as file:
        data = Data(file.fileno())
        pieces, num_bytes = _pieces(data)
        if not num_bytes:
            yield path, 0
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "lost.aac"
            with copy.open("wb") as target:
                shutil.copyfileobj(Spliced(data, pieces), target)
            yield copy, num_bytes


def _pieces(data: Data) -> tuple[Sequence[bytes | range], int]:
    """Return the pieces of the copy and the number of damaged bytes. A piece is new bytes, or a range of the file."""
    start = after_id3(data, 0)
    if data.read(start, 1) != b"\xff":
        return (), 0
    assert isinstance(data.stream, int)
    with mmap.mmap(data.stream, 0, access=mmap.ACCESS_READ) as content:
        runs = list(_Stream(content, start, before_tags(data, start, data.size)).runs())
        if len(runs) < 2:
            return (), 0
        header = bytearray(content[runs[0].start : runs[0].start + _HEADER_BYTES])
    header[1] |= 1  # no checksum
    size = _HEADER_BYTES + len(_END)
    header[3:6] = header[3] & 0xFC | size >> 11, size >> 3 & 0xFF, (size & 7) << 5 | header[5] & 0x1F
    header[6] &= 0xFC  # one block of samples per frame
    mean_bytes = sum(run.end - run.start for run in runs) / sum(run.frames for run in runs)
    pieces: list[bytes | range] = [range(runs[0].end)]
    for before, run in pairwise(runs):
        lost = max(1, round((run.start - before.end) / mean_bytes))
        pieces += [(bytes(header) + _END) * lost, range(run.start, run.end)]
    num_bytes = sum(run.start - before.end for before, run in pairwise(runs))
    return [*pieces, range(runs[-1].end, data.size)], num_bytes


@dataclass(frozen=True)
class _Run:
    """Consecutive frames, and where they are in the file."""

    start: int
    end: int
    frames: int


class _Stream:
    """The frames of a file. A frame is valid only if another frame or the end of the audio follows it."""

    def __init__(self, content: mmap.mmap, start: int, end: int) -> None:
        self._content, self._start, self._end = content, start, end

    def runs(self) -> Iterator[_Run]:
        """Yield the runs of consecutive frames. If the file does not begin with a frame, yield nothing."""
        at = self._start
        while self._size(self._start):
            first, frames = at, 0
            while size := self._confirmed(at):
                at, frames = at + size, frames + 1
            if frames:
                yield _Run(first, at, frames)
            found = _SYNC.search(self._content, at + 1, self._end)
            if found is None:
                return
            at = found.start()

    def _confirmed(self, at: int) -> int:
        """Return the size in bytes of the frame at this position; 0 if there is no valid frame."""
        size = self._size(at)
        after = at + size
        return size if size and (after == self._end or self._size(after)) else 0

    def _size(self, at: int) -> int:
        """Return the size that the header at this position states; 0 if there is no header."""
        header = self._content[at : min(at + _HEADER_BYTES, self._end)]
        if len(header) < _HEADER_BYTES or not _SYNC.match(header) or header[2] >> 2 & 15 >= _NUM_RATES:
            return 0
        size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
        return size if size >= _HEADER_BYTES else 0
