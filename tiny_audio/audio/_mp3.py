"""Find and count the frames of MP3 files.

Each frame has a header of four bytes. The first frame may be a Xing, Info or VBRI header, which is called *length tag*
here. It states the number of frames and contains no audio.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tiny_audio.audio._parts import Data, Layout, Part
from tiny_audio.audio._tags import after_id3, before_tags, tag_at

_BLOCK_BYTES = 1 << 20
_HEAD_BYTES = 4_096
_HEADER_BYTES = 4
_CONFIRMED_BY = 2
"""A frame header that is found at an unexpected position counts only if this many frames follow it."""
_MAX_TAG_BYTES = 1_024
"""Larger tags (ID3, APE, Lyrics3) at the end of a file are hidden from the decoder, which would print warnings."""
_TOLERANCE_S = 0.1
_LEAST_BYTES_PER_S, _MOST_BYTES_PER_S = 500, 60_000
"""The size that a length tag states is trusted only if the resulting byte rate is in this range."""
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_KBITS = {
    (3, 3): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates in kbit/s, by version and layer. Version 3 stands for MPEG 1, and 2 for MPEG 2 and 2.5. Layer 3 stands for
layer I, 2 for layer II, and 1 for layer III. In version 2, layers II and III have the same rates, in the row (2, 2)."""
_ID3_HEAD_BYTES = 10
_LAYER_3 = 1
_DECODER_DELAY = 529
"""Delay of a layer III decoder, in samples."""
_VBRI_AT = 36
"""Position of a length tag of the kind VBRI in the first frame. Other length tags are marked Xing or Info."""
_MAX_LOST_BYTES = 1 << 24
"""After this many bytes outside of frames and tags, the rest of a file is ignored."""
_MAX_RUNS = 100_000
"""At most this many runs of consecutive frames are read, to limit memory for hostile files."""
_SYNC = re.compile(rb"\xff[\xe2-\xff]")


@dataclass(frozen=True, slots=True)
class _Kind:
    """Properties that all frames of a stream share."""

    version: int
    layer: int
    rate: int
    mono: bool

    @property
    def samples(self) -> int:
        """Samples per frame."""
        return 384 if self.layer == 3 else 576 if self.layer == 1 and self.version != 3 else 1_152

    @property
    def tag_at(self) -> int:
        """Position of a length tag (Xing or Info) in the first frame."""
        return 4 + ((17 if self.mono else 32) if self.version == 3 else (9 if self.mono else 17))


@dataclass
class _Run:
    """Consecutive frames. The first may be a length tag."""

    kind: _Kind
    start: int
    end: int
    frames: int = 0
    """Number of frames, without the length tag."""
    tag: bytes = b""
    """The frame that is a length tag; empty if there is none."""
    lost_before: int = 0
    """Bytes before the run that are neither frames nor tags."""

    @property
    def declared(self) -> int:
        """Number of frames that the length tag states; 0 if it states none."""
        at = self.kind.tag_at
        if self.tag[_VBRI_AT : _VBRI_AT + 4] == b"VBRI":
            return int.from_bytes(self.tag[_VBRI_AT + 14 : _VBRI_AT + 18], "big")
        return int.from_bytes(self.tag[at + 8 : at + 12], "big") if self.tag and self.tag[at + 7] & 1 else 0

    @property
    def frame_s(self) -> float:
        """Duration of a frame in seconds."""
        return self.kind.samples / self.kind.rate

    def pieces(self) -> tuple[bytes | range, ...]:
        """Return the pieces of a file with only these frames: new bytes, and byte ranges of the original file.

        In layer III, a wrong length tag is replaced, and a missing one is added.
        """
        if self.declared == self.frames or self.kind.layer != _LAYER_3:
            return (range(self.start, self.end),)  # in other layers, decoders ignore length tags
        tag, at, count = bytearray(self.tag), self.kind.tag_at, self.frames.to_bytes(4, "big")
        if tag[_VBRI_AT : _VBRI_AT + 4] == b"VBRI":
            tag[_VBRI_AT + 14 : _VBRI_AT + 18] = count
        elif tag and tag[at + 7] & 1:
            # Correct the numbers of frames and bytes, and set the padding after the last sample to 0. Keep the other
            # fields, such as the encoder's delay.
            tag[at + 8 : at + 12] = count
            if tag[at + 7] & 2:
                tag[at + 12 : at + 16] = (self.end - self.start).to_bytes(4, "big")
            if len(tag) >= at + 144 and bytes(tag[at + 120 : at + 124]) in (b"LAME", b"Lavf", b"Lavc"):
                tag[at + 142 : at + 144] = bytes([tag[at + 142] & 0xF0, 0])
        else:
            tag = bytearray(_new_tag(self.kind, count))
        return bytes(tag), range(self.start + len(self.tag), self.end)


