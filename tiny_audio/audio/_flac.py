"""Find the frames and count the samples of FLAC files. Each frame's header has a number and a checksum, so frames
can be found again after damaged bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from tiny_audio.audio._parts import Data, Layout, Part, PartFrame
from tiny_audio.audio._tags import after_id3, before_tags

_BLOCK_BYTES = 1 << 20
_MAX_HEADER = 16
_MIN_FRAME_BYTES = 10
_PART_SAMPLES = 1 << 20
"""A part ends after this number of samples, counted over all channels."""
_MAX_BLOCK = 65_535
_MAX_FRAMES = 2_000_000
"""At most this many frames are read, to limit memory for hostile files. At 16 kHz, they usually last over 100 hours."""
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_BLOCK_SIZES = {1: 192, **{code: 576 << code - 2 for code in range(2, 6)}, **{n: 256 << n - 8 for n in range(8, 16)}}


def _crc8_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value << 1 ^ (0x07 if value & 0x80 else 0)) & 0xFF
        table.append(value)
    return table


_CRC8 = _crc8_table()


class _Stream:
    """The first metadata block of a file (STREAMINFO), which describes the samples."""

    def __init__(self, data: Data, start: int) -> None:
        self.info = data.read(start + 8, 34)
        self.block = int.from_bytes(self.info[0:2], "big")
        rate_and_total = int.from_bytes(self.info[10:18], "big")
        self.rate = max(1, rate_and_total >> 44)
        self.channels = (rate_and_total >> 41 & 7) + 1
        self.total = rate_and_total & (1 << 36) - 1
        self.max_frame_bytes = int.from_bytes(self.info[7:10], "big")
        position, last = start + 4, False
        while not last and position < data.size:
            head = data.read(position, 4)
            last = not head or head[0] >= 0x80
            position += 4 + int.from_bytes(head[1:4], "big")
        self.audio = min(position, data.size)
        """Position of the first frame in the file."""

    @property
    def header(self) -> bytes:
        """The header of a FLAC file with the same STREAMINFO, but without the checksum of all samples."""
        return b"fLaC\x80\x00\x00\x22" + self.info[:18] + bytes(16)

    def frame(self, buffer: bytes, at: int) -> tuple[int, int] | None:
        """Read the frame header at ``buffer[at:]``.

        Returns:
            The index of the frame's first sample, and the number of samples in the frame; None if there is no valid
            header.
        """
        head = buffer[at : at + _MAX_HEADER]
        if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1 or head[3] >> 4 > 10 or head[3] & 0x0E == 0x06:
            return None
        code, rate = head[2] >> 4, head[2] & 15
        if code == 0 or rate == 15:
            return None
        ones = 8 - (head[4] ^ 0xFF).bit_length()  # the frame's number is encoded like a UTF-8 character
        if ones in (1, 8):
            return None
        number, end = head[4] & 0x7F >> ones, 5 + max(0, ones - 1)
        for byte in head[5:end]:
            number = number << 6 | byte & 0x3F
        extra = {6: 1, 7: 2}.get(code, 0)
        samples = int.from_bytes(head[end : end + extra], "big") + 1 if extra else _BLOCK_SIZES[code]
        end += extra + {12: 1, 13: 2, 14: 2}.get(rate, 0)
        if end >= len(head):
            return None
        crc = 0
        for byte in head[:end]:
            crc = _CRC8[crc ^ byte]
        if crc != head[end]:
            return None
        return number if head[1] & 1 else number * self.block, samples


def flac_layout(data: Data, careful: bool) -> Layout | None:
    """Return how to read a FLAC file that is damaged, has a wrong header, or consists of several joined files.

    Args:
        careful: check every frame. If False, only the last frame is checked.

    Returns:
        None if the file is not FLAC or has no frames. If ``careful`` is False, the result is also None if the last
        frame ends where the header says.
    """
    start = after_id3(data, 0)
    if data.read(start, 8) != b"fLaC\x00\x00\x00\x22":
        return None
    end = before_tags(data, start, data.size)
    if not careful and _ends_as_stated(data, _Stream(data, start), end):
        return None
    parts: list[Part] = []
    notes, cut_off, missing_s, origin = [], None, 0.0, 0.0
    while start < end:
        stream = _Stream(data, start)
        after = data.find(b"fLaC\x00\x00\x00\x22", stream.audio, end)
        after = end if after < 0 else after
        frames = _consistent(_frames(data, stream, after))
        samples = frames[-1].start + frames[-1].samples if frames else 0
        for run in _runs(frames):
            parts += _parts(run, stream, origin)
        missing_s += (samples - sum(frame.samples for frame in frames)) / stream.rate
        if stream.total > samples:
            cut_off = f"cut off: the header says {stream.total:,} samples, but there are {samples:,}"
        elif 0 < stream.total < samples:
            notes.append(
                f"the header says {stream.total / stream.rate:.2f} s of audio, but the file contains "
                f"{samples / stream.rate:.2f} s; all of it is used"
            )
        origin += samples / stream.rate
        start = after
    if not parts:
        return None
    damage = f"damaged: {missing_s:.2f} s cannot be decoded" if missing_s else None
    return Layout(tuple(parts), "; ".join(notes) or None, cut_off, damage)


def _parts(run: Sequence[PartFrame], stream: _Stream, origin: float) -> Iterator[Part]:
    """Divide consecutive frames into parts of limited size; ``origin`` is the time of sample 0 in seconds."""
    first = samples = 0
    for index, frame in enumerate(run):
        samples += frame.samples
        if index == len(run) - 1 or samples * stream.channels >= _PART_SAMPLES:
            yield _part(run[first : index + 1], stream.header, origin)
            first, samples = index + 1, 0


def _part(frames: Sequence[PartFrame], header: bytes, origin: float) -> Part:
    rate = max(1, int.from_bytes(header[18:21], "big") >> 4)
    samples = sum(frame.samples for frame in frames)
    total = int.from_bytes(header[18:26], "big") >> 36 << 36 | samples
    header = header[:18] + total.to_bytes(8, "big") + header[26:]
    start_s = origin + frames[0].start / rate
    pieces = (header, range(frames[0].offset, frames[-1].end))
    return Part(pieces, start_s, start_s + samples / rate, frames=tuple(frames))


def halves(part: Part) -> tuple[Part, Part]:
    """Divide a part of at least two frames into two halves."""
    header = part.pieces[0]
    assert isinstance(header, bytes)
    assert part.start_s is not None
    rate = max(1, int.from_bytes(header[18:21], "big") >> 4)
    origin, middle = part.start_s - part.frames[0].start / rate, len(part.frames) // 2
    return _part(part.frames[:middle], header, origin), _part(part.frames[middle:], header, origin)


def _ends_as_stated(data: Data, stream: _Stream, end: int) -> bool:
    """Whether the last frame ends at the last sample that the header states."""
    size = min(end - stream.audio, max(stream.max_frame_bytes, 8_192) + _MAX_HEADER)
    tail = data.read(end - size, size)
    sync = data.read(stream.audio, 2)
    at = tail.rfind(sync) if len(sync) == 2 else -1
    while at >= 0 and stream.total:
        frame = stream.frame(tail, at)
        if frame is not None and sum(frame) == stream.total:
            return True
        at = tail.rfind(sync, 0, at)
    return False


def _frames(data: Data, stream: _Stream, end: int) -> Iterator[PartFrame]:
    """Yield everything that looks like a frame. The ``end`` of each frame is corrected later by :func:`_consistent`."""
    position = stream.audio
    while position < end:
        block = data.read(position, min(_BLOCK_BYTES, end - position))
        # A block may be shorter than requested because the file became shorter after it was opened.
        last = position + len(block) >= end or len(block) <= _MAX_HEADER
        for match in _SYNC.finditer(block):
            if match.start() >= len(block) - _MAX_HEADER and not last:
                break
            frame = stream.frame(block, match.start())
            if frame is not None:
                yield PartFrame(position + match.start(), end, *frame)
        if last:
            return
        position += len(block) - _MAX_HEADER


def _consistent(found: Iterator[PartFrame]) -> list[PartFrame]:
    """Return the real frames with their correct ends.

    Bytes inside a frame may look like the start of another frame. Such false frames are left out.
    """
    seen = list(islice(found, _MAX_FRAMES))
    kept: list[PartFrame] = []
    for index, frame in enumerate(seen):
        before = kept[-1].start + kept[-1].samples if kept else 0
        following = {other.start for other in seen[index + 1 : index + 4]}
        expected = frame.start == before or frame.start + frame.samples in following
        # A frame between two damaged sections is not `expected`. It is kept if the next frames have later samples. In
        # both cases, the samples since the last kept frame must fit into the bytes since that frame.
        bytes_before = frame.offset - (kept[-1].offset if kept else 0)
        possible = before <= frame.start <= before + bytes_before // _MIN_FRAME_BYTES * _MAX_BLOCK
        later = all(other.start > frame.start for other in seen[index + 1 : index + 4])
        if possible and (expected or later):
            kept.append(frame)
    ends = [frame.offset for frame in kept[1:]] + [frame.end for frame in kept[-1:]]
    return [replace(frame, end=end) for frame, end in zip(kept, ends, strict=True)]


def _runs(frames: Sequence[PartFrame]) -> Iterator[Sequence[PartFrame]]:
    """Yield runs of frames without a gap between their samples."""
    first = 0
    for index in range(1, len(frames) + 1):
        if index == len(frames) or frames[index].start != frames[index - 1].start + frames[index - 1].samples:
            yield frames[first:index]
            first = index
