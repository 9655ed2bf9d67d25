"""Read parquet files of clips: their rows as an index table, and their audio by row group.

A shard is one parquet file of a dataset. The file may be local or on the hub.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import audio_duration
from tiny_audio.config import UserError
from tiny_audio.sources._columns import Columns
from tiny_audio.sources._shared import shown

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

METADATA = "metadata."
"""Prefix of metadata columns in an index table."""


class BrokenShardError(UserError):
    """A shard is not a readable parquet file."""


def index_shard(
    file: pq.ParquetFile,
    shard: str,
    shard_index: int,
    columns: Columns,
    audio: Callable[[int], pa.ChunkedArray],
    *,
    keep_silence: bool = False,
) -> pa.Table:
    """Return the rows of a shard as an index table. Its columns are:

    - ``id``, ``duration_s`` and ``text``
    - ``shard`` (an index), ``row_group``, and ``row`` (within the row group)
    - ``reason`` and ``detail``, which are null if the row can be used
    - ``metadata.…``, as strings

    Args:
        shard: name of the shard, for ids and messages.
        shard_index: index of the shard among all shards.
        audio: reads the encoded clips of a row group. Called only if there is no column of durations.
        keep_silence: keep clips that are marked as not speech, and give them an empty transcript. If false, they are
            dropped.

    Raises:
        UserError: a column is missing or has the wrong type, or the shard is damaged.
    """
    import numpy as np
    import pyarrow as pa

    schema = file.schema_arrow
    columns.check(schema, shard)
    kept = columns.kept(schema)
    stated = columns.stated_duration(schema)
    wanted = {name for name in (columns.text, *kept.values(), stated, columns.begin, columns.id) if name is not None}
    try:
        table = file.read(columns=sorted(wanted), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise BrokenShardError(
            f"{shard} cannot be read: {one_line(error)}; download or write the file again"
        ) from error
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    groups = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    rows = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes] or [np.empty(0, np.int32)])

    problems = _Problems(table.num_rows)
    texts = _texts(table, columns, problems, keep_silence)
    ids = _ids(table, shard, columns, problems)
    if stated is None:
        durations = _measured(sizes, audio, shard, problems)
    else:
        durations = _stated(table, stated, columns.begin, problems)
    reasons, details = problems.columns(shard, groups, rows)
    return pa.table(
        {
            "id": ids,
            "duration_s": pa.array(durations, pa.float64()),
            "text": texts,
            "shard": pa.array(np.full(len(rows), shard_index, np.int32)),
            "row_group": pa.array(groups),
            "row": pa.array(rows),
            "reason": reasons,
            "detail": details,
            **{f"{METADATA}{name}": _strings(table.column(column))[0] for name, column in kept.items()},
        }
    )


def read_audio(file: pq.ParquetFile, row_group: int, column: str) -> pa.ChunkedArray:
    """Return the encoded clips of a row group. Rows without a clip are null.

    Raises:
        pyarrow.ArrowException, OSError: the file cannot be read, or its bytes are damaged.
    """
    import pyarrow.compute as pc
    import pyarrow.types as types

    in_struct = types.is_struct(file.schema_arrow.field(column).type)
    leaf = f"{column}.bytes" if in_struct else column
    # Arrow also reads columns whose names begin with this name and a dot, so choose the column by its name.
    clips = file.read_row_group(row_group, columns=[leaf], use_threads=False).column(column)
    return pc.struct_field(clips, "bytes") if in_struct else clips


def clip_bytes(clips: pa.ChunkedArray, row: int, place: str) -> bytes:
    """Return one encoded clip of a row group.

    Args:
        place: name of the row in messages.

    Raises:
        AudioError: the row has no audio.
        UserError: the row does not exist.
    """
    if row >= len(clips):
        raise UserError(f"{place} does not exist; if the file was changed after it was indexed, start again")
    value = clips[row].as_py()
    if not isinstance(value, bytes):
        raise AudioError(
            "audio_missing",
            f"{place}: no audio; if the table contains only names of audio files, write it again with the audio inside",
        )
    return value


def read_error(error: Exception, where: str) -> UserError:
    """Return the error to raise for a clip whose row group could not be read.

    Args:
        error: the error that Arrow raised. Disk errors have an ``errno``. Errors about damaged bytes have none.
        where: name of the clip or of the file, for the message.

    Returns:
        an :class:`AudioError` if the bytes are damaged, so that the clip is dropped. For a disk error, a
        :class:`UserError` that is not an :class:`AudioError`, so that the run stops.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(
            f"{where}: cannot be read: {one_line(error)}; check the disk (the clip may be good, so it is not dropped)"
        )
    return AudioError("undecodable", f"{where}: cannot be read: {one_line(error)}")


def one_line(error: Exception) -> str:
    """Return an error message of Arrow on one line."""
    return " ".join(str(error).split())


def row_name(shard: str, row_group: int, row: int) -> str:
    """Return the name of a row for messages."""
    return f"{shard}, row group {row_group}, row {row}"


