"""Find the files inside a file that was made by joining files, for example with `cat a.mp4 b.mp4 >c.mp4`.

FFmpeg alone would read only the first of the joined files. Only MP4, Matroska, ASF and AVI files are searched.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tiny_audio.audio._parts import Data

_MAX_FILES = 10_000
_MAX_BOXES = 1_000_000
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_EBML_BYTES = 64
"""The header of a Matroska file is shorter than this."""
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_SIZES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
"""In an ASF header, the file size is 40 bytes after the start of these bytes."""
_HEAD_BYTES = 8_192


def joined_files(path: Path) -> list[range]:
    """Return the byte range of each of the joined files. If no files were joined, there is one range.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        data = Data(file.fileno())
        starts = [0]
        while len(starts) < _MAX_FILES:
            end = _end(data, starts[-1])
            if not starts[-1] < end < data.size:
                break
            starts.append(end)
        return [range(start, end) for start, end in zip(starts, [*starts[1:], data.size], strict=True)]


def asf_size(head: bytes) -> int:
    """Return the file size that an ASF header states; 0 if no size is stated."""
    at = head.find(_ASF_SIZES)
    return int.from_bytes(head[at + 40 : at + 48], "little") if at >= 0 else 0


def _end(data: Data, start: int) -> int:
    """Return the start of the next file; the end of the data if there is none."""
    head = data.read(start, 12)
    end = next((find(data, start) for test, find in _FORMATS if test(head)), data.size)
    following = data.read(end, 12)
    return end if any(test(following) for test, _ in _FORMATS) else data.size


def _mp4_end(data: Data, start: int) -> int:
    position, found = start, set[bytes]()
    for _ in range(_MAX_BOXES):
        head = data.read(position, 16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if kind == b"ftyp" and {b"moov", b"mdat"} <= found:
            return position
        size = int.from_bytes(head[8:16], "big") if size == 1 else size
        # A file with fragments (`moof`) is one recording, even if the file's header is repeated before each fragment.
        if size < 8 or kind == b"moof":
            break
        found.add(kind)
        position += size
    return data.size


def _matroska_end(data: Data, start: int) -> int:
    head = data.read(start, _EBML_BYTES + 16)
    at = head.find(_SEGMENT) + len(_SEGMENT)
    if at < len(_SEGMENT) or at >= len(head) or head[at] == 0:
        return data.size
    width = 9 - head[at].bit_length()
    size = int.from_bytes(head[at : at + width], "big") & (1 << 7 * width) - 1
    if size != (1 << 7 * width) - 1:
        return start + at + width + size
    # A live recording does not state its size, so search for the next header.
    position = start + at
    while (position := data.find(_EBML, position, data.size)) >= 0:
        if _SEGMENT in data.read(position, _EBML_BYTES):
            return position
        position += len(_EBML)
    return data.size


def _asf_end(data: Data, start: int) -> int:
    return start + asf_size(data.read(start, _HEAD_BYTES))


def _avi_end(data: Data, start: int) -> int:
    position = start
    while data.read(position, 4) == b"RIFF" and (position == start or data.read(position + 8, 4) == b"AVIX"):
        size = int.from_bytes(data.read(position + 4, 4), "little")
        position += 8 + size + size % 2
    return position


_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[Data, int], int]], ...] = (
    (lambda head: head[4:8] == b"ftyp", _mp4_end),
    (lambda head: head[:4] == _EBML, _matroska_end),
    (lambda head: head[:12] == _ASF[:12], _asf_end),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"AVI ", _avi_end),
)
