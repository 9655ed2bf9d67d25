"""Durations of audio files by their headers, each read once: what was found is kept in the cache folder."""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tiny_audio.audio.load import AudioError, audio_duration
from tiny_audio.config import UserError

_LOG = logging.getLogger(__name__)
_THREADS = 8
"""On a network disk, all of it is waiting."""
_SAVED_EVERY = 50_000
"""Files; an interrupted reading goes on from there."""


NOT_OF_THE_FILE = ("unreadable", "missing")
"""Codes of :class:`AudioError` that tell of an attempt to read a file, not of what it holds: it is tried again."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a file says."""

    duration_s: float | None
    reason: str | None = None
    """Why there is no duration; a code of :class:`AudioError`."""
    detail: str | None = None


def read_headers(folder: Path, files: Mapping[str, os.stat_result], cache_dir: Path) -> dict[str, Header]:
    """The headers of files below a folder; a file of the same name, size and time as before is not opened again, unless
    it could not be.

    Raises:
        UserError: the cache folder cannot be written.
    """
    kept_in = cache_dir / "durations" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:24]}.arrow"
    kept = _load(kept_in)
    found: dict[str, Header] = {}
    waiting = []
    for name, status in files.items():
        key, header = kept.get(name, (None, None))
        same = key == (status.st_size, status.st_mtime_ns)
        if header is not None and same and header.reason not in NOT_OF_THE_FILE:
            found[name] = header
        else:
            waiting.append(name)
    if waiting:
        _LOG.info("reading the headers of %d audio files in %s", len(waiting), folder)
    with ThreadPoolExecutor(_THREADS, "headers") as pool:
        for start in range(0, len(waiting), _SAVED_EVERY):
            names = waiting[start : start + _SAVED_EVERY]
            found |= dict(zip(names, pool.map(lambda name: _header(folder, name), names), strict=True))
            _save(kept_in, {name: found[name] for name in files if name in found}, files)
    return found


def _header(folder: Path, name: str) -> Header:
    try:
        return Header(audio_duration(folder / name, name=name))
    except AudioError as error:
        return Header(None, error.reason, str(error))


def _load(path: Path) -> dict[str, tuple[tuple[int, int], Header]]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            columns = pa.ipc.open_file(source).read_all().to_pydict()
    except (OSError, pa.ArrowException):
        return {}  # none yet, or one that a full disk cut short: read anew
    return {
        name: ((size, time), Header(*values))
        for name, size, time, *values in zip(*(columns[key] for key in _COLUMNS), strict=True)
    }


_COLUMNS = ("name", "size", "mtime_ns", "duration_s", "reason", "detail")


def _save(path: Path, headers: Mapping[str, Header], files: Mapping[str, os.stat_result]) -> None:
    import pyarrow as pa

    table = pa.table(
        {
            "name": pa.array(list(headers), pa.string()),
            "size": pa.array([files[name].st_size for name in headers], pa.int64()),
            "mtime_ns": pa.array([files[name].st_mtime_ns for name in headers], pa.int64()),
            "duration_s": pa.array([header.duration_s for header in headers.values()], pa.float64()),
            "reason": pa.array([header.reason for header in headers.values()], pa.string()),
            "detail": pa.array([header.detail for header in headers.values()], pa.string()),
        }
    )
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"the cache folder {path.parent} cannot be written: {error}") from error
