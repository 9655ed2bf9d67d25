"""Source ``common_voice``: Mozilla Common Voice, from the unpacked archive (Ardila et al., LREC 2020)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from tiny_audio.config import NO_IDENTITY, LocalPath, UserError
from tiny_audio.sources import SOURCES, Index, Source, SourceConfig, SourceContext, Utterance
from tiny_audio.sources._durations import Header, read_headers
from tiny_audio.sources._index_table import FileAddresses
from tiny_audio.sources._metadata_files import FILES_VERSION, BadRow, ClipRow, Row, file_index, read_columns, read_rows
from tiny_audio.sources._shared import cache_key, check_any_usable

_CLIPS, _DURATIONS = "clips", "clip_durations.tsv"
_SPLITS = ("train", "dev", "test", "validated")
_METADATA = ("age", "gender", "accents", "accent", "variant", "locale")
_MILLISECONDS = ("duration[ms]", "duration")
_FILE = "path"


class CommonVoiceConfig(SourceConfig):
    """Mozilla Common Voice in any language, from the unpacked archive of its website.

    The datasets of this name on the Hugging Face hub are empty now. Transcripts have case and punctuation. Clips are
    MP3 files. Releases since 2023 list durations in `clip_durations.tsv`. For older releases, durations are read from
    the headers of all clips of the split at the first start. Metadata: `speaker` and, if known, `age`, `gender`,
    `accents` (in old releases `accent`), `variant` and `locale`.
    """

    name: Literal["common_voice"] = "common_voice"
    path: LocalPath = Field(json_schema_extra=NO_IDENTITY)
    """The folder of one language, such as `cv-corpus-22.0-2025-06-20/en`. It contains the folder `clips`, and a table
    for each split, such as `train.tsv`. `~` is your home folder."""
    split: Literal["train", "dev", "test", "validated"] = "train"
    """The split. `validated` contains all clips that listeners confirmed. `train`, `dev` and `test` are parts of
    `validated`, so train on `validated` only if you evaluate on other data."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests. The tests create a folder `common_voice` in the current folder."""
        return cls(path="common_voice", split="dev")


