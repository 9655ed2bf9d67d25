"""Read the chunks of WAV, AIFF, W64 and CAF files. A chunk is a named block of bytes."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from tiny_audio.audio._parts import Data

KNOWN_CHUNKS = (
    *(b"LIST", b"list", b"bext", b"id3 ", b"ID3 ", b"iXML", b"axml", b"_PMX", b"cue ", b"fact", b"smpl", b"inst"),
    *(b"PEAK", b"JUNK", b"junk", b"PAD ", b"FLLR", b"cart", b"DISP", b"acid", b"strc", b"afsp", b"umid", b"chna"),
    *(b"minf", b"elm1", b"regn", b"plst", b"labl", b"note", b"levl", b"SAUR", b"PrmL", b"qlty", b"link", b"LGWV"),
    *(b"MARK", b"COMT", b"NAME", b"AUTH", b"ANNO", b"(c) ", b"INST", b"MIDI", b"APPL", b"AESD", b"CHAN", b"SAXL"),
    *(b"info", b"strg", b"mark", b"uuid", b"peak", b"ovvw", b"free", b"edct", b"kuki", b"pakt", b"midi"),
)
KNOWN_CHUNK = re.compile(b"|".join(map(re.escape, KNOWN_CHUNKS)))
W64_ALIGNMENT = 8
"""The size of each chunk in a W64 file is padded to a multiple of this number of bytes."""


class Chunk(NamedTuple):
    """A chunk of a file."""

    name: bytes
    """Four letters."""
    size: int
    """Number of bytes with header and padding."""
    content: range
    """Where the content is in the file."""


ChunkReader = Callable[[int], Chunk | None]
"""Returns the chunk that begins at a position; None if no chunk begins there."""


def chunk_reader(data: Data, layout: str) -> ChunkReader:
    """Return a reader of chunks. ``layout`` is the :mod:`struct` format of a chunk's header: first name, then size."""
    header = struct.calcsize(layout)

    def chunk(position: int) -> Chunk | None:
        head = data.read(position, header)
        if len(head) < header:
            return None
        name, size = struct.unpack(layout, head)
        if size < 0 or not all(0x20 <= letter < 0x7F for letter in name):
            return None
        start = position + header
        return Chunk(name, header + size + (size % 2 if header == 8 else 0), range(start, start + size))

    return chunk


def w64_chunk_reader(data: Data) -> ChunkReader:
    """Return a reader of the chunks of a W64 file. A name has 16 bytes, of which the first four are letters."""

    def chunk(position: int) -> Chunk | None:
        head = data.read(position, 24)
        size = int.from_bytes(head[16:24], "little")
        if len(head) < 24 or size < 24 or not all(0x20 <= letter < 0x7F for letter in head[:4]):
            return None
        return Chunk(head[:4], size + -size % W64_ALIGNMENT, range(position + 24, position + size))

    return chunk
