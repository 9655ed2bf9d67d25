"""Find the actual end of the samples in WAV, AIFF, W64, CAF and AU files.

A recording program first writes a placeholder for the size of the samples, and replaces it when the recording ends. If
the program is stopped or writes to a pipe, or if the file exceeds 4 GiB, the size in the header is wrong. The samples
then end where another chunk (a named block of bytes) begins, or at the end of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from tiny_audio.audio._chunks import (
    KNOWN_CHUNK,
    KNOWN_CHUNKS,
    W64_ALIGNMENT,
    ChunkReader,
    chunk_reader,
    w64_chunk_reader,
)
from tiny_audio.audio._mp3 import mp3_layout
from tiny_audio.audio._parts import Data, Layout, Part
from tiny_audio.audio._tags import before_tags, tag_at

_MAX_CHUNKS = 10_000
_MAX_FORMAT_BYTES = 1 << 16
_TAIL_BYTES = 1 << 20
"""If the size of the samples is wrong, this many bytes at the end of the file are searched for chunks."""
_PLACEHOLDER_SLACK = 1 << 16
"""A size that differs by at most this many bytes from a placeholder counts as a placeholder."""
_MPEG_TAGS = (0x50, 0x55)
"""Codec codes in WAV files: MPEG layer 1 or 2 (0x50), and layer 3 (0x55)."""


@dataclass(frozen=True)
class _Container:
    """A parsed header, which can be rewritten for samples of another size."""

    start: int
    """Position of the first sample in the file."""
    declared: int | None
    """Size of the samples in bytes that the header states. None if it states no size, or only a placeholder."""
    bytes_per_s: float
    header: Callable[[int], bytes]
    """Returns a new header, given the size of the samples in bytes."""
    chunk: ChunkReader
    frame_bytes: int = 1
    """Number of bytes for one sample of each channel. In compressed formats, the size of a block or a packet."""
    readable: bool = True
    """Whether libsndfile reads the file correctly if the size in the header is right."""
    codec: int = 0
    """Codec code of a WAV file; 0 for other formats."""
    alignment: int = 2
    """The samples may be padded to a multiple of this number of bytes."""
    size_bits: int = 32
    """Number of bits of the size field in a chunk's header."""
    before_samples: int = 0
    """Number of bytes from the end of the chunk's header to the first sample."""


def container_layout(data: Data) -> Layout | None:
    """Return how to read a file that has a wrong header or consists of several joined files; None for other files."""
    parse = _PARSERS.get(data.read(0, 4))
    parts: list[Part] = []
    notes, cut_off = [], None
    position, wrong = 0, False
    while parse is not None and len(parts) < _MAX_CHUNKS:
        found = parse(data, position)
        if found is None or found.start > data.size:  # no valid header, or the file ends within the header
            break
        end, after = _end_of_samples(data, found)
        size = end - found.start
        if found.codec in _MPEG_TAGS:
            return mp3_layout(data, True, range(found.start, end))
        wrong |= not found.readable or size != found.declared
        parts.append(Part((found.header(size), range(found.start, end))))
        if found.declared is None:
            pass
        elif size > found.declared:
            notes.append(
                f"the header says {found.declared / found.bytes_per_s:.2f} s of audio, but the file contains "
                f"{size / found.bytes_per_s:.2f} s; all of it is used"
            )
        elif found.declared - size > max(found.start - position, found.frame_bytes):
            # A smaller difference is not an error, because some programs include the header in the size.
            cut_off = f"cut off: the header says {found.declared:,} bytes of audio, but there are {size:,}"
        # Another chunk of samples may follow, or another file (as after `cat a.wav b.wav >c.wav`).
        magic = data.read(after, 4) if after > position else b""
        parse = partial(_more_samples, found) if magic == b"data" else _PARSERS.get(magic)
        position = after
    if not wrong and len(parts) < 2:
        return None
    if len(parts) == _MAX_CHUNKS and parse is not None:
        cut_off = f"contains more than {len(parts):,} joined files or blocks of samples; the rest is not read"
    elif len(parts) > 1:
        notes.append(f"{len(parts)} joined files or blocks of samples; all of them are used")
    return Layout(tuple(parts), "; ".join(notes) or None, cut_off)


