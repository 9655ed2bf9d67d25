"""Source ``parquet``: rows become utterances without a look at the audio, and audio comes by row group."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from pydantic import ValidationError

from tests.conftest import Document, changed
from tests.support.hub_server import forget
from tests.support.parquet_shards import (
    AUDIO,
    LOQUACIOUS,
    encoded_clip,
    loquacious_row,
    parquet_bytes,
    write_parquet,
)
from tiny_audio.audio.load import AudioError, load_audio
from tiny_audio.commands.run import Run
from tiny_audio.config import UserError
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.recipe import Recipe
from tiny_audio.sources import SOURCES, HubFile, Index, Source, SourceContext
from tiny_audio.sources._columns import Columns
from tiny_audio.sources._hub.cache import CachedClips, DiskCache
from tiny_audio.sources._row_groups import RowGroup, row_group_reader
from tiny_audio.sources.parquet import ParquetConfig

SPEECH = Path(__file__).parents[3] / "shared" / "speech" / "librispeech-sample" / "all.jsonl"
COLUMNS: dict[str, Any] = {"audio_column": "wav", "id_column": "ID", "speaker_column": "spk_id"}


def build(path: Path | str, cache: Path, **fields: Any) -> Source:
    return SOURCES.build(ParquetConfig(path=str(path), **(COLUMNS | fields)), SourceContext(cache))


def simple(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A row of the default columns."""
    return {"audio": encoded_clip(number, 0.5), "text": "yes", "duration": 0.5} | changes


def indexed(folder: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None, **fields: Any) -> Index:
    path = write_parquet(folder / "clips.parquet", rows, schema)
    config = ParquetConfig(path=str(path), **fields)
    return SOURCES.build(config, SourceContext(folder / "cache")).index()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of LoquaciousSet's schema, in two folders, of 25, 25 and 1 clips."""
    folder = tmp_path_factory.mktemp("shards")
    for name, first, count in (("a/train-0.parquet", 0, 25), ("a/train-1.parquet", 25, 25), ("b/dev.parquet", 50, 1)):
        write_parquet(folder / name, [loquacious_row(number) for number in range(first, first + count)], LOQUACIOUS)
    (folder / "a" / "README.md").write_text("no parquet")
    return folder


def without_durations(shards: Path, folder: Path) -> Path:
    rows = pq.read_table(shards / "a" / "train-0.parquet").drop_columns("duration").to_pylist()
    return write_parquet(folder / "clips.parquet", rows, LOQUACIOUS.remove(1))


# --- rows -------------------------------------------------------------------------------------------------------


def test_the_index_is_the_rows(shards: Path, tmp_path: Path) -> None:
    source = build(shards, tmp_path)
    index = source.index()
    assert index.dropped == ()
    assert len(index.utterances) == 51
    for number, utterance in enumerate(index.utterances):
        row = loquacious_row(number)
        assert (utterance.id, utterance.text) == (row["ID"], row["text"])
        assert utterance.duration_s == pytest.approx(row["duration"], rel=1e-6)
        known = {"speaker": row["spk_id"], "sex": row["sex"]}
        assert utterance.metadata == {key: value for key, value in known.items() if value is not None}
        assert source.encoded(utterance) == row["wav"]["bytes"]
    assert str(index.utterances[36].audio) == f"{shards}/a/train-1.parquet#row_group=1&row=1&column=wav"


def test_columns_tell_durations_and_row_groups(shards: Path, tmp_path: Path) -> None:
    index = build(shards, tmp_path).index()
    assert index.durations_s is not None
    assert index.durations_s.tolist() == [utterance.duration_s for utterance in index.utterances]
    assert index.groups is not None
    places = []
    for utterance in index.utterances:
        assert utterance.audio is not None
        assert utterance.audio.cell is not None
        places.append((utterance.audio.file, utterance.audio.cell.row_group))
    assert len(set(zip(places, index.groups.tolist(), strict=True))) == len(set(places)) == len(set(index.groups))


def test_an_utterance_is_made_when_it_is_asked_for(shards: Path, tmp_path: Path) -> None:
    utterances = build(shards, tmp_path).index().utterances
    assert len(pickle.dumps(utterances)) < 3_000  # where they are, not what they are
    assert pickle.loads(pickle.dumps(utterances)) == utterances
    assert utterances[5:50:20] == tuple(utterances[number] for number in (5, 25, 45))
    assert utterances[-1] == utterances[len(utterances) - 1]


