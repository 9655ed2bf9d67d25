"""Read tables that list audio files (CSV, TSV, JSON lines), and index the listed clips."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_audio.config import UserError
from tiny_audio.runtime.text_files import open_text
from tiny_audio.sources import Index
from tiny_audio.sources._durations import UNREADABLE
from tiny_audio.sources._index_table import VERSION, FileAddresses, read_index, write_index
from tiny_audio.sources._parquet import METADATA
from tiny_audio.sources._shared import shown

if TYPE_CHECKING:
    import pyarrow as pa

FILES_VERSION = (VERSION, 1)
"""Version of the indexes of :func:`file_index`. The names of the index folders depend on it. The first number changes
with the columns of the index table. The second number changes with the content of the columns, such as the form of
the ids."""

_CHUNK = 50_000
"""Maximum number of rows in memory at a time."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    reason: str
    detail: str


Row = Mapping[str, object] | BadRow


@dataclass(frozen=True, slots=True)
class ClipRow:
    """An entry of the index. It stands for a row of a table, or for an audio file that is not listed in any row."""

    file: str
    """The id of the clip: the path of its file, relative to the folder of the audio. If the row names no existing file,
    the id is the table and the line number, such as ``metadata.csv:7``."""
    table: int = 0
    """Index of the table in the list of tables."""
    line: int = 0
    """Line number in the table. 0 if the file is not listed in any row."""
    text: str | None = None
    duration_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    bad: BadRow | None = None
    """The reason why the clip cannot be used. None if it can be used."""


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the line number and the content of each row of a table. Empty cells are None.

    The suffix determines the format: JSON lines for ``.jsonl``, TSV for ``.tsv``, and CSV otherwise.

    Raises:
        UserError: the file cannot be read or does not have this format.
    """
    return _json_rows(path) if path.suffix == ".jsonl" else _separated_rows(path)


def read_columns(path: Path) -> list[str]:
    """Return the names of a table's columns, in order. For JSON lines, the whole file is read.

    Raises:
        UserError: see :func:`read_rows`.
    """
    if path.suffix != ".jsonl":
        return next(_cells(path))[1]
    rows = (row for _, row in _json_rows(path) if not isinstance(row, BadRow))
    return list(dict.fromkeys(key for row in rows for key in row))


def file_index(
    folder: Path,
    make: Callable[[], tuple[Iterable[ClipRow], Sequence[str]]],
    tables: Sequence[str],
    identity: str,
    addresses: FileAddresses,
) -> Index:
    """Return the index of clips that are single files.

    If ``folder`` does not exist, the index is written to it. If the index in ``folder`` lists audio files that could
    not be opened, the index is written again.

    Args:
        make: returns the rows and the names of their metadata columns.
        tables: names of the tables. :func:`write_index` uses them to make ids unique.
        identity: text to include in the fingerprint.
    """
    index = read_index(folder, addresses) if folder.exists() else None
    if index is None or any(dropped.reason == UNREADABLE for dropped in index.dropped):
        write_index(folder, _tables(*make()), tables, identity, anew=index is not None)
        index = read_index(folder, addresses)
    # Each clip is a separate file, so there are no groups of clips that must be fetched together.
    return replace(index, groups=None)


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        with open_text(path) as file:
            for line_number, line in enumerate(file, start=1):
                if line.strip():
                    yield line_number, _json_row(line)
    except (OSError, UnicodeError) as error:  # UTF-16 that is cut off or damaged raises a UnicodeError
        raise UserError(f"{path} cannot be read: {error}") from error


def _json_row(line: str) -> Row:
    try:
        line.encode()
        row = json.loads(line)
    except UnicodeEncodeError as error:
        return BadRow("bad_unicode", f"not UTF-8: {error}")
    except (ValueError, RecursionError) as error:
        return BadRow("not_json", f"not JSON: {error}")
    if not isinstance(row, dict):
        return BadRow("not_an_object", f"not a JSON object, but {shown(row)}")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return BadRow("bad_unicode", f"contains an incomplete character: {error}")
    return row


def _separated_rows(path: Path) -> Iterator[tuple[int, Row]]:
    rows = _cells(path)
    _, header = next(rows)
    if len(set(header)) < len(header):
        raise UserError(
            f"{path} has several columns with the same name; its columns: {', '.join(header)}; give each column its "
            "own name"
        )
    for line_number, cells in rows:
        if len(cells) != len(header):
            hint = "" if path.suffix == ".tsv" else "; quote cells that contain commas"
            yield line_number, BadRow("bad_row", f"{len(cells)} cells, but the header has {len(header)}{hint}")
        elif not _is_utf8(cells):
            yield line_number, BadRow("bad_unicode", "not UTF-8")
        else:
            yield line_number, {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of the header, then those of each row.

    Bytes that are not UTF-8 become lone surrogates.
    """
    tabs = path.suffix == ".tsv"
    reader = None
    try:
        with open_text(path, newline="") as file:
            # In a TSV file, quotes are part of the text.
            reader = csv.reader(
                file,
                delimiter="\t" if tabs else ",",
                quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
                strict=True,
            )
            header = next(reader, None)
            if header is None:
                raise UserError(f"{path} is empty; its first line must name its columns")
            if not _is_utf8(header):
                raise UserError(f"{path}, line 1: the column names are not UTF-8; save the file as UTF-8")
            yield 1, header
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except csv.Error as error:
        assert reader is not None
        raise UserError(
            f"{path}, line {reader.line_num}: {error}; quote cells that contain commas or quotes, and double the "
            "quotes inside these cells"
        ) from error
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _is_utf8(cells: Sequence[str]) -> bool:
    """Return whether all cells were UTF-8 in the file. :func:`open_text` represents other bytes by lone surrogates."""
    return not any("\udc80" <= character <= "\udcff" for cell in cells for character in cell)


def _tables(rows: Iterable[ClipRow], columns: Sequence[str]) -> Iterator[pa.Table]:
    iterator = iter(rows)
    # Yield one table even if there are no rows, because the index needs the columns.
    yield _table(list(islice(iterator, _CHUNK)), columns)
    while chunk := list(islice(iterator, _CHUNK)):
        yield _table(chunk, columns)


def _table(rows: Sequence[ClipRow], columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    def texts(values: Iterable[str | None]) -> pa.Array:
        return pa.array(list(values), pa.string())

    return pa.table(
        {
            "id": texts(row.file for row in rows),
            "duration_s": pa.array([row.duration_s for row in rows], pa.float64()),
            "text": texts(row.text for row in rows),
            "shard": pa.array([row.table for row in rows], pa.int32()),
            "row_group": pa.array([row.line for row in rows], pa.int32()),
            "row": pa.nulls(len(rows), pa.int32()),  # not needed, because row_group has the line number
            "reason": texts(row.bad.reason if row.bad else None for row in rows),
            "detail": texts(row.bad.detail if row.bad else None for row in rows),
            **{f"{METADATA}{name}": texts(row.metadata.get(name) for row in rows) for name in columns},
        }
    )
