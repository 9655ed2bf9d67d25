"""Read the clips that a page plays, without using the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny_audio.config import UserError
from tiny_audio.runtime.files import cache_dir
from tiny_audio.sources import AudioAddress, HubFile, NotCachedError

MAX_CLIP_BYTES = 2 << 20
"""Maximum size of a clip that is embedded in a page: about one minute of 16-bit WAV at 16 kHz."""
MAX_PAGE_BYTES = 24 << 20
"""Maximum total size of a page's clips, before Base64 encoding makes them a third larger. A clip that the page plays in
two places counts twice, because it is embedded twice."""

FULL = f"no audio: all clips of a page together may have at most {MAX_PAGE_BYTES >> 20} MiB"
NOT_CACHED = "no audio: the clip is not in the cache of its data set"
TOO_LARGE = f"no audio: the clip is larger than {MAX_CLIP_BYTES >> 20} MiB"

Row = Mapping[str, Any]
ReadAudio = Callable[[Row], bytes | str | None]
"""A function that returns the encoded clip of a row. If the page has no audio for the row, the function returns the
reason. If the clip is not found or cannot be read, the function returns None."""


def audio_reader(paths: Sequence[Path], locate: Callable[[Row], AudioAddress | None] | None = None) -> ReadAudio:
    """Return a function that reads the encoded clips for one page, up to :data:`MAX_PAGE_BYTES` in total.

    Nothing is downloaded. A clip in a Parquet file on the hub is read only if its row group is in the cache.

    Args:
        paths: the files of hypotheses. A relative path in a row may start at the folder of any of these files, or at
            the current folder.
        locate: finds the clip of a row if its ``audio_filepath`` is not a file and not an address on the hub. If
            ``locate`` is None, such a row has no audio.
    """
    folders = [*dict.fromkeys(path.absolute().parent for path in paths), Path.cwd()]
    clips: dict[AudioAddress, bytes | str | None] = {}
    room = MAX_PAGE_BYTES

    def read(row: Row) -> bytes | str | None:
        nonlocal room
        address = _find(row.get("audio_filepath"), folders) or (locate(row) if locate else None)
        if address is None:
            return None
        if address not in clips:
            if room <= 0:
                return FULL
            clips[address] = _read(address, room)
        clip = clips[address]
        if isinstance(clip, bytes):
            if len(clip) > room:
                return FULL
            room -= len(clip)
        elif clip == FULL:
            room = 0  # do not read any further clips
        return clip

    return read


def _find(text: object, folders: Sequence[Path]) -> AudioAddress | None:
    if not text:
        return None
    addresses = (AudioAddress.parse(str(text), folder) for folder in folders)
    return next((address for address in addresses if isinstance(address.file, HubFile) or _is_file(address.file)), None)


def _read(address: AudioAddress, room: int) -> bytes | str | None:
    try:
        if address.cell is None and isinstance(address.file, Path):
            reason = _reason(address.file.stat().st_size, room)
            if reason is not None:
                return reason
        clip = address.read(cache_dir(), offline=True)
    except NotCachedError:
        return NOT_CACHED
    except (UserError, OSError):
        return None
    return _reason(len(clip), room) or clip


def _reason(num_bytes: int, room: int) -> str | None:
    return TOO_LARGE if num_bytes > MAX_CLIP_BYTES else FULL if num_bytes > room else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long or has a null byte
        return False