class _Problems:
    """The problems of rows. If a row has several problems, only the first problem found is kept."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._found: dict[int, tuple[str, str]] = {}

    def add(self, row: int, reason: str, detail: str) -> None:
        self._found.setdefault(row, (reason, detail))

    def columns(self, shard: str, groups: np.ndarray, rows: np.ndarray) -> tuple[pa.Array, pa.Array]:
        import pyarrow as pa

        reasons: list[str | None] = [None] * self._num_rows
        details: list[str | None] = [None] * self._num_rows
        for row, (reason, detail) in self._found.items():
            reasons[row] = reason
            details[row] = f"{row_name(shard, int(groups[row]), int(rows[row]))}: {detail}"
        return pa.array(reasons, pa.string()), pa.array(details, pa.string())


def _texts(table: pa.Table, columns: Columns, problems: _Problems, keep_silence: bool) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    column, broken = _strings(table.column(columns.text))
    for row in broken:
        problems.add(row, "bad_unicode", f"{columns.text!r} is not UTF-8")
    trimmed = pc.utf8_trim_whitespace(column)
    for row in _where(pc.is_null(trimmed)):
        problems.add(row, "text_missing", f"{columns.text!r} must be a string, not None")
    if columns.silence:
        silent = pc.is_in(trimmed, value_set=pa.array(columns.silence))
        if keep_silence:
            return pc.if_else(silent, "", trimmed)
        for row in _where(silent):
            detail = (
                f"{columns.text!r} is {trimmed[row].as_py()}, so nobody speaks; to train on such clips, set "
                "data.keep_empty"
            )
            problems.add(row, "no_speech", detail)
    return trimmed


def _ids(table: pa.Table, shard: str, columns: Columns, problems: _Problems) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    numbered = pa.chunked_array([pa.array([f"{shard}/{row}" for row in range(table.num_rows)], pa.string())])
    if columns.id is None:
        return numbered
    given, broken = _strings(table.column(columns.id))
    for row in broken:
        problems.add(row, "bad_unicode", f"{columns.id!r} is not UTF-8")
    missing = pc.or_kleene(pc.is_null(given), pc.equal(given, ""))
    for row in _where(missing):
        problems.add(row, "id_missing", f"{columns.id!r} must be a name, not {shown(given[row].as_py())}")
    return pc.if_else(missing, numbered, given)


def _stated(table: pa.Table, name: str, begin: str | None, problems: _Problems) -> np.ndarray:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column(name)
    # Some programs write the smallest integer for missing values. An unsafe cast rounds it instead of raising an error.
    seconds = pc.fill_null(pc.cast(column, pa.float64(), safe=False), math.nan).to_numpy()
    what = repr(name)
    if begin is not None:
        begins = pc.cast(table.column(begin), pa.float64(), safe=False)
        seconds = seconds - pc.fill_null(begins, math.nan).to_numpy()
        what += f" minus {begin!r}"
    for row in np.flatnonzero(~(np.isfinite(seconds) & (seconds > 0))):
        value = shown(column[int(row)].as_py() if begin is None else float(seconds[row]))
        problems.add(int(row), "bad_duration", f"{what} must be a finite number of seconds above 0, not {value}")
    durations: np.ndarray = seconds
    return durations


def _measured(sizes: list[int], audio: Callable[[int], pa.ChunkedArray], shard: str, problems: _Problems) -> np.ndarray:
    """Return the durations in seconds, read from the headers of the clips. Unknown durations are NaN."""
    import numpy as np
    import pyarrow as pa

    durations = np.full(sum(sizes), math.nan)
    start = 0
    for group, size in enumerate(sizes):
        try:
            clips = audio(group)
        except (pa.ArrowException, OSError) as error:
            problem = read_error(error, shard)
            if not isinstance(problem, AudioError):
                raise problem from error
            for row in range(size):
                problems.add(start + row, "undecodable", f"the row group cannot be read: {one_line(error)}")
        else:
            for row in range(size):
                place = row_name(shard, group, row)
                try:
                    durations[start + row] = audio_duration(clip_bytes(clips, row, place), name=place)
                except AudioError as error:
                    problems.add(start + row, error.reason, str(error).removeprefix(f"{place}: "))
        start += size
    return durations


def _strings(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[int]]:
    """Return the column as strings, and the indices of the rows that are not UTF-8. The strings of these rows are null.

    The encoding is checked here, because Arrow does not check it when it reads parquet.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if types.is_string_view(column.type) or types.is_large_string(column.type):
        column = pc.cast(column, pa.string())
    if not types.is_string(column.type):
        return pc.cast(column, pa.string()), []
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        values = [_utf8(value) for value in pc.cast(column, pa.binary()).to_pylist()]
        broken = [row for row, value in enumerate(values) if value is False]
        texts = pa.array([value if isinstance(value, str) else None for value in values], pa.string())
        return pa.chunked_array([texts]), broken
    return column, []


def _utf8(value: bytes | None) -> str | bool | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return False


def _where(mask: Any) -> list[int]:
    import numpy as np

    rows: list[int] = np.flatnonzero(mask.to_numpy()).tolist()
    return rows
