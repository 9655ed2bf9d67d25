"""Write models to folders, in registered formats. Each format is one file in ``formats/``, or comes from a plugin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

from tiny_audio.config import Config, UserError
from tiny_audio.export import formats
from tiny_audio.registry import Registry

NEEDED_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""Patterns of the files that this package needs to load a Hugging Face folder."""


class ExportConfig(Config, ABC):
    """Base class of all formats' options. All options have defaults."""

    name: str
    files: ClassVar[tuple[str, ...]]
    """Patterns for the names of all files and folders of an export. If a folder also contains other names, a new export
    does not replace it. The names ``__pycache__`` and ``.DS_Store`` are ignored. ``tiny-audio push`` uploads only files
    and folders that match."""

    @classmethod
    def has_file(cls, name: str) -> bool:
        """Whether a file or folder of this name can be part of an export. As in a shell, ``*`` does not match a leading
        dot."""
        return any(fnmatch(name, pattern) and (name[0] == ".") == (pattern[0] == ".") for pattern in cls.files)

    @classmethod
    @abstractmethod
    def is_export(cls, folder: Path) -> bool:
        """Whether an existing folder contains an export in this format. Implementations need not check whether its
        files are complete."""

    @classmethod
    @abstractmethod
    def check_pushable(cls, folder: Path) -> None:
        """Check that other users could load this export from the hub.

        Raises:
            UserError: the export is damaged, or the hub does not support this format.
        """


Exporter = Callable[[Any, Any, Path, str | None], None]
"""A function that writes a model to a folder. Its arguments are the TinyAudioModel, its tokenizer, the folder, and the
text of a model card or None. The caller has checked the folder with :func:`check_replaceable`. An interruption must
leave an earlier export in the folder unchanged."""

EXPORTS: Registry[ExportConfig, Exporter] = Registry(
    "export format", ExportConfig, package=formats.__name__, entry_points="tiny_audio.exports"
)
"""Registered formats. A builder takes ``(config)`` and returns an :data:`Exporter`."""


def check_replaceable(folder: Path, export: type[ExportConfig]) -> None:
    """Check that an export to this folder would overwrite only another export in the same format.

    Raises:
        UserError: ``folder`` is a file, is not an export in this format, or also contains other files or folders.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder.is_dir() and export.is_export(folder)):
        raise UserError(
            f"{folder} exists and is not an export in this format, so it is not overwritten; give another folder, or "
            f"remove {folder}"
        )
    # Python creates __pycache__ when the export is used, and macOS creates .DS_Store when it shows the folder.
    names = {entry.name for entry in folder.iterdir()} - {"__pycache__", ".DS_Store"}
    foreign = sorted(name for name in names if not export.has_file(name))
    if foreign:
        raise UserError(
            f"{folder} contains an exported model, but also {foreign[0]!r}, which an export would delete; move "
            f"{foreign[0]!r} out of this folder, or give another folder"
        )
