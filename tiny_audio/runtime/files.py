"""Files and folders that appear under their name only when they are whole, and are then on the disk; listings."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def cache_dir() -> Path:
    """Where made and fetched data is kept: ``$TINY_AUDIO_CACHE``, else ``tiny-audio`` in the user's cache folder."""
    chosen = os.environ.get("TINY_AUDIO_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tiny-audio"


def files_below(folder: Path, wanted: Callable[[str], bool]) -> dict[str, os.stat_result]:
    """Files at any depth, links followed, by their names below the folder (with ``/``), sorted; hidden ones left out.

    A folder is listed once: under its own name where it lies below, else under that of the first link to it.

    Args:
        wanted: whether to list a file, by its own name.

    Raises:
        OSError: the folder, or one in it, cannot be read.
    """
    found = {}
    waiting, links = [""], list[str]()
    seen = set()
    while waiting or links:
        below = waiting.pop() if waiting else links.pop(0)
        status = os.stat(folder / below)
        if (status.st_dev, status.st_ino) in seen:  # links may go in circles
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
    """Whether it is a link to itself."""
    try:
        entry.is_file()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return True
    return False


def commit_folder(aside: Path, final: Path) -> None:
    """Make a finished folder appear under its name at once, contents on the disk before the name.

    A folder that has the name already is replaced; ``aside`` must lie on the same file system.
    """
    for path in [*sorted(aside.rglob("*"), reverse=True), aside]:
        _sync(path)
    # Renamed away, not deleted in place: a kill at any moment leaves no half folder under the name.
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    aside.rename(final)
    _sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file so that a reader finds the old or the new content, never half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.writing")  # another process may write the same file
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    aside.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