def _end_of_samples(data: Data, found: _Container) -> tuple[int, int]:
    """Return the end of the samples and the end of the chunks after them."""
    if found.declared is not None and found.start + found.declared <= data.size:
        end = found.start + found.declared
        # The next chunk should begin after padding. Some programs pad only to an even position, or not at all.
        for position in dict.fromkeys((end + -found.declared % found.alignment, end + end % 2, end)):
            after = _after_chunks(data, position, found.chunk)
            if after is not None:
                return end, after
    end = before_tags(data, found.start, data.size)
    return _without_chunks(data, max(found.start, end - _TAIL_BYTES), end, found.chunk), data.size


def _after_chunks(data: Data, position: int, chunk: ChunkReader) -> int | None:
    """Skip the chunks and tags that begin at ``position``.

    Returns:
        The start of more samples or of another file; the end of the data if nothing follows; None if other content
        follows.
    """
    for _ in range(_MAX_CHUNKS):
        left = data.size - position
        if left <= 0:
            return data.size
        head = data.read(position, 12)
        if head[:4] in _PARSERS or head[:4] == b"data":
            return position
        if left < 12:  # padding
            return data.size
        tag = tag_at(data, position, data.size)
        found = chunk(position)
        if tag:
            position += tag
        elif found is not None and (found.size <= left + 1 or found.name in KNOWN_CHUNKS):
            position += found.size
        else:
            return None
    return None


def _more_samples(first: _Container, data: Data, position: int) -> _Container | None:
    """Parse a further chunk of samples, which some programs write after a pause of the recording."""
    found = first.chunk(position)
    if found is None:
        return None
    start = found.content.start + first.before_samples
    return replace(first, start=start, declared=_stated(max(0, found.content.stop - start), first.size_bits))


def _without_chunks(data: Data, start: int, end: int, chunk: ChunkReader) -> int:
    """Return the start of the known chunks at the end of the range ``start`` to ``end``; ``end`` if there are none."""
    visited = set[int]()  # positions from which the chunks do not continue up to the end
    for match in KNOWN_CHUNK.finditer(data.read(start, end - start)):
        after = start + match.start()
        while after < end and (found := chunk(after)) is not None and found.name in KNOWN_CHUNKS:
            if after in visited:
                break
            visited.add(after)
            after += found.size
        if end <= after <= end + 1:
            return start + match.start()
    return end


def _stated(size: int, bits: int = 32) -> int | None:
    """Return ``size``; None if it is close to 2^bits or 2^(bits-1), the usual placeholders for an unknown size."""
    for limit in (1 << (bits - 1), 1 << bits):
        if limit - _PLACEHOLDER_SLACK <= size <= limit + _PLACEHOLDER_SLACK:
            return None
    return size


def _riff(data: Data, begin: int) -> _Container | None:
    head = data.read(begin, 12)
    if head[8:12] != b"WAVE":
        return None
    order = ">" if head[:4] == b"RIFX" else "<"
    riff_size = struct.unpack(f"{order}I", head[4:8])[0]
    chunk = chunk_reader(data, f"{order}4sI")
    position, form, long_size, padded = begin + 12, b"", None, True
    for _ in range(_MAX_CHUNKS):
        found = chunk(position)
        if found is None or found.name not in (b"fmt ", b"data", b"ds64", *KNOWN_CHUNKS):
            # A chunk of odd size should be followed by a padding byte, but some programs leave it out.
            before = chunk(position - 1)
            if before is not None and before.name in (b"fmt ", b"data", *KNOWN_CHUNKS):
                found, position, padded = before, position - 1, False
        if found is None:
            return None
        name, size, _ = found
        if name == b"ds64":
            long_size = int.from_bytes(data.read(position + 16, 8), "little")
        elif name == b"fmt " and size <= _MAX_FORMAT_BYTES:
            form = data.read(position, size)
        elif name == b"data":
            break
        position += size
    else:
        return None
    if len(form) < 24:
        return None
    declared: int | None = struct.unpack(f"{order}I", data.read(position + 4, 4))[0]
    assert declared is not None
    if head[:4] in (b"RF64", b"BW64") and long_size is not None and declared == 0xFFFFFFFF:
        declared = None if _stated(long_size, 64) is None else long_size
    elif declared != 0 or _stated(riff_size) is None or riff_size == 0:
        declared = _stated(declared) or None
    codec, _, rate, byte_rate, frame_bytes = struct.unpack(f"{order}HHIIH", form[8:22])
    start = position + 8
    if declared == 0 and long_size == 0:
        declared = None

    def header(size: int) -> bytes:
        if size + 100 < 1 << 32:
            magic = b"RIFX" if order == ">" else b"RIFF"
            body = b"WAVE" + form + b"data" + struct.pack(f"{order}I", size)
            return magic + struct.pack(f"{order}I", len(body) + size) + body
        samples = size // max(1, frame_bytes)
        long = b"ds64" + struct.pack("<IQQQI", 28, size + len(form) + 56, size, samples, 0)
        return b"RF64\xff\xff\xff\xffWAVE" + long + form + b"data\xff\xff\xff\xff"

    bytes_per_s = float(byte_rate or rate * frame_bytes or 1)
    readable = padded and head[:4] != b"BW64"
    return _Container(start, declared, bytes_per_s, header, chunk, max(1, frame_bytes), readable, codec)


