"""Find the pages of Ogg files.

Each page has a checksum, a number and the position of its last sample. A page contains packets, which are the units
that a codec decodes. A long packet continues in the next page.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from tiny_audio.audio._parts import Data, Layout, Part
from tiny_audio.audio._tags import before_tags

_HEAD_BYTES = 27
_FIRST, _LAST = 2, 4
"""Flags that mark the first and the last page of a stream."""
_MAX_PAGES = 1_000_000
"""Files with this many pages or more (usually 4 GB or more) are not checked, to limit memory for hostile files."""
_LATE_S = 30.0
"""If the first page with samples ends later than this, the recording began in the middle of a live stream. Times are
then counted from the end of this page."""
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


class _Page(NamedTuple):
    start: int
    end: int
    flags: int
    position: int
    """End of the last packet that ends in this page, in samples since the start of the stream; -1 if there is none."""
    serial: int
    number: int
    packets: int
    """Number of packets that end in the page."""


class _Codec(NamedTuple):
    header_packets: int
    """Number of packets before the first samples."""
    rate: int
    """The positions of pages are counted in samples at this rate in Hz. For Opus, it is always 48,000."""
    skipped: int = 0
    """Number of samples at the start that do not belong to the recording."""


def ogg_layout(data: Data, careful: bool) -> Layout | None:
    """Return how to read an Ogg file that is damaged or consists of several joined recordings.

    Args:
        careful: verify the checksum of every page.

    Returns:
        None if the file is one undamaged recording, or if no audio is found.
    """
    if data.read(0, 4) != b"OggS":
        return None
    end = before_tags(data, 0, data.size)
    pages = list(islice(_pages(data, end, careful), _MAX_PAGES))
    if not pages or len(pages) == _MAX_PAGES:
        return None
    parts: list[Part] = []
    notes: list[str] = []
    cut_off = damage = None
    rest = b""
    if pages[-1].end < end and not pages[-1].flags & _LAST:
        cut_off = f"cut off or damaged: its last {end - pages[-1].end:,} bytes are not a whole page"
        rest = _whole_packets(data, pages[-1], end) if careful else b""
    links = list(_links(pages))
    num_streams, origin = 0, 0.0
    for link in links:
        tracks = list(_audio_tracks(data, link))
        if not tracks:
            continue
        stream, codec = tracks[0]
        headers, body = _divided(stream, codec)
        runs = list(_runs(body))
        if not runs:
            continue
        num_streams += 1
        if len(tracks) > 1:
            notes.append(f"has {len(tracks)} audio tracks; track 1 is used; choose another one with --audio-track")
        base = _base(body, codec)
        whole = len(runs) == 1 and runs[0][0].number == headers[-1].number + 1
        if not whole:
            damage = "damaged: pages are missing or changed"
        for run in runs:
            back = [rest] if rest and run[-1] is pages[-1] else []
            last = max(page.position for page in run) if not back else _position(rest)
            seconds = (last - base - codec.skipped) / codec.rate
            numbered = run[0].number == headers[-1].number + 1
            front = _ranges(headers) if numbered else [_renumbered(data, headers, run[0].number)]
            parts.append(Part((*front, *_ranges(run), *back), end_s=None if whole else origin + seconds))
        origin += max(0.0, seconds)
    if careful and parts and not cut_off and not stream[-1].flags & _LAST:
        cut_off = "its last page is not marked as the end of the stream, so the file may be cut off"
    joined = sum(page.end - page.start for page in pages)
    if not parts and not cut_off:
        return None
    if num_streams > 1:
        notes.append(f"{num_streams} joined streams; all of them are used")
    if len(parts) == 1 and len(links) == 1 and not damage and not cut_off and not notes and joined == data.size:
        return None
    return Layout(tuple(parts), "; ".join(notes) or None, cut_off, damage)


def _pages(data: Data, end: int, careful: bool) -> Iterator[_Page]:
    position = 0
    while position + _HEAD_BYTES <= end:
        head = data.read(position, _HEAD_BYTES + 255)
        after = position + _HEAD_BYTES
        if head[:5] == b"OggS\0":
            lacing = head[_HEAD_BYTES : _HEAD_BYTES + head[26]]
            after += len(lacing) + sum(lacing)
            if after <= end and (not careful or _is_intact(data.read(position, after - position))):
                _, _, flags, granule, serial, number = struct.unpack("<4sBBqII", head[:22])
                packets = len(lacing) - lacing.count(255)
                yield _Page(position, after, flags, granule, serial, number, packets)
                position = after
                continue
        position = data.find(b"OggS", position + 1, end)
        if position < 0:
            return


def _whole_packets(data: Data, last: _Page, end: int) -> bytes:
    """Make a new page from the whole packets of a cut-off page.

    Args:
        last: the page before the cut-off page.
        end: the end of the data, before any tags.

    Returns:
        the new page. It is empty if it cannot be made, for example because no packet is whole.
    """
    head = data.read(last.end, _HEAD_BYTES + 255)
    if head[:5] != b"OggS\0" or len(head) < _HEAD_BYTES or head[14:18] != last.serial.to_bytes(4, "little"):
        return b""
    lacing = head[_HEAD_BYTES : _HEAD_BYTES + head[26]]
    start = last.end + _HEAD_BYTES + len(lacing)
    kept = size = total = 0
    for index, length in enumerate(lacing):
        total += length
        if length < 255 and start + total <= end:
            kept, size = index + 1, total
    if kept == 0 or last.position < 0:
        return b""
    # The stated position belongs to the page's last packet, so the position of the last kept packet is estimated.
    packets, position = len(lacing) - lacing.count(255), _position(head)
    share = (kept - lacing[:kept].count(255)) / packets
    position = last.position + round(max(0, position - last.position) * share)
    page = head[:6] + position.to_bytes(8, "little") + head[14:22] + bytes(4) + bytes([kept]) + lacing[:kept]
    page += data.read(start, size)
    return page[:22] + _checksum(page).to_bytes(4, "little") + page[26:]


def _position(page: bytes) -> int:
    return int.from_bytes(page[6:14], "little", signed=True)


def _is_intact(page: bytes) -> bool:
    return _checksum(page[:22] + bytes(4) + page[26:]) == int.from_bytes(page[22:26], "little")


def _checksum(page: bytes) -> int:
    """Return the CRC that Ogg uses: zlib's CRC with the bits in reverse order, and without zlib's inversions."""
    reverse = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(reverse.to_bytes(4, "little").translate(_REVERSED), "big")


def _links(pages: Sequence[_Page]) -> Iterator[Sequence[_Page]]:
    """Yield the pages of each of the joined recordings.

    A stream (track) begins with a page that is marked as first. A recording begins with the first pages of all its
    streams. A first page that follows a page of another kind begins the next recording.
    """
    first = 0
    for index in range(1, len(pages) + 1):
        if index == len(pages) or (pages[index].flags & _FIRST and not pages[index - 1].flags & _FIRST):
            yield pages[first:index]
            first = index


def _audio_tracks(data: Data, link: Sequence[_Page]) -> Iterator[tuple[list[_Page], _Codec]]:
    for page in link:
        if not page.flags & _FIRST:
            break
        head = data.read(page.start, page.end - page.start)
        packet = head[_HEAD_BYTES + head[26] :]
        codec = None
        if packet[:7] == b"\x01vorbis":
            codec = _Codec(3, int.from_bytes(packet[12:16], "little"))
        elif packet[:8] == b"OpusHead":
            codec = _Codec(2, 48_000, int.from_bytes(packet[10:12], "little"))
        elif packet[:5] == b"\x7fFLAC":
            codec = _Codec(1 + int.from_bytes(packet[7:9], "big"), int.from_bytes(packet[27:30], "big") >> 4)
        elif packet[:8] == b"Speex   ":
            codec = _Codec(2, int.from_bytes(packet[36:40], "little"))
        if codec is not None and codec.rate:
            yield [one for one in link if one.serial == page.serial], codec


def _divided(stream: Sequence[_Page], codec: _Codec) -> tuple[Sequence[_Page], Sequence[_Page]]:
    """Divide a stream into the pages with headers and the pages with samples."""
    packets = 0
    for index, page in enumerate(stream):
        packets += page.packets
        if packets >= codec.header_packets:
            return stream[: index + 1], stream[index + 1 :]
    return stream, []


def _runs(body: Sequence[_Page]) -> Iterator[Sequence[_Page]]:
    """Yield runs of pages without a gap between their numbers. Runs in which no packet ends are left out."""
    first = 0
    for index in range(1, len(body) + 1):
        if index == len(body) or body[index].number != body[index - 1].number + 1:
            if any(page.position >= 0 for page in body[first:index]):
                yield body[first:index]
            first = index


def _base(body: Sequence[_Page], codec: _Codec) -> int:
    """Return the position at which the recording begins."""
    first = next(page.position for page in body if page.position >= 0)
    return first if first > _LATE_S * codec.rate else 0


def _ranges(pages: Sequence[_Page]) -> list[range]:
    """Return the byte ranges of pages. Ranges of adjacent pages are joined."""
    ranges: list[range] = []
    for page in pages:
        if ranges and ranges[-1].stop == page.start:
            ranges[-1] = range(ranges[-1].start, page.end)
        else:
            ranges.append(range(page.start, page.end))
    return ranges


def _renumbered(data: Data, headers: Sequence[_Page], following: int) -> bytes:
    """Return the header pages with new numbers just before ``following``, such as 88 and 89 before 90.

    A decoder would treat a gap between the numbers as lost pages.
    """
    pages = []
    for index, page in enumerate(headers):
        number = following - len(headers) + index & 0xFFFFFFFF
        content = data.read(page.start, page.end - page.start)
        content = content[:18] + number.to_bytes(4, "little") + bytes(4) + content[26:]
        pages.append(content[:22] + _checksum(content).to_bytes(4, "little") + content[26:])
    return b"".join(pages)