@pytest.mark.skipif(not SPEECH.exists(), reason="needs the recorded speech")
def test_shards_that_the_datasets_library_wrote_of_real_speech(tmp_path: Path) -> None:
    import datasets

    manifest = [json.loads(line) for line in SPEECH.read_text().splitlines()]
    table = {
        "ID": [row["audio_filepath"] for row in manifest],
        "duration": [row["duration"] for row in manifest],
        "wav": [{"bytes": (SPEECH.parent / row["audio_filepath"]).read_bytes(), "path": None} for row in manifest],
        "spk_id": [row["speaker"] for row in manifest],
        "sex": [row["sex"] for row in manifest],
        "text": [row["text"].upper() for row in manifest],
    }
    dataset = datasets.Dataset.from_dict(table).cast_column("duration", datasets.Value("float32"))
    dataset.cast_column("wav", datasets.Audio(SAMPLE_RATE)).to_parquet(tmp_path / "speech.parquet")

    source = build(tmp_path / "speech.parquet", tmp_path / "cache")
    index = source.index()
    assert (len(index.utterances), index.dropped) == (len(manifest), ())
    for utterance, row in zip(index.utterances, manifest, strict=True):
        assert (utterance.text, utterance.metadata["speaker"]) == (row["text"].upper(), row["speaker"])
        waveform = load_audio(source.encoded(utterance), max_duration_s=30)
        assert len(waveform) / SAMPLE_RATE == pytest.approx(utterance.duration_s, abs=0.01)


def damage_column(path: Path, leaf: str) -> None:
    """Zeros over all that is stored of a column."""
    content = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.path_in_schema == leaf:
                start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
                content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)


