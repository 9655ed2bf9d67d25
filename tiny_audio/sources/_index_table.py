"""An index on disk. Its main content is an Arrow file with the index table, which has one row per clip.

The clips come from shards. A shard is a parquet file, or a file that lists audio files, such as ``metadata.csv``. The
columns of the index table are those of :func:`tiny_audio.sources._parquet.index_shard`. For listed audio files,
``row_group`` is the line number in the shard, and ``row`` is null.

The index table can be larger than memory, so it is written in parts and read memory-mapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from filelock import FileLock, Timeout

from tiny_audio.config import UserError
from tiny_audio.runtime.files import UNFINISHED, new_folder
from tiny_audio.sources import (
    AudioAddress,
    ColumnarUtterances,
    Dropped,
    HubFile,
    Index,
    Origin,
    ParquetCell,
    Utterance,
    runs,
)
from tiny_audio.sources._arrow_files import mapped_table
from tiny_audio.sources._parquet import METADATA

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_LOG = logging.getLogger(__name__)

VERSION = 2
"""Version of the index table's columns. It is part of the names of index folders."""

_ROWS_READ = 1 << 16
"""Maximum number of rows that are converted to Python values at a time."""
_ROWS, _ABOUT = "rows.arrow", "index.json"
_PARTS = ".shards"
_PARTS_KEPT_S = 7 * 86_400


def write_index(
    folder: Path, tables: Iterable[pa.Table], shards: Sequence[str], identity: str, *, anew: bool = False
) -> None:
    """Write an index table with the rows of all ``tables`` to a folder. The folder is created atomically.

    Only one of the ``tables`` is in memory at a time. If several processes call this function, one process writes and
    the others wait.

    If several clips have the same id, the first clip keeps the id. Shard, row group and row are appended to the ids of
    the other clips, as in ``a:train.parquet:0:7``. If ``row`` is null, only shard and row group are appended. If the
    new id is already used, apostrophes are appended.

    Args:
        tables: the rows of all shards, in order, with the columns of
            :func:`tiny_audio.sources._parquet.index_shard`.
        shards: the name of each shard.
        identity: text to include in the fingerprint, in addition to the ids, durations and transcripts of usable rows.
        anew: replace the folder if it exists.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        with _locked(folder):
            if anew or not folder.exists():
                _write_alone(folder, tables, shards, identity)
                _mapped.cache_clear()
            _sweep(folder)
    except OSError as error:
        raise UserError(f"the cache folder {folder.parent} cannot be written: {error}") from error


def parts_of(folder: Path) -> Path:
    """Return the folder that stores the tables of finished shards until the whole index is written.

    Only the process that writes the index uses this folder.
    """
    return folder.with_name(f"{folder.name}{_PARTS}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = _lock(folder.name, folder)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        _LOG.info("waiting for another process that writes the index %s", folder)
        held = lock.acquire()
    with held:
        yield


def _lock(key: str, folder: Path) -> FileLock:
    return FileLock(folder.with_name(f".{key}.lock"))


def _sweep(folder: Path) -> None:
    """Delete ``parts_of(folder)``, and leftovers of killed processes in the parent folder.

    Tables of other unfinished indexes are deleted only after seven days, so that interrupted indexing can continue.
    """
    shutil.rmtree(parts_of(folder), ignore_errors=True)
    for path in list(folder.parent.iterdir()):
        key = path.name.lstrip(".").split(".")[0]
        with contextlib.suppress(FileNotFoundError, Timeout):  # deleted by another process, or still in use
            old = path.suffix == _PARTS and path.stat().st_mtime < time.time() - _PARTS_KEPT_S
            if old or path.suffix == UNFINISHED:
                with contextlib.nullcontext() if key == folder.name else _lock(key, folder).acquire(timeout=0):
                    shutil.rmtree(path, ignore_errors=True)


def _write_alone(folder: Path, tables: Iterable[pa.Table], shards: Sequence[str], identity: str) -> None:
    digest = hashlib.sha256(identity.encode())
    with new_folder(folder) as aside:
        hashes, counts = _write(aside / _ROWS, _fingerprinted(tables, digest))
        if len(hashes) < counts.sum():
            (aside / _ROWS).rename(aside / "repeated.arrow")
            _write(aside / _ROWS, _renamed(_batches(aside / "repeated.arrow"), hashes, counts, shards))
            (aside / "repeated.arrow").unlink()
        about = {"shards": list(shards), "fingerprint": digest.hexdigest()}
        (aside / _ABOUT).write_text(json.dumps(about), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class FileAddresses:
    """Returns the addresses of clips that are single files."""

    folder: Path
    column: str
    """Metadata column with the paths of the files, relative to the folder."""

    def __call__(self, shard: str, row: Mapping[str, Any]) -> AudioAddress:
        """Return the address of the clip in a row of the index table."""
        return AudioAddress(self.folder / row[f"{METADATA}{self.column}"])


@dataclass(frozen=True, slots=True)
class CellAddresses:
    """Returns the addresses of clips that are cells of parquet files."""

    file_of: Callable[[str], Path | HubFile]
    """A function that returns the file of a shard, given the shard's name. It must be picklable."""
    column: str
    """Column of the parquet file with the audio."""

    def __call__(self, shard: str, row: Mapping[str, Any]) -> AudioAddress:
        """Return the address of the clip in a row of the index table."""
        return AudioAddress(self.file_of(shard), ParquetCell(row["row_group"], row["row"], self.column))