_W64_REST = bytes.fromhex("f3acd3118cd100c04f8edb8a")
"""The name of a chunk in a W64 file has 16 bytes: four letters, followed in most names by these 12 bytes."""


def _w64(data: Data, begin: int) -> _Container | None:
    head = data.read(begin, 40)
    if len(head) < 40 or head[24:28] != b"wave":
        return None

    chunk = w64_chunk_reader(data)
    position, form = begin + 40, b""
    for _ in range(_MAX_CHUNKS):
        found = chunk(position)
        head = data.read(position, 24)
        if head[:4] == b"data" and head[4:16] == _W64_REST:
            break
        if found is None:
            return None
        if found.name == b"fmt " and found.size <= _MAX_FORMAT_BYTES:
            form = data.read(position, found.size)
        position += found.size
    else:
        return None
    if len(form) < 40:
        return None
    size = int.from_bytes(head[16:24], "little")
    declared = _stated(size - 24, 64) if size > 24 else None
    start = position + 24
    whole = data.read(begin, min(start - begin, _MAX_FORMAT_BYTES))
    byte_rate, frame_bytes = struct.unpack("<IH", form[32:38])

    def header(size: int) -> bytes:
        total, samples = struct.pack("<Q", 40 + len(form) + 24 + size), struct.pack("<Q", 24 + size)
        return whole[:16] + total + whole[24:40] + form + b"data" + _W64_REST + samples

    # libsndfile reads everything after the header as samples, which is wrong if chunks follow the samples.
    readable = declared is None or start + declared + 8 > data.size
    bytes_per_s, frame_bytes = float(byte_rate or 1), max(1, frame_bytes)
    return _Container(
        start, declared, bytes_per_s, header, chunk, frame_bytes, readable, alignment=W64_ALIGNMENT, size_bits=64
    )