def test_no_audio_is_read_while_indexing(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "clips.parquet"
    path.write_bytes((shards / "a" / "train-0.parquet").read_bytes())
    whole = build(path, tmp_path / "cache").index()
    damage_column(path, "wav.bytes")
    source = build(path, tmp_path / "another cache")
    assert source.index().utterances == whole.utterances
    with pytest.raises(AudioError, match=r"/clips.parquet, row group 1, row 2: cannot be read: ") as caught:
        source.encoded(whole.utterances[12])
    assert caught.value.reason == "undecodable"


def test_the_second_index_comes_from_the_cache(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "clips.parquet"
    path.write_bytes((shards / "a" / "train-0.parquet").read_bytes())
    first = build(path, tmp_path / "cache").index()
    damage_column(path, "text")
    assert build(path, tmp_path / "cache").index() == first
    with pytest.raises(UserError, match=r"^clips.parquet cannot be read: .*; fetch or write the file anew$"):
        build(path, tmp_path / "another cache").index()


def test_a_moved_folder_is_the_same_data(shards: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(shards, tmp_path / "moved")
    first = build(shards, tmp_path / "cache").index()
    assert build(tmp_path / "moved", tmp_path / "cache 2").index() == first
    (tmp_path / "moved" / "b" / "dev.parquet").unlink()
    assert build(tmp_path / "moved", tmp_path / "cache 2").index().fingerprint != first.fingerprint


def test_other_audio_is_other_data(tmp_path: Path) -> None:
    one = indexed(tmp_path / "1", [simple(0)])
    same = indexed(tmp_path / "2", [simple(0)])
    other = indexed(tmp_path / "3", [simple(0, audio=encoded_clip(0, 0.5, "FLAC"))])
    assert one.fingerprint == same.fingerprint
    assert (one.utterances, one.fingerprint != other.fingerprint) == (other.utterances, True)


@pytest.mark.parametrize(
    ("pattern", "count", "first"),
    [
        ("a", 50, "train-0.parquet/0"),
        ("a/train-1.parquet", 25, "train-1.parquet/0"),
        ("*/*-[01].parquet", 50, "a/train-0.parquet/0"),
        ("**/*.parquet", 51, "a/train-0.parquet/0"),
        ("a/train-*", 50, "train-0.parquet/0"),
    ],
)
def test_files_folders_and_patterns(shards: Path, tmp_path: Path, pattern: str, count: int, first: str) -> None:
    source = build(shards / pattern, tmp_path, id_column=None)
    utterances = source.index().utterances
    assert (len(utterances), utterances[0].id) == (count, first)
    assert soundfile.info(io.BytesIO(source.encoded(utterances[-1]))).samplerate == SAMPLE_RATE


def test_a_folder_with_brackets_in_its_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "clips [2024]" / "x.parquet", [simple()])
    assert len(SOURCES.build(ParquetConfig(path=str(path.parent)), SourceContext(tmp_path)).index().utterances) == 1
    assert len(SOURCES.build(ParquetConfig(path=str(path)), SourceContext(tmp_path)).index().utterances) == 1


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_parquet(tmp_path / "x.parquet", [simple()])
    assert len(SOURCES.build(ParquetConfig(path="~/x.parquet"), SourceContext(tmp_path)).index().utterances) == 1


def test_durations_from_headers(shards: Path, tmp_path: Path) -> None:
    stated = build(shards / "a" / "train-0.parquet", tmp_path).index()
    measured = build(without_durations(shards, tmp_path), tmp_path).index()
    for one, other in zip(measured.utterances, stated.utterances, strict=True):
        assert one.duration_s == pytest.approx(other.duration_s, abs=1e-6)
        assert (one.id, one.text, one.metadata) == (other.id, other.text, other.metadata)


def test_kinds_of_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "audio": pa.array([encoded_clip(0, 0.5)], pa.large_binary()),
            "text": pa.array(["  a b "], pa.large_string()),
            "duration": pa.array([1], pa.int32()),
            "speaker": pa.array(["ann"]).dictionary_encode(),
            "age": pa.array([31], pa.int16()),
            "native": pa.array([True]),
            "unknown": pa.array([None], pa.null()),
            "words": pa.array([["a", "b"]]),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    index = SOURCES.build(ParquetConfig(path=str(tmp_path)), SourceContext(tmp_path / "cache")).index()
    (utterance,) = index.utterances
    assert (utterance.id, utterance.text, utterance.duration_s) == ("x.parquet/0", "a b", 1.0)
    assert utterance.metadata == {"speaker": "ann", "age": "31", "native": "true"}


def test_files_may_differ_in_what_is_metadata(tmp_path: Path) -> None:
    write_parquet(tmp_path / "1.parquet", [simple(age=3)])
    write_parquet(tmp_path / "2.parquet", [simple(), simple(1)])
    write_parquet(tmp_path / "3.parquet", [simple(hat="red")])
    utterances = SOURCES.build(ParquetConfig(path=str(tmp_path)), SourceContext(tmp_path / "cache")).index().utterances
    assert [dict(utterance.metadata) for utterance in utterances] == [{"age": "3"}, {}, {}, {}]


def test_ids_that_come_again(tmp_path: Path) -> None:
    write_parquet(tmp_path / "1.parquet", [simple(n, name="same") for n in range(2)] + [simple(2, name="own")])
    write_parquet(tmp_path / "2.parquet", [simple(3, name="same")])
    config = ParquetConfig(path=str(tmp_path), id_column="name")
    source = SOURCES.build(config, SourceContext(tmp_path / "cache"))
    ids = [utterance.id for utterance in source.index().utterances]
    assert ids == ["same", "same:1.parquet:0:1", "own", "same:2.parquet:0:0"]
    assert source.encoded(source.index().utterances[3]) == encoded_clip(3, 0.5)


# --- what cannot be used ----------------------------------------------------------------------------------------


def bad_utf8(good: str) -> pa.Array:
    """Two texts, of which the second is not UTF-8, as parquet files may hold them."""
    bytes_ = pa.array([good.encode(), b"\xff\xfe"], pa.binary())
    return pa.Array.from_buffers(pa.string(), 2, bytes_.buffers())


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"text": None}, "text_missing", "'text' must be a text that is not empty, not None"),
        ({"text": " \t"}, "text_missing", r"'text' must be a text that is not empty, not ' \t'"),
        ({"duration": None}, "bad_duration", "'duration' must be a finite number of seconds above 0, not None"),
        ({"duration": 0.0}, "bad_duration", "above 0, not 0.0"),
        ({"duration": -1.0}, "bad_duration", "above 0, not -1.0"),
        ({"duration": math.nan}, "bad_duration", "above 0, not nan"),
        ({"duration": math.inf}, "bad_duration", "above 0, not inf"),
        ({"name": None}, "id_missing", "'name' must be a name, not None"),
        ({"name": ""}, "id_missing", "'name' must be a name, not ''"),
    ],
)
def test_a_bad_row_is_dropped_and_said(tmp_path: Path, changes: dict[str, Any], reason: str, detail: str) -> None:
    schema = pa.schema({"audio": AUDIO, "text": pa.string(), "duration": pa.float64(), "name": pa.string()})
    rows = [simple(audio={"bytes": b"", "path": None}, name=str(number)) for number in range(12)]
    rows[11] |= changes
    index = indexed(tmp_path, rows, schema, id_column="name")
    assert [utterance.id for utterance in index.utterances] == [str(number) for number in range(11)]
    (drop,) = index.dropped
    assert drop.reason == reason
    assert drop.detail.startswith("clips.parquet, row group 1, row 1: ")
    assert detail in drop.detail