Addresses = FileAddresses | CellAddresses


def read_index(folder: Path, addresses: Addresses) -> Index:
    """Read the index that :func:`write_index` wrote. The table is memory-mapped.

    Args:
        addresses: returns the address of a clip, given its row of the index table.

    Raises:
        UserError: the folder is damaged.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        table = mapped_table(folder / _ROWS)
        unusable = pc.is_valid(table.column("reason"))
        rows = np.flatnonzero(~unusable.to_numpy())
        dropped = table.select(("id", "reason", "detail")).filter(unusable).to_pylist()
        shards, row_groups = (table.column(name).to_numpy()[rows] for name in ("shard", "row_group"))
        durations_s = table.column("duration_s").to_numpy()[rows]
        empty = pc.fill_null(pc.equal(table.column("text"), ""), False).to_numpy()[rows]
        utterances = TableUtterances(folder / _ROWS, tuple(about["shards"]), rows, addresses)
        fingerprint = about["fingerprint"]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"the cached index {folder} is damaged ({error}); delete the folder to index again") from error
    # The rows of a row group are adjacent, so a new group of clips begins where the shard or the row group changes.
    ends = np.diff(shards, prepend=shards[:1]).astype(bool) | np.diff(row_groups, prepend=row_groups[:1]).astype(bool)
    return Index(
        utterances,
        tuple(Dropped(**row) for row in dropped),
        fingerprint,
        durations_s,
        np.cumsum(ends, dtype=np.int64),
        empty=empty,
    )


@dataclass(frozen=True, eq=False)
class TableUtterances(ColumnarUtterances):
    """The usable rows of an index table. Utterances are created on access.

    A pickle contains only the path of the table, not its rows.
    """

    path: Path
    shards: tuple[str, ...]
    rows: np.ndarray
    """``[n]`` int64, row indices in the table."""
    addresses: Addresses

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableUtterances) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # not hashable, like a list

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Utterance, ...]: ...
    def __getitem__(self, index: int | slice) -> Utterance | tuple[Utterance, ...]:
        if isinstance(index, slice):
            return tuple(self[position] for position in range(len(self))[index])
        row = _mapped(self.path).slice(int(self.rows[index]), 1).to_pylist()[0]
        return Utterance(row["id"], row["duration_s"], row["text"], *self._origin(row))

    def texts(self, rows: np.ndarray) -> Iterator[str]:
        """See :meth:`ColumnarUtterances.texts`."""
        for batch in self._read(rows, ["text"]):
            yield from batch.column("text").to_pylist()

    def ids(self, rows: np.ndarray) -> Iterator[str]:
        """See :meth:`ColumnarUtterances.ids`."""
        for batch in self._read(rows, ["id"]):
            yield from batch.column("id").to_pylist()

    def origins(self, rows: np.ndarray) -> Iterator[Origin]:
        """See :meth:`ColumnarUtterances.origins`."""
        names = _mapped(self.path).column_names
        columns = ["shard", "row_group", "row", *(name for name in names if name.startswith(METADATA))]
        for batch in self._read(rows, columns):
            yield from map(self._origin, batch.to_pylist())

    def _origin(self, row: Mapping[str, Any]) -> Origin:
        metadata = {
            key.removeprefix(METADATA): value
            for key, value in row.items()
            if key.startswith(METADATA) and value is not None
        }
        return Origin(self.addresses(self.shards[row["shard"]], row), metadata)

    def _read(self, rows: np.ndarray, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the given columns of the utterances ``self[row]`` for each of ``rows`` (``[m]``), in batches.

        Batches are needed, because one Arrow array cannot hold all strings of a large corpus.
        """
        import numpy as np

        batches, wanted = _mapped(self.path).select(columns).to_batches(), self.rows[rows]
        ends = np.cumsum([len(batch) for batch in batches])
        members = np.searchsorted(ends, wanted, side="right")
        for run in runs(members):
            batch = batches[members[run.start]]
            own = wanted[run] - (ends[members[run.start]] - len(batch))
            for start in range(0, len(own), _ROWS_READ):
                yield batch.take(own[start : start + _ROWS_READ])