@dataclass(frozen=True, slots=True)
class CommonVoiceSource(Source):
    """The clips of a split."""

    path: Path
    split: str
    cache_dir: Path

    def index(self) -> Index:
        """See :meth:`Source.index`.

        The first call reads the tables, and the headers of clips without a listed duration. Later calls read the cached
        index. Every call lists the clips, to find out whether files have changed.
        """
        table, durations = self.path / f"{self.split}.tsv", self.path / _DURATIONS
        if not table.is_file():
            raise UserError(f"there is no {table}; {self._hint()}")
        try:
            with os.scandir(self.path / _CLIPS) as entries:
                there = {entry.name: _facts(entry.stat()) for entry in entries if entry.is_file()}
        except OSError as error:
            raise UserError(
                f"the folder {self.path / _CLIPS} cannot be read: {error.strerror}; {self._hint()}"
            ) from error
        tables = [_facts(path.stat()) for path in (table, durations) if path.is_file()]
        facts = [FILES_VERSION, self.split, tables, sorted(there.items())]
        folder = self.cache_dir / "common_voice" / cache_key(["common_voice", *facts])
        addresses = FileAddresses(self.path / _CLIPS, _FILE)
        index = file_index(folder, lambda: self._made(table, set(there)), [table.name], "common_voice", addresses)
        return check_any_usable(index, str(table))

    def encoded(self, utterance: Utterance) -> Path:
        """Return the clip's file."""
        return utterance.audio_file()

    def _hint(self) -> str:
        """Return a hint on how to correct the path."""
        languages = sorted(path.parent.name for path in self.path.glob("*/train.tsv"))
        if languages:
            return f"path must be the folder of one language: {', '.join(str(self.path / name) for name in languages)}"
        return (
            "path must be the folder of one language, with clips and "
            f"{', '.join(f'{name}.tsv' for name in _SPLITS)}; download the archive from Mozilla and unpack it"
        )

    def _made(self, table: Path, there: set[str]) -> tuple[Iterator[ClipRow], Sequence[str]]:
        columns = read_columns(table)
        missing = [name for name in ("client_id", _FILE, "sentence") if name not in columns]
        if missing:
            raise UserError(f"{table} has no column {', '.join(missing)}; its columns: {', '.join(columns)}")
        return self._rows(table, there), [_FILE, "speaker", *(name for name in _METADATA if name in columns)]

    def _rows(self, table: Path, there: set[str]) -> Iterator[ClipRow]:
        stated = self._stated()
        unknown = {
            str(row[_FILE])
            for _, row in read_rows(table)
            if not isinstance(row, BadRow) and row[_FILE] in there and row[_FILE] not in stated
        }
        folder = self.path / _CLIPS
        headers = read_headers(folder, {name: (folder / name).stat() for name in sorted(unknown)}, self.cache_dir)
        for line, row in read_rows(table):
            yield _clip(row, table.name, line, there, stated, headers)

    def _stated(self) -> dict[str, float]:
        """Return the durations that the corpus lists, as file name -> seconds."""
        path = self.path / _DURATIONS
        if not path.is_file():
            return {}
        columns = read_columns(path)
        milliseconds = next((name for name in _MILLISECONDS if name in columns), None)
        if milliseconds is None or "clip" not in columns:
            raise UserError(
                f"{path} must have the columns clip and {_MILLISECONDS[0]}; its columns: {', '.join(columns)}; fix "
                "the file, or delete it to get durations from the headers of the clips"
            )
        stated = {}
        for _, row in read_rows(path):
            if isinstance(row, BadRow):
                continue  # the duration is read from the header of the clip
            number = str(row[milliseconds])
            if number.isdecimal() and int(number):
                stated[str(row["clip"])] = int(number) / 1000
        return stated


@SOURCES.register
def build_common_voice(config: CommonVoiceConfig, context: SourceContext) -> Source:
    """Return the source of a split."""
    path = Path(config.path).absolute()
    return CommonVoiceSource(path, config.split, context.cache_dir.absolute())


def _facts(status: os.stat_result) -> tuple[int, int]:
    """Return the size and the modification time of a file, which change if the file changes."""
    return status.st_size, status.st_mtime_ns


def _clip(
    row: Row, table: str, line: int, there: set[str], stated: Mapping[str, float], headers: Mapping[str, Header]
) -> ClipRow:
    def bad(reason: str, detail: str, file: str = f"{table}:{line}") -> ClipRow:
        return ClipRow(file, 0, line, bad=BadRow(reason, f"{table}, line {line}: {detail}"))

    if isinstance(row, BadRow):
        return bad(row.reason, row.detail)
    if row[_FILE] is None:
        return bad("audio_missing", f"{_FILE!r} is empty")
    file, reference = str(row[_FILE]), _unquoted(str(row["sentence"] or ""))
    if file not in there:
        return bad("audio_missing", f"there is no file {file!r} in {_CLIPS}")
    if not reference:
        return bad("text_missing", "'sentence' is empty", file)
    header = Header(stated[file]) if file in stated else headers[file]
    if header.duration_s is None:
        assert header.reason is not None
        return bad(header.reason, str(header.detail), file)
    found = {_FILE: file, "speaker": row["client_id"], **{name: row.get(name) for name in _METADATA}}
    metadata = {name: str(value) for name, value in found.items() if value is not None}
    return ClipRow(file, 0, line, reference, header.duration_s, metadata)


def _unquoted(sentence: str) -> str:
    """Return the sentence without CSV quoting. Some releases put sentences in quotes, and double the quotes inside."""
    sentence = sentence.strip()
    inside = sentence[1:-1]
    if len(sentence) > 1 and sentence[0] == sentence[-1] == '"' and '"' not in inside.replace('""', ""):
        return inside.replace('""', '"').strip()
    return sentence
