"""Source ``folder``: audio files with a ``metadata.csv`` or ``metadata.jsonl``, as in ``audiofolder`` datasets."""

from __future__ import annotations

import json
import os
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from tiny_audio.audio.formats import is_audio_name
from tiny_audio.config import NO_IDENTITY, LocalPath, UserError
from tiny_audio.runtime.files import files_below
from tiny_audio.sources import SOURCES, Index, Source, SourceConfig, SourceContext, Utterance
from tiny_audio.sources._durations import Header, read_headers
from tiny_audio.sources._index_table import FileAddresses
from tiny_audio.sources._metadata_files import FILES_VERSION, BadRow, ClipRow, Row, file_index, read_columns, read_rows
from tiny_audio.sources._shared import NonEmpty, cache_key, check_any_usable

_TABLES = ("metadata.csv", "metadata.jsonl")
_FILE = "file_name"
_TEXTS = ("transcription", "text")
_EXPECTED = (
    "a folder needs a metadata.csv or metadata.jsonl with the columns file_name (the audio file, relative to the "
    "folder of the table) and transcription or text"
)


class FolderConfig(SourceConfig):
    """Audio files in a folder, with their transcripts in a metadata.csv or metadata.jsonl.

    The layout is that of `audiofolder` in Hugging Face's `datasets`. The column `file_name` contains a path relative to
    the folder of the table. Subfolders may have their own tables, too. Other columns become metadata. Durations are
    read from the headers of the audio files at the first start. Files without a row and rows without a file are listed
    as dropped. If the data has several splits, give the folder of one split, such as `data/train`.
    """

    name: Literal["folder"] = "folder"
    path: LocalPath = Field(json_schema_extra=NO_IDENTITY)
    """The folder. `~` is your home folder."""
    text_column: NonEmpty | None = None
    """The transcript. If None, the column `transcription` or `text` is used. If the tables have both columns, name one
    of them here."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests. The tests create a folder `folder` with a `metadata.csv` in the current folder."""
        return cls(path="folder")


@dataclass(frozen=True, slots=True)
class FolderSource(Source):
    """The clips of a folder."""

    path: Path
    text_column: str | None
    cache_dir: Path

    def index(self) -> Index:
        """See :meth:`Source.index`.

        The first call reads the tables, and the headers of the audio files. Later calls read the cached index. Every
        call lists the files, to find out whether they have changed.
        """
        try:
            files = files_below(self.path, lambda name: name in _TABLES or is_audio_name(name))
        except OSError as error:
            raise UserError(f"the folder {self.path} cannot be read: {error.strerror}; {_EXPECTED}") from error
        tables = [name for name in files if posixpath.basename(name) in _TABLES]
        if not tables:
            raise UserError(f"there is no table in {self.path}; {_EXPECTED}")
        facts = {name: (status.st_size, status.st_mtime_ns) for name, status in files.items()}
        key = cache_key(["folder", FILES_VERSION, self.text_column, facts])
        index = file_index(
            self.cache_dir / "folder" / key,
            lambda: self._made(tables, files),
            tables,
            "folder",
            FileAddresses(self.path, _FILE),
        )
        return check_any_usable(index, str(self.path))

    def encoded(self, utterance: Utterance) -> Path:
        """Return the clip's file."""
        return utterance.audio_file()

    def _made(
        self, tables: Sequence[str], files: Mapping[str, os.stat_result]
    ) -> tuple[Iterator[ClipRow], Sequence[str]]:
        columns = self._columns(tables)
        text = self._text_column(columns)
        kept = dict.fromkeys([_FILE, *(name for names in columns.values() for name in names if name != text)])
        return self._rows(tables, files, text), list(kept)

    def _columns(self, tables: Sequence[str]) -> dict[str, list[str]]:
        columns = {}
        for table in tables:
            if any(other != table and posixpath.dirname(other) == posixpath.dirname(table) for other in tables):
                raise UserError(
                    f"{self.path / posixpath.dirname(table)} holds {' and '.join(_TABLES)}; keep one of them"
                )
            columns[table] = read_columns(self.path / table)
            if _FILE not in columns[table]:
                raise UserError(f"{self.path / table} has no column {_FILE!r}; {_listed(columns[table])}; {_EXPECTED}")
        return columns

    def _text_column(self, columns: Mapping[str, Sequence[str]]) -> str:
        there = {name for names in columns.values() for name in names}
        texts = [name for name in _TEXTS if name in there] if self.text_column is None else [self.text_column]
        if len(texts) != 1:
            which = "two columns, transcription and text" if texts else "no column transcription or text"
            raise UserError(f"{self.path} has {which}; set text_column to the column of transcripts; {_listed(there)}")
        for table, names in columns.items():
            if texts[0] not in names:
                raise UserError(f"{self.path / table} has no column {texts[0]!r} (text_column); {_listed(names)}")
        return texts[0]

    def _rows(self, tables: Sequence[str], files: Mapping[str, os.stat_result], text: str) -> Iterator[ClipRow]:
        """Yield the rows of all tables, then the files that are not listed in any row."""
        unreadable = [name for name in files if not _is_utf8(name)]
        audio = {name: status for name, status in files.items() if name not in tables and _is_utf8(name)}
        headers = read_headers(self.path, audio, self.cache_dir)
        # In Unicode, an accented letter can be one character or two. A row and its file may use different forms.
        names = {unicodedata.normalize("NFC", name): name for name in audio} | {name: name for name in audio}
        named = set()
        for table_index, table in enumerate(tables):
            for line, row in read_rows(self.path / table):
                clip = _clip(row, table_index, line, table, text, headers, names)
                named.add(clip.file)
                yield clip
        for file in audio:
            if file not in named:
                detail = f"{file}: this file is not listed in any row of {', '.join(tables)}"
                yield ClipRow(file, bad=BadRow("row_missing", detail))
        for name in unreadable:
            file = os.fsencode(name).decode("utf-8", "backslashreplace")
            yield ClipRow(file, bad=BadRow("bad_unicode", f"{file}: the name of this file is not UTF-8; rename it"))


