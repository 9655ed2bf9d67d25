"""Source ``parquet`` indexes rows without reading audio, and reads the audio of a whole row group at once."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.conftest import Document, changed
from tests.sources.parquet_files import COLUMNS, build, damage_column, indexed, simple, without_durations
from tests.support.hub_server import forget
from tests.support.parquet_shards import (
    LOQUACIOUS,
    encoded_clip,
    loquacious_row,
    write_parquet,
)
from tests.support.paths import SHARED
from tests.support.training import RecordingCallback
from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import load_audio
from tiny_audio.commands.run import Run
from tiny_audio.config import UserError
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.recipe import Recipe
from tiny_audio.sources import SOURCES, HubFile, SourceContext
from tiny_audio.sources._columns import Columns
from tiny_audio.sources._disk_cache import CachedClips, DiskCache
from tiny_audio.sources._row_groups import RowGroup, row_group_reader
from tiny_audio.sources.parquet import ParquetConfig

SPEECH = SHARED / "speech" / "librispeech-sample" / "all.jsonl"


def test_the_index_equals_the_rows(shards: Path, tmp_path: Path) -> None:
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


def test_the_index_has_durations_and_row_groups(shards: Path, tmp_path: Path) -> None:
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


def test_utterances_are_created_when_they_are_used(shards: Path, tmp_path: Path) -> None:
    utterances = build(shards, tmp_path).index().utterances
    assert len(pickle.dumps(utterances)) < 3_000  # pickled utterances are the path of the cached table, not its rows
    assert pickle.loads(pickle.dumps(utterances)) == utterances
    assert utterances[5:50:20] == tuple(utterances[number] for number in (5, 25, 45))
    assert utterances[-1] == utterances[len(utterances) - 1]


@pytest.mark.skipif(not SPEECH.exists(), reason="needs the recorded speech")
def test_shards_of_real_speech_from_the_datasets_library_can_be_read(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match=r"^clips.parquet cannot be read: "):
        build(path, tmp_path / "another cache").index()


def test_a_moved_folder_has_the_same_fingerprint(shards: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(shards, tmp_path / "moved")
    first = build(shards, tmp_path / "cache").index()
    assert build(tmp_path / "moved", tmp_path / "cache 2").index() == first
    (tmp_path / "moved" / "b" / "dev.parquet").unlink()
    assert build(tmp_path / "moved", tmp_path / "cache 2").index().fingerprint != first.fingerprint


def test_other_audio_has_another_fingerprint(tmp_path: Path) -> None:
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
def test_paths_can_be_files_folders_or_patterns(
    shards: Path, tmp_path: Path, pattern: str, count: int, first: str
) -> None:
    source = build(shards / pattern, tmp_path, id_column=None)
    utterances = source.index().utterances
    assert (len(utterances), utterances[0].id) == (count, first)
    assert soundfile.info(io.BytesIO(source.encoded(utterances[-1]))).samplerate == SAMPLE_RATE


def test_a_folder_name_can_have_brackets(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "clips [2024]" / "x.parquet", [simple()])
    assert len(SOURCES.build(ParquetConfig(path=str(path.parent)), SourceContext(tmp_path)).index().utterances) == 1
    assert len(SOURCES.build(ParquetConfig(path=str(path)), SourceContext(tmp_path)).index().utterances) == 1


def test_links_to_folders_are_followed_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    write_parquet(tmp_path / "disk" / "x.parquet", [simple()])
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "more").symlink_to(tmp_path / "disk")
    write_parquet(folder / "y.parquet", [simple()])
    (folder / "._y.parquet").write_bytes(b"macOS writes such files")
    index = SOURCES.build(ParquetConfig(path=str(folder)), SourceContext(tmp_path / "cache")).index()
    assert [utterance.id for utterance in index.utterances] == ["more/x.parquet/0", "y.parquet/0"]


def test_an_unreadable_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "clips" / "x.parquet", [simple()])

    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"/clips/? cannot be read: Permission denied; "):
        SOURCES.build(ParquetConfig(path=str(tmp_path / "clips")), SourceContext(tmp_path / "cache")).index()


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_parquet(tmp_path / "x.parquet", [simple()])
    assert len(SOURCES.build(ParquetConfig(path="~/x.parquet"), SourceContext(tmp_path)).index().utterances) == 1


def test_missing_durations_are_read_from_headers(shards: Path, tmp_path: Path) -> None:
    stated = build(shards / "a" / "train-0.parquet", tmp_path).index()
    measured = build(without_durations(shards, tmp_path), tmp_path).index()
    for one, other in zip(measured.utterances, stated.utterances, strict=True):
        assert one.duration_s == pytest.approx(other.duration_s, abs=1e-6)
        assert (one.id, one.text, one.metadata) == (other.id, other.text, other.metadata)


def test_columns_can_have_various_types(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.struct({"bytes": pa.binary_view(), "path": pa.string()})])
def test_audio_can_have_the_type_of_views(tmp_path: Path, kind: pa.DataType) -> None:
    clips = [encoded_clip(number, 0.5) for number in range(2)]
    values = clips if kind == pa.binary_view() else [{"bytes": clip, "path": None} for clip in clips]
    pq.write_table(pa.table({"audio": pa.array(values, kind), "text": ["a", "b"]}), tmp_path / "x.parquet")
    source = SOURCES.build(ParquetConfig(path=str(tmp_path)), SourceContext(tmp_path / "cache"))
    utterances = source.index().utterances
    assert [utterance.duration_s for utterance in utterances] == [0.5, 0.5]
    assert [source.encoded(utterance) for utterance in utterances] == clips


def test_other_column_names_can_begin_with_the_name_of_the_audio(tmp_path: Path) -> None:
    clip = encoded_clip(0, 0.5)
    columns = {"audio.bytes": ["a"], "audio.path": ["b"], "audio": [{"bytes": clip, "path": None}], "text": ["yes"]}
    pq.write_table(pa.table(columns), tmp_path / "clips.parquet")
    source = build(tmp_path, tmp_path / "cache", audio_column="audio", id_column=None, speaker_column=None)
    (utterance,) = source.index().utterances
    assert source.encoded(utterance) == clip


def test_files_can_have_different_metadata_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "1.parquet", [simple(age=3)])
    write_parquet(tmp_path / "2.parquet", [simple(), simple(1)])
    write_parquet(tmp_path / "3.parquet", [simple(hat="red")])
    utterances = SOURCES.build(ParquetConfig(path=str(tmp_path)), SourceContext(tmp_path / "cache")).index().utterances
    assert [dict(utterance.metadata) for utterance in utterances] == [{"age": "3"}, {}, {}, {}]


def test_repeated_ids_are_made_unique(tmp_path: Path) -> None:
    write_parquet(tmp_path / "1.parquet", [simple(n, name="same") for n in range(2)] + [simple(2, name="own")])
    write_parquet(tmp_path / "2.parquet", [simple(3, name="same")])
    config = ParquetConfig(path=str(tmp_path), id_column="name")
    source = SOURCES.build(config, SourceContext(tmp_path / "cache"))
    ids = [utterance.id for utterance in source.index().utterances]
    assert ids == ["same", "same:1.parquet:0:1", "own", "same:2.parquet:0:0"]
    assert source.encoded(source.index().utterances[3]) == encoded_clip(3, 0.5)


def test_new_ids_differ_from_all_other_ids(tmp_path: Path) -> None:
    names = ["same", "same", "same:1.parquet:0:1", "same:1.parquet:0:1'", "same:1.parquet:0:1'"]
    write_parquet(tmp_path / "1.parquet", [simple(n, name=name) for n, name in enumerate(names)])
    config = ParquetConfig(path=str(tmp_path), id_column="name")
    ids = [utterance.id for utterance in SOURCES.build(config, SourceContext(tmp_path / "cache")).index().utterances]
    assert len(set(ids)) == 5
    assert [ids[0], *ids[2:4]] == [names[0], *names[2:4]], "the first clip with an id keeps it"


def test_row_groups_in_memory_are_limited() -> None:
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
        assert read(bounds, (1, 2, 1, 3, 1, 2)) == [1, 2, 3, 2], "3 evicts 2, because 1 was used more recently"
    assert read((10, 32), (1, 1, 2, 1)) == [1, 2, 1], "the newest row group is kept, whatever its size is"


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


def test_a_pickled_source_is_small(shards: Path, tmp_path: Path) -> None:
    source = build(shards, tmp_path)
    utterance = source.index().utterances[7]
    source.encoded(utterance)
    pickled = pickle.dumps(source)
    assert len(pickled) < 2_000
    assert pickle.loads(pickled).encoded(utterance) == loquacious_row(7)["wav"]["bytes"]


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
    Run(recipe, "parquet", tmp_path / "run", RecordingCallback()).complete()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 15
    dropped = [json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
    reasons = {drop["id"]: drop["reason"] for drop in dropped}
    assert reasons == {"bad/clip-100": "undecodable", "bad/clip-101": "text_missing"}
    (hypothesis,) = (tmp_path / "run" / "evaluation").rglob("*.jsonl")
    assert json.loads(hypothesis.read_text().splitlines()[0])["id"].endswith("clip-50")
    assert "data:audio/wav;base64," in (tmp_path / "run" / "report.html").read_text()


def test_column_names_can_be_configured() -> None:
    config = ParquetConfig(path="x", **COLUMNS, metadata_columns=["sex"])
    assert Columns.of(config) == Columns("wav", "text", None, "ID", "spk_id", ("sex",))
    assert ParquetConfig.model_validate_json(config.model_dump_json()) == config
    assert os.fspath(Path(config.path)) == "x"