@pytest.mark.parametrize(
    ("audio", "reason", "detail"),
    [
        (None, "audio_missing", "no audio; a table that only names audio files must be written with them inside"),
        ({"bytes": None, "path": "a.wav"}, "audio_missing", "no audio; a table that only names audio files"),
        ({"bytes": b"", "path": None}, "empty", "a file of 0 bytes"),
        ({"bytes": b"no audio" * 50, "path": None}, "undecodable", "not an audio file that can be decoded"),
    ],
)
def test_bad_audio(tmp_path: Path, audio: Any, reason: str, detail: str) -> None:
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


def test_a_damaged_row_group_costs_its_clips(shards: Path, tmp_path: Path) -> None:
    path = without_durations(shards, tmp_path)
    damage_column(path, "wav.bytes")
    said = (
        r"no row of .*clips.parquet can be used; the first of 25: clips.parquet, row group 0, row 0: the row group ca"
    )
    with pytest.raises(UserError, match=said):
        build(path, tmp_path / "cache").index()


def test_texts_that_are_no_unicode(tmp_path: Path) -> None:
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
            f"no column 'seconds' (duration_column); {COLUMNS_THERE}; without durations, leave duration_column out",
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
            f"the column 'age' of clips.parquet holds int64; text_column must hold texts; {COLUMNS_THERE}",
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
def test_columns_that_are_not_there(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
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
            "there is no file or folder {}; path must be a parquet file, a folder with some, or a pattern",
        ),
        ("empty", "no .parquet file is in the folder {}; path must be"),
        ("*.parquet", "no file matches {}; path must be"),
    ],
)
def test_nothing_there(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=re.escape(message.format(tmp_path / path))):
        build(tmp_path / path, tmp_path / "cache").index()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all" * 100, parquet_bytes([simple()])[:-100]])
def test_no_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"x.parquet is no whole parquet file; fetch or write it anew$"):
        build(tmp_path, tmp_path / "cache").index()


def test_a_damaged_footer(tmp_path: Path) -> None:
    content = bytearray(parquet_bytes([simple()]))
    content[-400:-8] = bytes(392)
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"x.parquet cannot be read: .*; fetch or write the file anew$"):
        build(tmp_path, tmp_path / "cache").index()


def test_a_table_without_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no row of .*clips.parquet can be used$"):
        indexed(tmp_path, [], pa.schema({"audio": AUDIO, "text": pa.string(), "duration": pa.float64()}))


def test_files_that_change_after_they_were_indexed(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [simple(number) for number in range(3)])
    source = SOURCES.build(ParquetConfig(path=str(path)), SourceContext(tmp_path / "cache"))
    last = source.index().utterances[-1]
    write_parquet(path, [simple()])
    with pytest.raises(UserError, match=r"/x.parquet, row group 0, row 2 is not there: the file was changed after"):
        source.encoded(last)
    other = write_parquet(tmp_path / "y.parquet", [simple(number) for number in range(3)])
    source = SOURCES.build(ParquetConfig(path=str(other)), SourceContext(tmp_path / "cache"))
    last = source.index().utterances[-1]
    other.unlink()
    with pytest.raises(UserError, match=r"y.parquet is gone since it was indexed; put it back, or start again$"):
        source.encoded(last)


def test_a_damaged_cache(tmp_path: Path) -> None:
    indexed(tmp_path, [simple()])
    (rows,) = (tmp_path / "cache").rglob("rows.arrow")
    rows.write_bytes(rows.read_bytes()[:50])
    with pytest.raises(UserError, match=r"the cached index .* is damaged .*; delete the folder, and it is made anew$"):
        indexed(tmp_path, [simple()])


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"the cache folder .*/cache/parquet cannot be written: "):
        indexed(tmp_path, [simple()])


