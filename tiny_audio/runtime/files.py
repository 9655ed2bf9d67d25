"""Atomic writes of files and folders, listings of folders, and the cache folder."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tiny_audio.config import expand_path


def cache_dir() -> Path:
    """The folder of generated and downloaded data: ``$TINY_AUDIO_CACHE``, else in the user's cache folder."""
    chosen = os.environ.get("TINY_AUDIO_CACHE")
    if chosen:
        return Path(expand_path(chosen))
    return Path(expand_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "tiny-audio"


def files_below(folder: Path, wanted: Callable[[str], bool]) -> dict[str, os.stat_result]:
    """List files at any depth by their relative names (with ``/``), sorted. Follows links and skips hidden files.

    A folder that is reachable by several paths is listed once. It is listed under its own name if that is below
    ``folder``, else under the first link to it.

    Args:
        wanted: whether to list a file, given its name without folders.

    Raises:
        OSError: the folder, or one in it, cannot be read.
    """
    found = {}
    waiting, links = [""], list[str]()
    seen = set()
    while waiting or links:
        below = waiting.pop() if waiting else links.pop(0)
        status = os.stat(folder / below)
        if (status.st_dev, status.st_ino) in seen:  # links can form cycles
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder / below) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = below + entry.name
                if entry.name.startswith(".") or _leads_nowhere(entry):
                    continue
                if entry.is_file() and wanted(entry.name):
                    found[name] = entry.stat()
                elif entry.is_dir():
                    (links if entry.is_symlink() else waiting).append(f"{name}/")
    return dict(sorted(found.items()))


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a link to itself."""
    try:
        entry.is_file()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return True
    return False


def commit_folder(aside: Path, final: Path) -> None:
    """Move a finished folder to its final name in one step, after its contents are on the disk.

    An existing folder of that name is replaced. ``aside`` must be on the same file system.
    """
    for path in [*sorted(aside.rglob("*"), reverse=True), aside]:
        _sync(path)
    # Renamed before it is deleted: a kill at any moment leaves no partial folder under the final name.
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    aside.rename(final)
    _sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file. A reader finds the old or the new content, never a part of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.writing")  # another process may write the same file
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    aside.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk. Windows cannot flush folders, and flushes files opened for writing only."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
