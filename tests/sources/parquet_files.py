"""Functions that write or damage Parquet files of clips, and build sources that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.parquet_shards import (
    LOQUACIOUS,
    encoded_clip,
    write_parquet,
)
from tiny_audio.sources import SOURCES, Index, Source, SourceContext
from tiny_audio.sources.parquet import ParquetConfig

COLUMNS: dict[str, Any] = {"audio_column": "wav", "id_column": "ID", "speaker_column": "spk_id"}


def build(path: Path | str, cache: Path, **fields: Any) -> Source:
    return SOURCES.build(ParquetConfig(path=str(path), **(COLUMNS | fields)), SourceContext(cache))


def simple(number: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a row whose columns have the default names."""
    return {"audio": encoded_clip(number, 0.5), "text": "yes", "duration": 0.5} | changes


def indexed(folder: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None, **fields: Any) -> Index:
    path = write_parquet(folder / "clips.parquet", rows, schema)
    config = ParquetConfig(path=str(path), **fields)
    return SOURCES.build(config, SourceContext(folder / "cache")).index()


def without_durations(shards: Path, folder: Path) -> Path:
    """Write a copy of a shard that has no column of durations. Return its path."""
    rows = pq.read_table(shards / "a" / "train-0.parquet").drop_columns("duration").to_pylist()
    return write_parquet(folder / "clips.parquet", rows, LOQUACIOUS.remove(1))


def damage_column(path: Path, leaf: str) -> None:
    """Overwrite the stored data of a column with zeros."""
    content = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.path_in_schema == leaf:
                start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
                content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