# --- in processes -----------------------------------------------------------------------------------------------


def test_row_groups_are_kept_within_bounds() -> None:
    reads: list[int] = []

    class Cache(DiskCache):
        def get(self, name: str, fetch: Callable[[], pa.ChunkedArray]) -> CachedClips:
            reads.append(int(name.split("-")[-1]))
            return CachedClips(pa.chunked_array([[b"x"]]), 40)

    def read(bounds: tuple[int, int], indices: tuple[int, ...]) -> list[int]:
        reads.clear()
        reader = row_group_reader(*bounds)
        for index in indices:
            reader(RowGroup(HubFile("a/b", "c", "d"), index, "audio"), Cache(Path("unused"), 0))
        return list(reads)

    for bounds in ((100, 32), (1_000_000, 2)):
        assert read(bounds, (1, 2, 1, 3, 1, 2)) == [1, 2, 3, 2], "3 drives out 2, which was used longer ago than 1"
    assert read((10, 32), (1, 1, 2, 1)) == [1, 2, 1], "the newest is kept whatever its size"


def test_clips_of_one_row_group_are_read_together(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = pq.ParquetFile.read_row_group
    groups = []

    def counted(self: pq.ParquetFile, group: int, **options: Any) -> pa.Table:
        groups.append(group)
        return read(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    forget()
    source = build(shards / "a" / "train-0.parquet", tmp_path)
    for utterance in source.index().utterances:
        source.encoded(utterance)
    assert groups == [0, 1, 2]


def test_a_source_travels_small(shards: Path, tmp_path: Path) -> None:
    source = build(shards, tmp_path)
    utterance = source.index().utterances[7]
    source.encoded(utterance)
    pickled = pickle.dumps(source)
    assert len(pickled) < 2_000
    assert pickle.loads(pickled).encoded(utterance) == loquacious_row(7)["wav"]["bytes"]


def test_listing_and_validating_load_no_library() -> None:
    code = (
        "import sys\n"
        "from tiny_audio.sources import SOURCES, SourceContext\n"
        "from pathlib import Path\n"
        "for entry in SOURCES.entries():\n"
        "    if entry.name != 'synthetic':\n"
        "        SOURCES.build(entry.config.tiny(), SourceContext(Path('cache')))\n"
        "heavy = {'pyarrow', 'datasets', 'huggingface_hub', 'httpx2', 'transformers', 'soundfile', 'fsspec'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


class Silent:
    """Hears what a run says."""

    def note(self, message: str) -> None: ...

    def step(self, step: int, values: dict[str, Any]) -> None: ...


@pytest.mark.usefixtures("one_thread")
def test_training_on_parquet(shards: Path, tmp_path: Path, document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    bad = [loquacious_row(100, wav={"bytes": b"noise" * 20, "path": None}), loquacious_row(101, text="")]
    write_parquet(tmp_path / "data" / "bad.parquet", bad, LOQUACIOUS)
    source = {"name": "parquet", "path": str(shards / "a"), **COLUMNS}
    sets = {"good": source, "bad": source | {"path": str(tmp_path / "data")}}
    held_out = source | {"path": str(shards / "b")}
    settings = {"data__train": sets, "data__evaluation": {"held_out": held_out}, "data__target_text": "lower"}
    settings |= {"data__max_dropped_share": 0.1, "training__steps": 15, "execution__num_workers": 2}
    settings |= {"execution__log_every": 5, "generation__max_new_tokens": 8}
    recipe = Recipe.model_validate(changed(document, **settings))
    Run(recipe, "parquet", tmp_path / "run", Silent()).complete()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 15
    dropped = [json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
    reasons = {drop["id"]: drop["reason"] for drop in dropped}
    assert reasons == {"bad/clip-100": "undecodable", "bad/clip-101": "text_missing"}
    (hypothesis,) = (tmp_path / "run" / "evaluation").rglob("*.jsonl")
    assert json.loads(hypothesis.read_text().splitlines()[0])["id"].endswith("clip-50")


def test_columns_by_name() -> None:
    config = ParquetConfig(path="x", **COLUMNS, metadata_columns=["sex"])
    assert Columns.of(config) == Columns("wav", "text", None, "ID", "spk_id", ("sex",))
    assert ParquetConfig.model_validate_json(config.model_dump_json()) == config
    assert os.fspath(Path(config.path)) == "x"