def mp3_layout(data: Data, careful: bool, inside: range | None = None) -> Layout | None:
    """Return how to read an MP3 that is damaged, has a wrong or no length tag, or consists of several joined files.

    Args:
        careful: check every frame. If False, a length tag that agrees with the file's size is trusted.
        inside: the byte range of an MP3 inside another file, such as WAV. If None, the whole file is the MP3.

    Returns:
        None if the decoder can read the file as it is, or if the file is not an MP3.
    """
    begin = 0 if inside is None else inside.start
    start = after_id3(data, begin)
    size = data.size if inside is None else inside.stop
    window = _Window(data, _BLOCK_BYTES if careful else _HEAD_BYTES)
    if start == begin and _parse(window(start)) is None:
        return None
    is_id3_wrong = start == size  # according to its size, the ID3 tag fills the file
    if is_id3_wrong:
        start = begin + _ID3_HEAD_BYTES
    end = before_tags(data, start, size)
    if not careful and inside is None and _ends_as_stated(window, start, end, size):
        return None
    runs, stop = _runs(_Window(data, _BLOCK_BYTES), start, end)
    if not runs:
        return None
    parts: list[Part] = []
    notes, missing_s = [], 0.0
    cut_off = None
    if end - stop >= _HEADER_BYTES:
        why = (
            f"the audio before them is in {_MAX_RUNS:,} separate pieces"
            if len(runs) >= _MAX_RUNS
            else f"more than {_MAX_LOST_BYTES:,} bytes before them contain no audio"
        )
        cut_off = f"damaged: its last {end - stop:,} bytes are not read, because {why}"
    for group in _groups(runs):
        frame_s, known, found = group[0].frame_s, group[0].declared, sum(run.frames for run in group)
        lost = _lost_frames(group, known - found if known else None, is_whole=group[-1].end == end)
        for run, frames in zip(group, lost, strict=True):
            # The decoder treats each part as a separate file, so it removes its own delay from the start of each part.
            # This delay is added to the gap before the part.
            delay_s = _DECODER_DELAY / run.kind.rate if run is not group[0] else 0.0
            if run.frames:
                parts.append(Part(run.pieces(), gap_s=frames * frame_s + delay_s))
        missing_s += sum(lost) * frame_s
        if known > found + sum(lost) + 1 and cut_off is None:
            cut_off = f"cut off: the header says {known * frame_s:.2f} s, but there are {found * frame_s:.2f} s"
        elif 0 < known < found:
            notes.append(
                f"the header says {known * frame_s:.2f} s of audio, but the file contains {found * frame_s:.2f} s; "
                "all of it is used"
            )
    several = sum(bool(run.tag) for run in runs)
    if several > 1:
        notes.append(f"{several} joined files; all of them are used")
    usual = inside is None and len(runs) == 1 and runs[0].declared > 0 and size - end <= _MAX_TAG_BYTES
    if usual and not is_id3_wrong and not notes and not cut_off:
        return None
    damage = f"damaged: about {missing_s:.2f} s cannot be decoded" if missing_s else None
    return Layout(tuple(parts), "; ".join(notes) or None, cut_off, damage)


def _lost_frames(group: Sequence[_Run], missing: int | None, is_whole: bool) -> list[int]:
    """Return the number of frames that are lost before each run of a recording.

    Args:
        missing: the number of missing frames according to the length tag; None if it is unknown.
        is_whole: whether the last frame of the recording is complete and ends where the audio of the file ends. If
            True, all missing frames are assumed to be between runs.
    """
    lost_bytes = sum(run.lost_before for run in group[1:])
    mean_bytes = sum(run.end - run.start for run in group) / max(1, sum(run.frames for run in group))
    frames = round(lost_bytes / mean_bytes)
    if missing is not None:
        frames = max(0, missing if is_whole else min(missing, frames))
    lost, before = [0], 0
    for run in group[1:]:
        before += run.lost_before
        lost.append(round(frames * before / lost_bytes) - sum(lost))
    return lost


class _Window:
    """Buffered reading of a few bytes at a time, at increasing positions."""

    def __init__(self, data: Data, block_bytes: int) -> None:
        self.data, self._block_bytes = data, block_bytes
        self._start, self._block = 0, b""

    def __call__(self, position: int, count: int = 4) -> bytes:
        at = position - self._start
        if at < 0 or at + count > len(self._block):
            self._block = self.data.read(position, max(self._block_bytes, count))
            self._start, at = position, 0
        return self._block[at : at + count]

    def next_frame(self, position: int, end: int) -> int:
        """Return the next position at which a frame may begin; ``end`` if there is none."""
        while position < end:
            self(position, 2)
            match = _SYNC.search(self._block, position - self._start)
            if match is not None:
                return min(end, self._start + match.start())
            position = self._start + len(self._block) - 1 if len(self._block) > 1 else end
        return end


