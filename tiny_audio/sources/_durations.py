"""Read the durations of audio files from their headers, and cache the durations."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import audio_duration
from tiny_audio.sources._arrow_files import read_arrow, write_arrow
from tiny_audio.sources._shared import cache_key

_LOG = logging.getLogger(__name__)
_THREADS = 8
"""Number of threads that read headers. With a network disk, the threads spend most of the time waiting."""
_SAVED_EVERY = 50_000
"""The results are saved after each group of this many files, so that an interrupted run can continue."""


UNREADABLE = "unreadable"
"""Code of :class:`AudioError` for files that could not be opened. Such a file may be intact, so :func:`read_headers`
tries to open it again at every call."""


@dataclass(frozen=True, slots=True)
class Header:
    """The duration of a file, or the reason why it is not known."""

    duration_s: float | None
    reason: str | None = None
    """A code of :class:`AudioError`. None if the duration is known."""
    detail: str | None = None
    """The message of the error. None if the duration is known."""


def read_headers(folder: Path, files: Mapping[str, os.stat_result], cache_dir: Path) -> dict[str, Header]:
    """Return the duration of each file in ``files``, by the file's path relative to the folder.

    A file is opened only if it is new, if its size or modification time has changed, or if it could not be opened in
    the previous call. A call may be for only one split of a corpus, so the cache keeps all durations from earlier calls
    for this folder.

    Args:
        files: for each file, its path relative to the folder and its status.
        cache_dir: as in :class:`~tiny_audio.sources.SourceContext`.

    Raises:
        UserError: the cache folder cannot be written.
    """
    cache_file = cache_dir / "durations" / f"{cache_key(str(folder))}.arrow"
    known = _load(cache_file)
    found: dict[str, Header] = {}
    unread = []
    for name, status in files.items():
        key, header = known.get(name, (None, None))
        same = key == _version(status)
        if header is not None and same and header.reason != UNREADABLE:
            found[name] = header
        else:
            unread.append(name)
    if unread:
        _LOG.info("reading the headers of %d audio files in %s", len(unread), folder)
    with ThreadPoolExecutor(_THREADS, "headers") as pool:
        for start in range(0, len(unread), _SAVED_EVERY):
            names = unread[start : start + _SAVED_EVERY]
            found |= dict(zip(names, pool.map(lambda name: _header(folder, name), names), strict=True))
            known |= {name: (_version(files[name]), found[name]) for name in names}
            _save(cache_file, known)
    return found


def _header(folder: Path, name: str) -> Header:
    try:
        return Header(audio_duration(folder / name, name=name))
    except AudioError as error:
        return Header(None, error.reason, str(error))


def _version(status: os.stat_result) -> tuple[int, int]:
    """Return the size and the modification time of a file, which change if the file changes."""
    return status.st_size, status.st_mtime_ns


_COLUMNS = ("name", "size", "mtime_ns", "duration_s", "reason", "detail")


def _load(path: Path) -> dict[str, tuple[tuple[int, int], Header]]:
    table = read_arrow(path)
    if table is None:
        return {}
    columns = table.to_pydict()
    return {
        name: ((size, time), Header(*values))
        for name, size, time, *values in zip(*(columns[key] for key in _COLUMNS), strict=True)
    }


def _save(path: Path, known: Mapping[str, tuple[tuple[int, int], Header]]) -> None:
    import pyarrow as pa

    versions, headers = [version for version, _ in known.values()], [header for _, header in known.values()]
    columns = (
        pa.array(list(known), pa.string()),
        pa.array([size for size, _ in versions], pa.int64()),
        pa.array([time for _, time in versions], pa.int64()),
        pa.array([header.duration_s for header in headers], pa.float64()),
        pa.array([header.reason for header in headers], pa.string()),
        pa.array([header.detail for header in headers], pa.string()),
    )
    write_arrow(path, pa.table(dict(zip(_COLUMNS, columns, strict=True))))