def _aiff(data: Data, begin: int) -> _Container | None:
    head = data.read(begin, 12)
    if head[8:12] not in (b"AIFF", b"AIFC"):
        return None
    chunk = chunk_reader(data, ">4sI")
    position, common = begin + 12, 0
    for _ in range(_MAX_CHUNKS):
        found = chunk(position)
        if found is None:
            return None
        if found.name == b"COMM":
            common = position
        elif found.name == b"SSND":
            break
        position += found.size
    else:
        return None
    offset = int.from_bytes(data.read(position + 8, 4), "big")
    start = position + 16 + offset
    if not common or start - begin > _MAX_FORMAT_BYTES:
        return None
    whole = data.read(begin, start - begin)
    if len(whole) < common - begin + 24:
        return None
    channels, frames, bits, rate = struct.unpack(">HIHQ", whole[common - begin + 8 : common - begin + 24])
    kind = whole[common - begin + 26 : common - begin + 30] if head[8:12] == b"AIFC" else b"NONE"
    width = {b"ulaw": 1, b"alaw": 1, b"ULAW": 1, b"ALAW": 1, b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8}.get(
        kind, -(-bits // 8) if kind in (b"NONE", b"sowt", b"twos", b"raw ", b"in24", b"in32", b"23ni") else 0
    )
    frame_bytes = channels * width
    if frame_bytes == 0:
        return None
    exponent = (rate >> 48) - 16_383 - 31  # an 80-bit float: 16 bits of sign and exponent, then the mantissa
    rate_hz = (rate >> 16 & 0xFFFFFFFF) * 2.0 ** max(-64, min(64, exponent))
    size = int.from_bytes(data.read(position + 4, 4), "big")
    declared = _stated(size)
    if declared is not None:
        declared = max(0, declared - 8 - offset) or None
    if _stated(frames) and declared is not None and frames * frame_bytes < declared:
        declared = frames * frame_bytes  # libsndfile uses the smaller of the sizes that COMM and SSND state

    def header(size: int) -> bytes:
        new = bytearray(whole)
        new[4:8] = (len(whole) - 8 + size & 0xFFFFFFFF).to_bytes(4, "big")
        at = common - begin + 10
        new[at : at + 4] = (size // frame_bytes & 0xFFFFFFFF).to_bytes(4, "big")
        at = position - begin + 4
        new[at : at + 4] = (size + 8 + offset & 0xFFFFFFFF).to_bytes(4, "big")
        return bytes(new)

    return _Container(start, declared, max(1.0, rate_hz * frame_bytes), header, chunk, frame_bytes)


def _au(data: Data, begin: int) -> _Container | None:
    order = ">" if data.read(begin, 4) == b".snd" else "<"
    head = data.read(begin, 24)
    if len(head) < 24:
        return None
    offset, size, encoding, rate, channels = struct.unpack(f"{order}5I", head[4:])
    if not 24 <= offset <= _MAX_FORMAT_BYTES:
        return None
    whole = data.read(begin, offset)
    width = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}.get(encoding, 1)

    def header(size: int) -> bytes:
        return whole[:8] + struct.pack(f"{order}I", min(size, 0xFFFFFFFF)) + whole[12:]

    frame_bytes = max(1, channels * width)
    declared = _stated(size) or None
    return _Container(begin + offset, declared, float(max(1, rate * frame_bytes)), header, lambda _: None, frame_bytes)


def _caf(data: Data, begin: int) -> _Container | None:
    chunk = chunk_reader(data, ">4sq")
    position, description = begin + 8, b""
    for _ in range(_MAX_CHUNKS):
        head = data.read(position, 12)
        if head[:4] == b"data" and len(head) == 12:
            break
        found = chunk(position)
        if found is None:
            return None
        if found.name == b"desc":
            description = data.read(position + 12, 32)
        position += found.size
    else:
        return None
    start = position + 16
    if len(description) < 32 or start - begin > _MAX_FORMAT_BYTES:
        return None
    whole = data.read(begin, start - begin)
    (rate,) = struct.unpack(">d", description[:8])
    frame_bytes, per_packet = struct.unpack(">II", description[16:24])
    size = struct.unpack(">q", head[4:])[0]
    declared = _stated(size - 4, 64) if size > 4 else None

    def header(size: int) -> bytes:
        return whole[:-12] + struct.pack(">q", size + 4) + whole[-4:]

    bytes_per_s, frame_bytes = rate * frame_bytes / max(1, per_packet), max(1, frame_bytes)
    bytes_per_s = bytes_per_s if bytes_per_s > 0 else 1.0
    # The content of the data chunk begins with an edit count of 4 bytes.
    return _Container(start, declared, bytes_per_s, header, chunk, frame_bytes, size_bits=64, before_samples=4)


_PARSERS: dict[bytes, Callable[[Data, int], _Container | None]] = {
    **dict.fromkeys((b"RIFF", b"RIFX", b"RF64", b"BW64"), _riff),
    b"riff": _w64,
    **dict.fromkeys((b"FORM",), _aiff),
    **dict.fromkeys((b".snd", b"dns."), _au),
    b"caff": _caf,
}


def wav_samples(data: Data) -> tuple[int, int] | None:
    """Return the start of the samples of a WAV file and the bytes per frame (all channels); None for other files."""
    found = _riff(data, 0) if data.read(0, 4) == b"RIFF" else None
    return None if found is None else (found.start, found.frame_bytes)
