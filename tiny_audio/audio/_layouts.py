"""Find out how to read a file that libsndfile would read wrongly."""

from __future__ import annotations

from tiny_audio.audio._containers import container_layout
from tiny_audio.audio._flac import flac_layout
from tiny_audio.audio._mp3 import mp3_layout
from tiny_audio.audio._ogg import ogg_layout
from tiny_audio.audio._parts import Data, Layout


def layout_of(data: Data, careful: bool) -> Layout | None:
    """Return how to read a file that is damaged or cut off, has a wrong header, or consists of several joined files.

    Args:
        careful: check every frame or page, to find damage before decoding. If False, only the headers and the end of
            the file are checked.

    Returns:
        None if libsndfile should read the file as it is. If it cannot, it raises the error.
    """
    magic = data.read(0, 4)
    if magic == b"OggS":
        return ogg_layout(data, careful)
    if magic == b"fLaC":
        return flac_layout(data, careful)
    if magic[:3] == b"ID3" or (magic[:1] == b"\xff" and magic[1:2] >= b"\xe0"):
        return flac_layout(data, careful) or mp3_layout(data, careful)
    return container_layout(data)
