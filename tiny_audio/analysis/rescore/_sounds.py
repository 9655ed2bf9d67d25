"""The clips themselves, for a page that plays them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_CLIP_BYTES = 2 << 20
"""About a minute of FLAC at 16 kHz; what is longer is not put into a page."""
MAX_PAGE_BYTES = 24 << 20
"""Of all clips of a page, before base64 adds a third."""


def audio_reader(paths: Sequence[Path]) -> Callable[[Mapping[str, Any]], bytes | None]:
    """A function that gives the encoded clip of a row, or None where there is none at hand or no more has a place.

    Paths in rows are absolute, relative to the folder of one of the files of hypotheses, or to where we are.
    """
    folders = [*dict.fromkeys(path.absolute().parent for path in paths), Path.cwd()]
    kept: dict[Path, bytes] = {}

    def read(row: Mapping[str, Any]) -> bytes | None:
        if not row.get("audio_filepath"):
            return None
        path = next(filter(_is_file, (folder / str(row["audio_filepath"]) for folder in folders)), None)
        if path is None:
            return None
        if path not in kept:
            size = path.stat().st_size
            if size > MAX_CLIP_BYTES or size + sum(map(len, kept.values())) > MAX_PAGE_BYTES:
                return None
            try:
                kept[path] = path.read_bytes()
            except OSError:
                return None
        return kept[path]

    return read


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a null byte
        return False
