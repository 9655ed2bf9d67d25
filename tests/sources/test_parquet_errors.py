"""Parquet files with bad rows or missing columns, damaged files, and files that changed after indexing."""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tests.sources.parquet_files import build, damage_column, indexed, simple, without_durations
from tests.support.parquet_shards import (
    AUDIO,
    encoded_clip,
    parquet_bytes,
    write_parquet,
)
from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import load_audio
from tiny_audio.config import UserError
from tiny_audio.sources import SOURCES, SourceContext
from tiny_audio.sources.parquet import ParquetConfig


def bad_utf8(good: str) -> pa.Array:
    """Return two texts. The second is invalid UTF-8, which a Parquet file can contain."""
    bytes_ = pa.array([good.encode(), b"\xff\xfe"], pa.binary())
    return pa.Array.from_buffers(pa.string(), 2, bytes_.buffers())


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"text": None}, "text_missing", "'text' must be a string, not None"),
        ({"duration": None}, "bad_duration", "'duration' must be a finite number of seconds above 0, not None"),
        ({"duration": 0.0}, "bad_duration", "above 0, not 0.0"),
        ({"duration": -1.0}, "bad_duration", "above 0, not -1.0"),
        ({"duration": math.nan}, "bad_duration", "above 0, not nan"),
        ({"duration": math.inf}, "bad_duration", "above 0, not inf"),
        ({"name": None}, "id_missing", "'name' must be a name, not None"),
        ({"name": ""}, "id_missing", "'name' must be a name, not ''"),
    ],
)
def test_a_bad_row_is_dropped_with_its_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str, detail: str
) -> None:
    schema = pa.schema({"audio": AUDIO, "text": pa.string(), "duration": pa.float64(), "name": pa.string()})
    rows = [simple(audio={"bytes": b"", "path": None}, name=str(number)) for number in range(12)]
    rows[11] |= changes
    index = indexed(tmp_path, rows, schema, id_column="name")
    assert [utterance.id for utterance in index.utterances] == [str(number) for number in range(11)]
    (drop,) = index.dropped
    assert drop.reason == reason
    assert drop.detail.startswith("clips.parquet, row group 1, row 1: ")
    assert detail in drop.detail