@lru_cache(4_096)
def _parse(head: bytes) -> tuple[_Kind, int] | None:
    """Return the kind of the frame with this header, and its size in bytes; None if ``head`` is not a frame header."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bits, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 0 or bits in (0, 15) or rate == 3:
        return None
    kbits = _KBITS.get((3 if version == 3 else 2, layer)) or _KBITS[2, 2]
    hertz, padding = _RATES[version][rate], head[2] >> 1 & 1
    if layer == 3:
        size = (12_000 * kbits[bits] // hertz + padding) * 4
    else:
        size = (72_000 if layer == 1 and version != 3 else 144_000) * kbits[bits] // hertz + padding
    return _Kind(version, layer, hertz, head[3] >> 6 == 3), size


def _tag(window: _Window, position: int, kind: _Kind, size: int) -> bytes:
    """Return the frame at this position if it is a length tag. Otherwise, return no bytes."""
    if window(position + kind.tag_at) in (b"Xing", b"Info") or window(position + _VBRI_AT) == b"VBRI":
        tag = window(position, size)
        if len(tag) >= max(kind.tag_at + 16, _VBRI_AT + 18):
            return tag
    return b""


def _new_tag(kind: _Kind, count: bytes) -> bytes:
    """Return a length tag that states the number of frames."""
    second = 0xE0 | kind.version << 3 | kind.layer << 1 | 1
    rate = _RATES[kind.version].index(kind.rate)
    for bits in range(1, 15):
        head = bytes([0xFF, second, bits << 4 | rate << 2, 0xC0 if kind.mono else 0])
        found = _parse(head)
        if found is not None and found[1] >= kind.tag_at + 16:
            return (head + bytes(kind.tag_at - 4) + b"Xing\0\0\0\1" + count).ljust(found[1], b"\0")
    raise AssertionError("the largest frame is large enough")


def _ends_as_stated(window: _Window, start: int, end: int, size: int) -> bool:
    """Whether the length tag states the size in bytes, and this size is right."""
    found = _parse(window(start))
    tag = _tag(window, start, *found) if found else b""
    if not found or not tag or size - end > _MAX_TAG_BYTES:
        return False
    run = _Run(found[0], start, end, tag=tag)
    at = found[0].tag_at
    if tag[_VBRI_AT : _VBRI_AT + 4] == b"VBRI":
        num_bytes = int.from_bytes(tag[_VBRI_AT + 10 : _VBRI_AT + 14], "big")
    elif tag[at + 7] & 3 == 3:
        num_bytes = int.from_bytes(tag[at + 12 : at + 16], "big")
    else:
        return False
    if (
        not _LEAST_BYTES_PER_S
        <= num_bytes * found[0].rate / max(1, run.declared * found[0].samples)
        <= _MOST_BYTES_PER_S
    ):
        return False
    seconds_per_byte = run.declared * found[0].samples / found[0].rate / max(1, num_bytes)
    return abs(num_bytes - (end - start)) * seconds_per_byte <= _TOLERANCE_S


def _runs(window: _Window, start: int, end: int) -> tuple[list[_Run], int]:
    """Return the runs of consecutive frames, and the position at which the search stopped."""
    runs: list[_Run] = []
    position, lost, total = start, 0, 0
    current: _Run | None = None
    while position + _HEADER_BYTES <= end and total <= _MAX_LOST_BYTES and len(runs) < _MAX_RUNS:
        found = _parse(window(position))
        expected = found is not None and current is not None and found[0] == current.kind
        tag = _tag(window, position, *found) if found else b""
        # A length tag counts even if no valid frames follow it, because the frames after it may be damaged.
        if found and position + found[1] <= end and (expected or tag or _confirmed(window, position, end)):
            kind, size = found
            if current is None or tag or not expected:
                current = _Run(kind, position, position, tag=tag, lost_before=lost)
                runs.append(current)
                lost = 0
            current.frames += not tag
            position += size
            current.end = position
            continue
        current = None
        skipped = tag_at(window.data, position, end)
        if skipped:
            position += skipped
            continue
        after = window.next_frame(position + 1, end)
        lost, total, position = lost + after - position, total + after - position, after
    # A length tag without frames is kept if the frames after it are damaged, because it states the number of frames.
    others: list[_Run | None] = [*runs[1:], None]
    return [run for run, other in zip(runs, others, strict=False) if run.frames or _continues(other, run)], position


def _continues(run: _Run | None, first: _Run) -> bool:
    """Whether a run belongs to the recording whose first run is ``first``.

    Unreadable bytes must have been skipped before the run. Otherwise, the run begins another joined file. In addition,
    the run's frames must be of the recording's kind, and the run must not begin with a length tag.
    """
    return run is not None and not run.tag and run.lost_before > 0 and run.kind == first.kind


def _confirmed(window: _Window, position: int, end: int) -> bool:
    """Whether further frames follow at the expected positions."""
    first = found = _parse(window(position))
    for _ in range(_CONFIRMED_BY):
        assert found is not None
        position += found[1]
        if position + 4 > end:
            return position <= end
        found = _parse(window(position))
        if first is None or found is None or found[0] != first[0]:
            return False
    return True


def _groups(runs: Sequence[_Run]) -> Iterator[Sequence[_Run]]:
    """Yield the runs of each recording."""
    first = 0
    for index in range(1, len(runs) + 1):
        if index == len(runs) or not _continues(runs[index], runs[first]):
            yield runs[first:index]
            first = index
