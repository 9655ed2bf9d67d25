"""Which files must not be read as their headers say."""

from __future__ import annotations

from tiny_audio.audio._containers import container_layout
from tiny_audio.audio._flac import flac_layout
from tiny_audio.audio._mp3 import mp3_layout
from tiny_audio.audio._ogg import ogg_layout
from tiny_audio.audio._parts import Data, Layout


def layout_of(data: Data, careful: bool) -> Layout | None:
    """How to read a file whose header is wrong, that is damaged or cut off, or that is several files in one.

    Args:
        careful: look at every frame or page, to find damage before decoding. Otherwise only at headers and the end.

    Returns:
        None if libsndfile can read the file as it is, or must say what is wrong.
    """
    magic = data.read(0, 4)
    if magic == b"OggS":
        return ogg_layout(data, careful)
    if magic == b"fLaC":
        return flac_layout(data, careful)
    if magic[:3] == b"ID3" or (magic[:1] == b"\xff" and magic[1:2] >= b"\xe0"):
        return flac_layout(data, careful) or mp3_layout(data, careful)
    return container_layout(data)
