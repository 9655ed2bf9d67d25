"""Parquet shards of clips, as the ``datasets`` library writes them."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from tiny_audio.frames import SAMPLE_RATE

Row = dict[str, Any]

AUDIO = pa.struct({"bytes": pa.binary(), "path": pa.string()})
LOQUACIOUS = pa.schema(
    {
        "ID": pa.string(),
        "duration": pa.float32(),
        "wav": AUDIO,
        "spk_id": pa.string(),
        "sex": pa.string(),
        "text": pa.string(),
    }
)
"""Columns of ``speechbrain/LoquaciousSet``."""
LIBRISPEECH = pa.schema(
    {
        "file": pa.string(),
        "audio": AUDIO,
        "text": pa.string(),
        "speaker_id": pa.int64(),
        "chapter_id": pa.int64(),
        "id": pa.string(),
    }
)
"""Columns of ``openslr/librispeech_asr``."""

GIGASPEECH = pa.schema(
    {
        "segment_id": pa.string(),
        "speaker": pa.string(),
        "text": pa.string(),
        "audio": AUDIO,
        "begin_time": pa.float32(),
        "end_time": pa.float32(),
        "audio_id": pa.string(),
        "title": pa.string(),
        "url": pa.string(),
        "source": pa.int64(),
        "category": pa.int64(),
        "original_full_path": pa.string(),
    }
)
"""Columns of ``speechcolab/gigaspeech``."""


@cache
def encoded_clip(number: int, seconds: float, container: str = "WAV") -> bytes:
    """Return an encoded tone with noise. ``number`` determines the frequency and the noise."""
    samples = round(seconds * SAMPLE_RATE)
    rng = np.random.default_rng(number)
    hz = 200 + 37 * (number % 40)
    waveform = 0.3 * np.sin(2 * np.pi * hz * np.arange(samples) / SAMPLE_RATE) + 0.01 * rng.standard_normal(samples)
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLE_RATE, format=container)
    return buffer.getvalue()


def loquacious_row(number: int, **changes: Any) -> Row:
    seconds = 0.5 + 0.05 * (number % 20)
    audio = {"bytes": encoded_clip(number, seconds, "FLAC" if number % 2 else "WAV"), "path": f"{number}.wav"}
    text = ("STOP NOW", "TURN RIGHT", "IT'S LEFT", "YES")[number % 4]
    row = {"ID": f"clip-{number}", "duration": seconds, "wav": audio, "spk_id": f"speaker {number % 3}"}
    return row | {"sex": ("male", "female", None)[number % 3], "text": text} | changes


def librispeech_row(number: int) -> Row:
    audio = {"bytes": encoded_clip(number, 0.6, "FLAC"), "path": f"{number}.flac"}
    row = {"file": f"{number}.flac", "audio": audio, "text": "HELLO", "speaker_id": 7, "chapter_id": 11}
    return row | {"id": f"7-11-{number:04d}"}


def gigaspeech_row(number: int, **changes: Any) -> Row:
    audio = {"bytes": encoded_clip(number, 0.6), "path": f"{number}.wav"}
    row = {"segment_id": f"POD{number // 4:010d}_S{number:07d}", "speaker": "N/A", "audio": audio, "title": "A podcast"}
    row |= {"text": "WELL <COMMA> STOP NOW <PERIOD>", "begin_time": 100.25 + number, "end_time": 100.85 + number}
    row |= {"audio_id": f"POD{number // 4:010d}", "url": "https://", "source": 1, "category": 24}
    return row | {"original_full_path": "audio/podcast/P0000/POD.opus"} | changes


def parquet_bytes(rows: list[Row], schema: pa.Schema | None = None, row_group: int = 10) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, row_group_size=row_group)
    return buffer.getvalue()


def loquacious_shard(first: int, count: int, row_group: int = 10) -> bytes:
    rows = [loquacious_row(number) for number in range(first, first + count)]
    return parquet_bytes(rows, LOQUACIOUS, row_group)


def write_parquet(path: Path, rows: list[Row], schema: pa.Schema | None = None, row_group: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(parquet_bytes(rows, schema, row_group))
    return path
