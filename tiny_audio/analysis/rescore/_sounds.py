"""The clips themselves, for a page that plays them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny_audio.config import UserError
from tiny_audio.runtime.files import cache_dir
from tiny_audio.sources import AudioAddress, HubFile

MAX_CLIP_BYTES = 2 << 20
"""About a minute of FLAC at 16 kHz; longer clips are not put into a page."""
MAX_PAGE_BYTES = 24 << 20
"""Of all clips of a page, before base64 adds a third."""


def audio_reader(paths: Sequence[Path]) -> Callable[[Mapping[str, Any]], bytes | None]:
    """A function that reads the encoded clip of a row: None if it cannot be read, is too long, or the page is full.

    Relative paths in rows are relative to the folder of a file of hypotheses or to the current folder.

    Args:
        paths: the files of hypotheses.
    """
    folders = [*dict.fromkeys(path.absolute().parent for path in paths), Path.cwd()]
    clips: dict[AudioAddress, bytes] = {}
    unreadable: set[AudioAddress | str] = set()

    def read(row: Mapping[str, Any]) -> bytes | None:
        address = _find(row.get("audio_filepath"), folders)
        # A dataset that cannot be reached is not asked for every clip.
        if address is None or address in unreadable or _dataset(address) in unreadable:
            return None
        if address not in clips:
            try:
                clip = _read(address)
            except UserError:
                unreadable.add(_dataset(address) or address)
                return None
            if clip is None or len(clip) + sum(map(len, clips.values())) > MAX_PAGE_BYTES:
                return None
            clips[address] = clip
        return clips[address]

    return read


def _find(text: object, folders: Sequence[Path]) -> AudioAddress | None:
    if not text:
        return None
    addresses = (AudioAddress.parse(str(text), folder) for folder in folders)
    return next((address for address in addresses if isinstance(address.file, HubFile) or _is_file(address.file)), None)


def _dataset(address: AudioAddress) -> str | None:
    return address.file.repo if isinstance(address.file, HubFile) else None


def _read(address: AudioAddress) -> bytes | None:
    if address.cell is None and isinstance(address.file, Path) and address.file.stat().st_size > MAX_CLIP_BYTES:
        return None
    clip = address.read(cache_dir())
    return clip if len(clip) <= MAX_CLIP_BYTES else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a null byte
        return False
