"""Sources that read a small LoquaciousSet from a local hub, and checks of their indexes and audio."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.parquet_shards import (
    loquacious_row,
)
from tiny_audio.sources import SOURCES, Index, Source, SourceContext
from tiny_audio.sources.hub import HubConfig
from tiny_audio.sources.loquacious import LoquaciousConfig

NAME = "speechbrain/LoquaciousSet"
CARD: dict[str, Any] = {
    "configs": [
        {
            "config_name": name,
            "data_files": [{"split": "train", "path": f"{name}/*"}, {"split": "dev", "path": "dev/*"}],
        }
        for name in ("small", "large")
    ]
}
CLIPS = 60


def build(cache: Path, **fields: Any) -> Source:
    return SOURCES.build(LoquaciousConfig(**({"config": "small"} | fields)), SourceContext(cache))


def build_any(cache: Path, repo: str = NAME, **fields: Any) -> Source:
    columns = {"audio_column": "wav", "id_column": "ID", "speaker_column": "spk_id"}
    return SOURCES.build(HubConfig(repo=repo, **(columns | fields)), SourceContext(cache))


def assert_rows(index: Index, first: int = 0, count: int = CLIPS) -> None:
    assert index.dropped == ()
    assert [utterance.id for utterance in index.utterances] == [f"clip-{n}" for n in range(first, first + count)]
    for number, utterance in enumerate(index.utterances, start=first):
        row = loquacious_row(number)
        known = {"speaker": row["spk_id"], "sex": row["sex"]}
        assert utterance.text == row["text"]
        assert utterance.duration_s == pytest.approx(row["duration"], rel=1e-6)
        assert utterance.metadata == {key: value for key, value in known.items() if value is not None}


def assert_audio(source: Source, index: Index) -> None:
    for utterance in random.Random(0).sample(index.utterances, len(index.utterances)):
        assert source.encoded(utterance) == loquacious_row(int(utterance.id.split("-")[1]))["wav"]["bytes"]


def audio_spans(shard: bytes) -> list[tuple[int, int]]:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(pa.BufferReader(shard))
    spans = []
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.path_in_schema == "wav.bytes":
                start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
                spans.append((start, start + column.total_compressed_size))
    return spans
