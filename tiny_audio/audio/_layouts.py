"""Find out how to read a file that libsndfile would read wrongly."""

from __future__ import annotations

import re
from dataclasses import replace

from tiny_audio.audio._containers import container_layout
from tiny_audio.audio._flac import flac_layout
from tiny_audio.audio._mp3 import mp3_layout
from tiny_audio.audio._ogg import ogg_layout
from tiny_audio.audio._other_content import other_content
from tiny_audio.audio._parts import Data, Layout, Part

_MAX_JUNK_BYTES = 1 << 16
_BEGINNING = re.compile(
    rb"(?:RIFF|RIFX|RF64).{4}WAVE(?:fmt |JUNK|bext|LIST|ds64)|FORM.{4}AIF[FC]|fLaC\x00{3}\x22|OggS\x00\x02\x00{8}",
    re.DOTALL,
)
"""The beginning of a file in a format that libsndfile reads."""
_MATROSKA = b"\x1aE\xdf\xa3"
"""The beginning of a Matroska file. Its tracks may contain headers of other formats, such as FLAC. These headers do not
mark the beginning of another file."""


def layout_of(data: Data, careful: bool) -> Layout | None:
    """Return how to read a file that is damaged or cut off, has a wrong header, or consists of several joined files.

    Args:
        careful: check every frame or page, to find damage before decoding. If False, only the headers and the end of
            the file are checked.

    Returns:
        None if libsndfile should read the file as it is, or if the format is unknown.
    """
    magic = data.read(0, 4)
    if magic == b"OggS":
        return ogg_layout(data, careful)
    if magic == b"fLaC":
        return flac_layout(data, careful)
    if magic[:3] == b"ID3" or (magic[:1] == b"\xff" and magic[1:2] >= b"\xe0"):
        return flac_layout(data, careful) or mp3_layout(data, careful)
    return container_layout(data) or _layout_after_junk(data, magic, careful)


def _layout_after_junk(data: Data, magic: bytes, careful: bool) -> Layout | None:
    """Return how to read a file that has other bytes before its header, such as the HTTP header of a download."""
    head = data.read(0, _MAX_JUNK_BYTES)
    found = None if magic == _MATROSKA else _BEGINNING.search(head)
    # A header inside an archive is ignored, because the archive may contain several recordings.
    if found is None or found.start() == 0 or other_content(head):
        return None
    data.skip(found.start())
    layout = layout_of(data, careful) or Layout((Part((range(data.size),)),))
    note = f"its first {found.start():,} bytes are not audio; they are skipped"
    return replace(layout, note="; ".join(filter(None, (note, layout.note))))