def test_columns_with_the_same_name_are_an_error(tmp_path: Path) -> None:
    table = pa.table([pa.array([b""]), pa.array(["yes"]), pa.array(["no"])], names=["audio", "text", "text"])
    pq.write_table(table, tmp_path / "clips.parquet")
    source = SOURCES.build(ParquetConfig(path=str(tmp_path)), SourceContext(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"clips\.parquet has several columns with the same name; its columns: audio"):
        source.index()


def test_the_smallest_integer_is_not_a_duration(tmp_path: Path) -> None:
    schema = pa.schema({"audio": AUDIO, "text": pa.string(), "duration": pa.int64()})
    rows = [simple(audio={"bytes": b"", "path": None}, duration=seconds) for seconds in (1, -(2**63))]
    index = indexed(tmp_path, rows, schema)
    assert [utterance.duration_s for utterance in index.utterances] == [1.0]
    (drop,) = index.dropped
    assert drop.reason == "bad_duration"
    assert "above 0, not -9223372036854775808" in drop.detail


@pytest.mark.parametrize(
    ("audio", "reason", "detail"),
    [
        (None, "audio_missing", "no audio; "),
        ({"bytes": None, "path": "a.wav"}, "audio_missing", "no audio; "),
        ({"bytes": b"", "path": None}, "empty", "the file is empty"),
        ({"bytes": b"no audio" * 50, "path": None}, "undecodable", "not an audio file that can be decoded"),
    ],
)
def test_bad_audio_is_an_error_with_its_reason(tmp_path: Path, audio: Any, reason: str, detail: str) -> None:
    schema = pa.schema({"audio": AUDIO, "text": pa.string(), "duration": pa.float64()})
    rows = [simple(audio={"bytes": encoded_clip(0, 0.5), "path": None}), simple(audio=audio)]
    measured = indexed(tmp_path, rows, schema.remove(2))
    (drop,) = measured.dropped
    assert (len(measured.utterances), drop.reason) == (1, reason)
    assert drop.detail.startswith(f"clips.parquet, row group 0, row 1: {detail}")

    path = write_parquet(tmp_path / "clips.parquet", rows, schema)
    source = SOURCES.build(ParquetConfig(path=str(path)), SourceContext(tmp_path / "cache"))
    utterances = source.index().utterances
    with pytest.raises(AudioError, match=re.escape(detail)) as caught:
        load_audio(source.encoded(utterances[1]), max_duration_s=1)
    assert caught.value.reason == reason


def test_clips_in_a_damaged_row_group_are_unusable(shards: Path, tmp_path: Path) -> None:
    path = without_durations(shards, tmp_path)
    damage_column(path, "wav.bytes")
    said = r"no row of .*clips.parquet can be used; the first problem of 25: clips.parquet, row group 0, row 0: "
    with pytest.raises(UserError, match=said):
        build(path, tmp_path / "cache").index()


def test_a_repaired_file_is_indexed_again(shards: Path, tmp_path: Path) -> None:
    path = without_durations(shards, tmp_path)
    good, times = path.read_bytes(), path.stat()
    damage_column(path, "wav.bytes")
    with pytest.raises(UserError, match=r"no row of .* can be used"):
        build(path, tmp_path / "cache").index()
    time.sleep(0.02)  # so that the repaired file gets a later change time, which os.utime does not reset
    path.write_bytes(good)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    index = build(path, tmp_path / "cache").index()
    assert len(index.utterances) == 25
    assert index.dropped == ()


def test_texts_that_are_not_utf8_are_dropped(tmp_path: Path) -> None:
    clips = pa.array([encoded_clip(0, 0.5)] * 2)
    table = pa.table({"audio": clips, "text": bad_utf8("yes"), "duration": [0.5, 0.5], "accent": bad_utf8("us")})
    pq.write_table(table, tmp_path / "x.parquet")
    index = SOURCES.build(ParquetConfig(path=str(tmp_path)), SourceContext(tmp_path / "cache")).index()
    assert [dict(utterance.metadata) for utterance in index.utterances] == [{"accent": "us"}]
    (drop,) = index.dropped
    assert (drop.reason, drop.detail) == ("bad_unicode", "x.parquet, row group 0, row 1: 'text' is not UTF-8")


COLUMNS_THERE = (
    "its columns: audio (audio), text (string), duration (double), age (int64), words (list<element: string>)"
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audio_column": "wav"}, f"clips.parquet has no column 'wav' (audio_column); {COLUMNS_THERE}"),
        ({"text_column": "transcript"}, f"clips.parquet has no column 'transcript' (text_column); {COLUMNS_THERE}"),
        (
            {"duration_column": "seconds"},
            f"no column 'seconds' (duration_column); {COLUMNS_THERE}; if there are no durations, remove duration_c",
        ),
        ({"id_column": "ID"}, f"clips.parquet has no column 'ID' (id_column); {COLUMNS_THERE}"),
        ({"speaker_column": "who"}, f"clips.parquet has no column 'who' (speaker_column); {COLUMNS_THERE}"),
        ({"metadata_columns": ["age", "sex"]}, f"has no column 'sex' (metadata_columns); {COLUMNS_THERE}"),
        (
            {"audio_column": "words"},
            "the column 'words' of clips.parquet holds list<element: string>; audio_column must hold encoded audio, as "
            f"bytes or as a struct of bytes and path; {COLUMNS_THERE}",
        ),
        (
            {"text_column": "age"},
            f"the column 'age' of clips.parquet holds int64; text_column must hold strings; {COLUMNS_THERE}",
        ),
        (
            {"duration_column": "words"},
            f"holds list<element: string>; duration_column must hold seconds; {COLUMNS_THERE}",
        ),
        (
            {"id_column": "words"},
            f"holds list<element: string>; ids and metadata must be single values; {COLUMNS_THERE}",
        ),
    ],
)
def test_missing_columns_are_an_error(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        indexed(tmp_path, [simple(age=3, words=["a"])], **fields)


def test_columns_must_differ() -> None:
    with pytest.raises(ValidationError, match="must name different columns, not 'audio', 'text', 'text'"):
        ParquetConfig(path="x", speaker_column="text")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "none.parquet",
            "there is no file or folder {}; path must be a parquet file, a folder with parquet files, or a pattern",
        ),
        ("empty", "no .parquet file is in the folder {}; path must be"),
        ("*.parquet", "no file matches {}; path must be"),
    ],
)
def test_missing_files_are_an_error(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=re.escape(message.format(tmp_path / path))):
        build(tmp_path / path, tmp_path / "cache").index()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all" * 100, parquet_bytes([simple()])[:-100]])
def test_other_files_are_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"x.parquet is not a complete parquet file"):
        build(tmp_path, tmp_path / "cache").index()


def test_a_damaged_footer_is_an_error(tmp_path: Path) -> None:
    content = bytearray(parquet_bytes([simple()]))
    content[-400:-8] = bytes(392)
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"x.parquet cannot be read: "):
        build(tmp_path, tmp_path / "cache").index()


def test_a_table_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no row of .*clips.parquet can be used$"):
        indexed(tmp_path, [], pa.schema({"audio": AUDIO, "text": pa.string(), "duration": pa.float64()}))


def test_files_that_change_after_indexing_are_an_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [simple(number) for number in range(3)])
    source = SOURCES.build(ParquetConfig(path=str(path)), SourceContext(tmp_path / "cache"))
    last = source.index().utterances[-1]
    write_parquet(path, [simple()])
    with pytest.raises(
        UserError, match=r"/x.parquet, row group 0, row 2 does not exist; if the file was changed after it was indexed"
    ):
        source.encoded(last)
    other = write_parquet(tmp_path / "y.parquet", [simple(number) for number in range(3)])
    source = SOURCES.build(ParquetConfig(path=str(other)), SourceContext(tmp_path / "cache"))
    last = source.index().utterances[-1]
    other.unlink()
    with pytest.raises(UserError, match=r"y.parquet was removed after it was indexed; restore it, or start again$"):
        source.encoded(last)


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    indexed(tmp_path, [simple()])
    (rows,) = (tmp_path / "cache").rglob("rows.arrow")
    rows.write_bytes(rows.read_bytes()[:50])
    with pytest.raises(UserError, match=r"the cached index .* is damaged .*; delete the folder"):
        indexed(tmp_path, [simple()])


def test_an_unwritable_cache_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"the cache folder .*/cache/parquet cannot be written: "):
        indexed(tmp_path, [simple()])