@SOURCES.register
def build_folder(config: FolderConfig, context: SourceContext) -> Source:
    """Return the source of a folder."""
    path = Path(config.path).absolute()
    return FolderSource(path, config.text_column, context.cache_dir.absolute())


def _is_utf8(name: str) -> bool:
    """Return whether a file name is UTF-8. Python represents other bytes by lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _clip(
    row: Row,
    table_index: int,
    line: int,
    table: str,
    text: str,
    headers: Mapping[str, Header],
    names: Mapping[str, str],
) -> ClipRow:
    where = f"{table}:{line}"

    def bad(reason: str, detail: str, file: str = where) -> ClipRow:
        return ClipRow(file, table_index, line, bad=BadRow(reason, f"{table}, line {line}: {detail}"))

    if isinstance(row, BadRow):
        return bad(row.reason, row.detail)
    name, reference = row.get(_FILE), row.get(text)
    if not isinstance(name, str) or not name.strip():
        return bad("audio_missing", f"{_FILE!r} must be the path of an audio file, not {name!r}")
    file = posixpath.normpath(posixpath.join(posixpath.dirname(table), name))
    file = names.get(file) or names.get(unicodedata.normalize("NFC", file), file)
    header = headers.get(file)
    if header is None:
        suffix = "" if is_audio_name(file) else "; its suffix is not that of an audio file"
        return bad("audio_missing", f"there is no audio file {file}; {_FILE!r} is {name!r}{suffix}")
    if reference is None and table.endswith(".csv"):
        reference = ""  # an empty cell is read as None
    if not isinstance(reference, str):
        return bad("text_missing", f"{text!r} must be a string, not {reference!r}", file)
    if header.duration_s is None:
        assert header.reason is not None
        return bad(header.reason, str(header.detail), file)
    metadata = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in row.items()
        if value is not None and key not in (_FILE, text)
    }
    return ClipRow(file, table_index, line, reference.strip(), header.duration_s, {_FILE: file, **metadata})


def _listed(columns: Sequence[str] | set[str]) -> str:
    return f"its columns: {', '.join(sorted(columns)) or '(none)'}"