_mapped = lru_cache(maxsize=8)(mapped_table)
"""A cached :func:`mapped_table`. The cache is cleared when an index is written."""


def _fingerprinted(tables: Iterable[pa.Table], digest: Any) -> Iterator[pa.Table]:
    import pyarrow.compute as pc

    for table in tables:
        usable = table.filter(pc.is_null(table.column("reason")))
        rows = [usable.column(name).to_pylist() for name in ("id", "duration_s", "text")]
        digest.update(json.dumps(rows).encode())
        yield table


def _write(path: Path, tables: Iterable[pa.Table]) -> tuple[np.ndarray, np.ndarray]:
    """Write the tables with the schema of the first table. Return the sorted hashes of all ids, and their frequencies.

    All ids together may not fit into memory, so hashes are returned. Different ids may have the same hash, so
    :func:`_renamed` compares the ids whose hash occurs more than once.
    """
    import numpy as np
    import pyarrow as pa

    hashes: list[np.ndarray] = []
    writer = None
    with pa.OSFile(str(path), "wb") as sink:
        try:
            for table in tables:
                if writer is None:
                    writer = pa.ipc.new_file(sink, table.schema)
                    schema = table.schema
                writer.write_table(_conformed(table, schema))
                ids = table.column("id").to_pylist()
                hashes.append(np.fromiter(map(hash, ids), np.int64, len(ids)))
        finally:
            if writer is not None:
                writer.close()
    return np.unique(np.concatenate(hashes), return_counts=True)


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with exactly the columns in ``schema``. Shards may differ in their metadata columns."""
    import pyarrow as pa

    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names)


def _renamed(
    tables: Iterable[pa.Table], hashes: np.ndarray, counts: np.ndarray, shards: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield the tables, after changing repeated ids as :func:`write_index` describes.

    Args:
        hashes, counts: the results of :func:`_write`.
    """
    import numpy as np
    import pyarrow as pa

    repeated = set(hashes[counts > 1].tolist())
    seen: set[str] = set()

    def is_used(id_: str) -> bool:
        at = np.searchsorted(hashes, hash(id_))
        return id_ in seen or bool(at < len(hashes) and hashes[at] == hash(id_))

    for table in tables:
        ids = table.column("id").to_pylist()
        for index, id_ in enumerate(ids):
            if hash(id_) not in repeated:
                continue
            if id_ in seen:
                shard, *where = (table.column(name)[index].as_py() for name in ("shard", "row_group", "row"))
                parts = [id_, shards[shard], *(number for number in where if number is not None)]
                id_ = ":".join(map(str, parts))
                while is_used(id_):
                    id_ += "'"
                ids[index] = id_
            seen.add(id_)
        yield table.set_column(0, "id", pa.array(ids, pa.string()))


def _batches(path: Path) -> Iterator[pa.Table]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(index)])
