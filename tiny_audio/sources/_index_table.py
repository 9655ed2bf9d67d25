"""An index on disk: one Arrow row a clip, written shard by shard, mapped into memory to be read.

The columns are those of :func:`tiny_audio.sources._parquet.index_shard`. A run still holds one :class:`Utterance` for
each clip; the table is what a plan over columns alone can be made from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_audio.config import UserError
from tiny_audio.files import commit_folder
from tiny_audio.sources import Dropped, Index, Utterance
from tiny_audio.sources._parquet import METADATA

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
"""Of the table's layout; belongs into the names of index folders."""

_ROWS, _ABOUT = "rows.arrow", "index.json"
_SHARED_METADATA = 200_000
"""So many different metadata are remembered, to be shared by the utterances that have the same."""


def write_index(folder: Path, tables: Iterable[pa.Table], shards: Sequence[str], identity: str) -> None:
    """Write the tables of all shards, in order, into a folder that appears whole; memory holds a shard at a time.

    Ids that come again get their place added. The fingerprint is the hash of ``identity`` and of all usable rows.

    Raises:
        UserError: the folder cannot be written.
    """
    digest = hashlib.sha256(identity.encode())
    aside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            aside.mkdir(parents=True)
            repeated = _write(aside / _ROWS, _fingerprinted(tables, digest))
            if repeated:
                (aside / _ROWS).rename(aside / "repeated.arrow")
                _write(aside / _ROWS, _renamed(_batches(aside / "repeated.arrow"), repeated, shards))
                (aside / "repeated.arrow").unlink()
            about = {"shards": list(shards), "fingerprint": digest.hexdigest()}
            (aside / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
            commit_folder(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise UserError(f"the cache folder {folder.parent} cannot be written: {error}") from error


def read_index(folder: Path) -> Index:
    """The index that :func:`write_index` wrote.

    Raises:
        UserError: the folder is damaged.
    """
    import pyarrow as pa

    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        utterances: list[Utterance] = []
        dropped: list[Dropped] = []
        shared: dict[tuple[object, ...], Mapping[str, str]] = {}
        for batch in _batches(folder / _ROWS):
            for item in _items(batch, about["shards"], shared):
                if isinstance(item, Dropped):
                    dropped.append(item)
                else:
                    utterances.append(item)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"the cached index {folder} is damaged ({error}); delete the folder, and it is made anew"
        ) from error
    return Index(tuple(utterances), tuple(dropped), about["fingerprint"])


def place(utterance: Utterance) -> tuple[str, int, int]:
    """Shard, row group and row of an utterance of such an index."""
    shard, row_group, row = utterance.audio.rsplit(":", 2)
    return shard, int(row_group), int(row)


def _items(
    batch: pa.Table, shards: Sequence[str], shared: dict[tuple[object, ...], Mapping[str, str]]
) -> Iterator[Utterance | Dropped]:
    names = [name for name in batch.column_names if name.startswith(METADATA)]
    keys = [name.removeprefix(METADATA) for name in names]
    columns = [batch.column(name).to_pylist() for name in names]
    metadata: Iterable[tuple[object, ...]] = zip(*columns, strict=True) if columns else ((),) * batch.num_rows
    fixed = ("id", "duration_s", "text", "shard", "row_group", "row", "reason", "detail")
    rows = zip(*(batch.column(name).to_pylist() for name in fixed), metadata, strict=True)
    for id_, duration_s, text, shard, row_group, row, reason, detail, values in rows:
        if reason is not None:
            yield Dropped(id_, reason, detail)
            continue
        known = shared.get(values)
        if known is None:
            known = {key: str(value) for key, value in zip(keys, values, strict=True) if value is not None}
            if len(shared) < _SHARED_METADATA:
                shared[values] = known
        yield Utterance(id_, duration_s, text, f"{shards[shard]}:{row_group}:{row}", known)


def _fingerprinted(tables: Iterable[pa.Table], digest: Any) -> Iterator[pa.Table]:
    import pyarrow.compute as pc

    for table in tables:
        usable = table.filter(pc.is_null(table.column("reason")))
        rows = [usable.column(name).to_pylist() for name in ("id", "duration_s", "text")]
        digest.update(json.dumps(rows).encode())
        yield table


def _write(path: Path, tables: Iterable[pa.Table]) -> set[int]:
    """Write the tables under the schema of the first; the hashes of ids that come more than once."""
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
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    return set(values[counts > 1].tolist())


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Shards of one corpus may differ in the metadata columns that they have; the first one's are kept."""
    import pyarrow as pa

    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names)


def _renamed(tables: Iterable[pa.Table], repeated: set[int], shards: Sequence[str]) -> Iterator[pa.Table]:
    import pyarrow as pa

    seen: set[str] = set()
    for table in tables:
        ids = table.column("id").to_pylist()
        for index, id_ in enumerate(ids):
            if hash(id_) not in repeated:
                continue
            if id_ in seen:
                where = (table.column(name)[index].as_py() for name in ("row_group", "row"))
                ids[index] = ":".join(map(str, (id_, shards[table.column("shard")[index].as_py()], *where)))
            seen.add(id_)
        yield table.set_column(0, "id", pa.array(ids, pa.string()))


def _batches(path: Path) -> Iterator[pa.Table]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(number)])
