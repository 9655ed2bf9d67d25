"""The ExportConfig contract: write a model to a folder in some format. Each format is one file here, or a plugin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

from tiny_audio.config import Config, UserError
from tiny_audio.registry import Registry


class ExportConfig(Config, ABC):
    """Base of every format's options. All options have defaults."""

    name: str
    files: ClassVar[tuple[str, ...]]
    """Patterns of the names of all files and folders of an export. An export replaces only these, and ``push`` uploads
    only these."""

    @classmethod
    @abstractmethod
    def is_export(cls, folder: Path) -> bool:
        """Whether an existing folder contains an export in this format. It may be damaged."""

    @classmethod
    @abstractmethod
    def check_pushable(cls, folder: Path) -> None:
        """Check that others can load this export from the hub.

        Raises:
            UserError: the export is damaged, or the hub does not support this format.
        """


Exporter = Callable[[Any, Any, Path, str | None], None]
"""Writes a TinyAudioModel and its tokenizer to a folder, with the text of a model card or None. The folder has passed
:func:`check_replaceable`. If the export is interrupted, an earlier export in the folder stays unchanged."""

EXPORTS: Registry[ExportConfig, Exporter] = Registry(
    "export format", ExportConfig, package=__name__, entry_points="tiny_audio.exports"
)
"""Registered formats; builders take ``(config)``."""


def check_replaceable(folder: Path, export: type[ExportConfig]) -> None:
    """Check that an export to this folder would overwrite only another export in the same format.

    Raises:
        UserError: ``folder`` is a file, or contains something that is not part of an exported model.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder.is_dir() and export.is_export(folder)):
        raise UserError(
            f"{folder} exists and is not an exported model, so it is not overwritten; give another folder, or remove it"
        )
    known = (*export.files, "__pycache__")  # written when the export is used
    foreign = sorted(
        entry.name for entry in folder.iterdir() if not any(fnmatch(entry.name, pattern) for pattern in known)
    )
    if foreign:
        raise UserError(
            f"{folder} holds an exported model and {foreign[0]!r}, which an export would delete; move it, or give "
            "another folder"
        )
