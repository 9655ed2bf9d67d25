"""Addresses of encoded clips: files, or cells of parquet files. The files are on disk or on the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

from tiny_audio.config import UserError

_TEXT = re.compile(
    r"(?:hf://datasets/(?P<repo>[^@]+)@(?P<revision>[^/]+)/(?P<path>.+?)|(?P<local>.+?))"
    r"(?:#row_group=(?P<row_group>\d{1,9})&row=(?P<row>\d{1,9})&column=(?P<column>[^#]+))?",
    re.DOTALL,
)


class NotCachedError(UserError):
    """Audio on the hub is not in the cache, and the network must not be used."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a dataset on the hub."""

    repo: str
    """Name of the dataset, as ``owner/name``."""
    revision: str
    """A commit, so that the content never changes."""
    path: str
    """Path within the repository."""

    def __str__(self) -> str:
        return f"hf://datasets/{self.repo}@{quote(self.revision, safe='')}/{self.path}"


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """One clip in a parquet file."""

    row_group: int
    row: int
    """Index within the row group."""
    column: str

    def __str__(self) -> str:
        return f"row_group={self.row_group}&row={self.row}&column={quote(self.column, safe='')}"


@dataclass(frozen=True, slots=True)
class AudioAddress:
    """The location of a clip's encoded audio. Files of hypotheses contain ``str(address)`` as ``audio_filepath``.

    Examples of ``str(address)``:
        ``/data/a.flac``, ``/data/clips.parquet#row_group=0&row=3&column=audio`` and
        ``hf://datasets/owner/name@4c28e5/train/0000.parquet#row_group=0&row=3&column=audio``
    """

    file: Path | HubFile
    cell: ParquetCell | None = None
    """If None, the whole file is the clip."""

    def __str__(self) -> str:
        return f"{self.file}#{self.cell}" if self.cell else str(self.file)

    @classmethod
    def parse(cls, text: str, base_folder: Path) -> Self:
        """Return the address for a text in the form of ``str(address)``.

        Args:
            base_folder: the folder that relative paths start from.

        Raises:
            UserError: the text is empty.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UserError("the address of a clip is empty; give the path of an audio file")
        repo, revision, path, local, row_group, row, column = match.groups()
        cell = ParquetCell(int(row_group), int(row), unquote(column)) if column else None
        return cls(base_folder / local if local else HubFile(repo, unquote(revision), path), cell)

    def read(self, cache_dir: Path, *, offline: bool = False) -> bytes:
        """Return the encoded audio.

        Args:
            cache_dir: as in :class:`~tiny_audio.sources.SourceContext`. To read a cell, its whole row group is needed.
                If a source has cached the row group, the cached copy is read. Otherwise, the row group is cached in a
                separate folder with its own size limit. Whole files on the hub are not cached.
            offline: do not use the network.

        Raises:
            UserError: the audio does not exist or cannot be read.
            NotCachedError: ``offline`` is set, and the audio is on the hub and not in the cache.
            AudioError: the row of the parquet file contains no audio, or the file is damaged.
        """
        if self.cell is not None:
            from tiny_audio.sources._row_groups import read_cell_anywhere

            return read_cell_anywhere(self, cache_dir, offline=offline)
        if isinstance(self.file, HubFile):
            if offline:
                raise NotCachedError(f"{self} is not in the cache")
            from tiny_audio.sources._hub.ranges import RangeFile

            return RangeFile(self.file).read()
        try:
            return self.file.read_bytes()
        except (OSError, ValueError) as error:  # a null byte in the name raises ValueError
            raise UserError(f"{self.file} cannot be read: {error}") from error
