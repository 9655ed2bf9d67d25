"""Write files and folders atomically, list folders, find and name files, and find the cache folder."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tiny_audio.config import UserError, expand_path


def cache_dir() -> Path:
    """Return the folder for generated and downloaded data: ``$TINY_AUDIO_CACHE``, or a folder in the user's cache."""
    chosen = os.environ.get("TINY_AUDIO_CACHE")
    if chosen:
        return Path(expand_path(chosen))
    return Path(expand_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "tiny-audio"


def files_below(folder: Path, wanted: Callable[[str], bool]) -> dict[str, os.stat_result]:
    """List files at any depth by their relative paths (with ``/``), sorted. Follow links, and skip hidden entries.

    Each folder is listed only once. If several paths lead to a folder, a path without links is preferred.

    Args:
        wanted: a function that decides whether to list a file, given its name without folders.

    Raises:
        OSError: the folder or a folder in it cannot be read.
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


class FileNames:
    """Finds files by name, even if the name on the disk has another Unicode normal form.

    macOS may write an accented letter as two characters, and most other systems write it as one. Each folder is listed
    only once, because checking a million files one by one would take minutes on a network disk.
    """

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, bool]] = {}
        self._normal: dict[str, dict[str, str]] = {}

    def find(self, path: Path) -> Path | None:
        """Return the path of a file, spelled as on the disk. Return None if there is no such file.

        Raises:
            OSError: a folder exists but cannot be read.
        """
        parent = self.on_disk(path.parent)
        name = self._name(parent, path.name)
        return parent / name if self._entries(str(parent)).get(name) else None

    def on_disk(self, path: Path) -> Path:
        """Return the path of a file or folder, spelled as on the disk. If it does not exist, return ``path``."""
        if str(path).isascii() or path == path.parent or self._entries(str(path)):
            return path
        parent = self.on_disk(path.parent)
        return parent / self._name(parent, path.name)

    def _name(self, folder: Path, name: str) -> str:
        entries = self._entries(str(folder))
        if name in entries or name.isascii():
            return name
        if str(folder) not in self._normal:
            self._normal[str(folder)] = {unicodedata.normalize("NFC", entry): entry for entry in entries}
        return self._normal[str(folder)].get(unicodedata.normalize("NFC", name), name)

    def _entries(self, folder: str) -> dict[str, bool]:
        """Return the names in a folder and whether each is a file; empty if there is no such folder."""
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    self._listed[folder] = {entry.name: _is_file(entry) for entry in entries}
            except (FileNotFoundError, NotADirectoryError, ValueError):
                self._listed[folder] = {}
            except OSError as error:
                if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
                    raise
                self._listed[folder] = {}
        return self._listed[folder]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each path: its last n parts.

    n is the smallest number with which different paths have different names.
    """
    depths = range(1, max(len(path.parts) for path in paths) + 1)
    names = (["/".join(path.parts[-depth:]) for path in paths] for depth in depths)
    return next(found for found in names if len(set(found)) == len(set(paths)))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False  # a link to itself


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a link to itself."""
    try:
        entry.is_file()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return True
    return False


class SeekableBytes(io.RawIOBase):
    """Base class of file objects that have a known size and are read from :attr:`position`.

    Args:
        size: number of bytes.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.position = size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See :meth:`io.IOBase.seek`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position


UNFINISHED = ".writing"
"""Suffix of the names of files and folders that are being written. If the process is killed, they keep these names."""


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder to fill. Then rename it to ``final``, so that ``final`` is never incomplete.

    If ``final`` exists, it is replaced. If it is a link to a folder, that folder is replaced. If filling the new
    folder fails, it is deleted, and ``final`` is unchanged. Files get at least the read permissions of the new folder.
    Only one process at a time may write the same folder.

    Raises:
        UserError: ``final`` is a mount point, which cannot be replaced.
    """
    final = Path(os.path.realpath(final))
    if os.path.ismount(final):
        raise UserError(f"{final} is a mount point, which cannot be replaced; give a folder inside it")
    aside = final.with_name(f".{final.name}{UNFINISHED}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        _commit(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _commit(aside: Path, final: Path) -> None:
    """Flush the folder ``aside`` to the disk, then rename it to ``final``."""
    readers = aside.stat().st_mode & 0o444
    for path in [*sorted(aside.rglob("*"), reverse=True), aside]:
        mode = path.stat().st_mode
        if path.is_file() and readers & ~mode:
            # safetensors creates files that only their owner can read. Some file systems have no permissions, so errors
            # are ignored.
            with contextlib.suppress(OSError):
                path.chmod(mode | readers)
        _sync(path)
    # Rename the old folder before deleting it, so that a killed process never leaves a partial folder as `final`.
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    aside.rename(final)
    _sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file. A reader finds either the old or the new content, never a mixture."""
    with new_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """Yield the path of a file to write. Then rename this file to ``final``, so that ``final`` is never incomplete.

    If ``final`` exists, it is replaced. If writing fails, ``final`` is unchanged.
    """
    # The random name prevents conflicts with other processes and threads. It does not contain the name of `final`,
    # because a name with additions could exceed the maximum length.
    aside = final.with_name(f".{uuid.uuid4().hex}{UNFINISHED}")
    try:
        yield aside
        _sync(aside)
        aside.replace(final)
    finally:
        aside.unlink(missing_ok=True)
    _sync(final.parent)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk. Windows cannot flush folders, and requires write access to flush files."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
