"""Source ``manifest``: JSON lines files written by users."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from tests.support.paths import SHARED
from tiny_audio.audio.load import load_audio
from tiny_audio.config import UserError
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.sources import SOURCES, Index, Source, SourceContext
from tiny_audio.sources._manifest import Columns, read_manifest
from tiny_audio.sources.manifest import ManifestConfig

AN4 = SHARED / "speech" / "an4" / "train.jsonl"


def build(config: ManifestConfig, folder: Path) -> Source:
    return SOURCES.build(config, SourceContext(cache_dir=folder / "cache"))


def write_clip(path: Path, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * SAMPLE_RATE), np.float32), SAMPLE_RATE)


def write_manifest(folder: Path, *rows: object) -> Path:
    """Write a manifest. Rows that are not strings are converted to JSON."""
    path = folder / "manifest.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"audio_filepath": "a.flac", "duration": 1.0, "text": "yes"} | changes


def indexed(folder: Path, *rows: object, **config: str) -> Index:
    return build(ManifestConfig(path=str(write_manifest(folder, *rows)), **config), folder).index()


def test_a_manifest_is_read_without_decoding(tmp_path: Path) -> None:
    write_clip(tmp_path / "clips" / "a.flac")
    (tmp_path / "b.flac").write_text("this is no audio, but only decoding would show it")
    index = indexed(
        tmp_path,
        row(
            audio_filepath="clips/a.flac", text="  Hello you ", speaker="ann", age=31, native=True, notes=None, offset=0
        ),
        "",
        row(audio_filepath=str(tmp_path / "b.flac"), duration=2),
    )
    first, second = index.utterances
    assert (first.id, first.duration_s, first.text) == ("clips/a.flac", 1.0, "Hello you")
    assert first.metadata == {"speaker": "ann", "age": "31", "native": "true"}
    assert first.audio_file() == tmp_path / "clips" / "a.flac"
    assert (second.id, second.duration_s) == (str(tmp_path / "b.flac"), 2.0)
    assert index.dropped == ()


def test_the_source_can_be_pickled_for_loader_processes(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.flac")
    source = build(ManifestConfig(path=str(write_manifest(tmp_path, row()))), tmp_path)
    (utterance,) = source.index().utterances
    audio = pickle.loads(pickle.dumps(source)).encoded(utterance)
    assert load_audio(audio, max_duration_s=1).shape == (SAMPLE_RATE,)


def test_a_missing_duration_is_read_from_the_header(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.flac", 2.5)
    (tmp_path / "bad.flac").write_text("no audio")
    index = indexed(
        tmp_path, {"audio_filepath": "a.flac", "text": "yes"}, row(audio_filepath="bad.flac", duration=None)
    )
    assert index.utterances[0].duration_s == 2.5
    assert index.dropped[0].reason == "undecodable"


def test_an_empty_text_means_a_clip_without_speech(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.flac")
    index = indexed(tmp_path, row(text=""), row(text="no"), row(text=" \t"))
    assert [one.text for one in index.utterances] == ["", "no", ""]
    assert index.without_text().tolist() == [True, False, True]
    assert not index.dropped


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_file_names_match_in_any_unicode_form(tmp_path: Path, form: Literal["NFC", "NFD"]) -> None:
    other: Literal["NFC", "NFD"] = "NFD" if form == "NFC" else "NFC"
    folder = tmp_path / unicodedata.normalize(form, "Français")
    folder.mkdir()
    for name in ("réunion.flac", "Ängström.flac", "가나.flac"):
        write_clip(folder / unicodedata.normalize(other, name))
    listed = [f"Français/{name}" for name in ("réunion.flac", "Ängström.flac", "가나.flac", "none é.flac")]
    rows = [row(audio_filepath=unicodedata.normalize(form, name)) for name in listed]
    index = indexed(tmp_path, *rows)
    assert [one.id for one in index.utterances] == [unicodedata.normalize(form, name) for name in listed[:3]]
    assert all(one.audio_file().exists() for one in index.utterances)
    assert [drop.reason for drop in index.dropped] == ["audio_missing"]


def test_both_unicode_forms_of_a_name_are_two_files(tmp_path: Path) -> None:
    names = [unicodedata.normalize("NFC", "é.flac"), unicodedata.normalize("NFD", "é.flac")]
    for seconds, name in enumerate(names, start=1):
        write_clip(tmp_path / name, seconds=seconds)
    index = indexed(tmp_path, *({"audio_filepath": name, "text": "yes"} for name in names))
    assert [one.duration_s for one in index.utterances] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        ("{not json", "not_json", "not JSON (Expecting property name enclosed in double quotes: "),
        ("[" * 100_000, "not_json", "not JSON"),
        ('["a.flac", 1.0, "yes"]', "not_an_object", "not a JSON object: ['a.flac', 1.0, 'yes']"),
        ("3", "not_an_object", "not a JSON object: 3"),
        (row(text=None), "text_missing", "'text' must be a string, not None"),
        (row(text=["yes"]), "text_missing", "not ['yes']"),
        (
            {"audio_filepath": "a.flac", "duration": 1},
            "text_missing",
            "no 'text'; the row has 'audio_filepath', 'duration'",
        ),
        (row(text="\ud800"), "bad_unicode", "contains an incomplete character"),
        (row(title="\ud83d"), "bad_unicode", "contains an incomplete character"),
        (row(audio_filepath="none.flac"), "audio_missing", "there is no file "),
        (row(audio_filepath="nowhere/a.flac"), "audio_missing", "there is no file "),
        (row(audio_filepath="a\0.flac"), "audio_missing", "there is no file "),
        (row(audio_filepath="."), "audio_missing", "there is no file "),
        (row(audio_filepath=3), "audio_missing", "'audio_filepath' must be the path of an audio file, not 3"),
        (row(audio_filepath=""), "audio_missing", "must be the path of an audio file, not ''"),
        (row(duration=0), "bad_duration", "'duration' must be a finite number of seconds above 0, not 0"),
        (row(duration=-1.5), "bad_duration", "not -1.5"),
        (row(duration=float("nan")), "bad_duration", "not nan"),
        (row(duration=float("inf")), "bad_duration", "not inf"),
        (row(duration=10**400), "bad_duration", "not 1000000"),
        (row(duration="1.0"), "bad_duration", "'duration' must be seconds, not '1.0'"),
        (row(duration=True), "bad_duration", "'duration' must be seconds, not True"),
        (row(offset=3.5), "offset", "parts of files are not supported (offset 3.5): cut the audio into files"),
    ],
)
def test_bad_rows_are_dropped_with_their_line(tmp_path: Path, bad: object, reason: str, detail: str) -> None:
    write_clip(tmp_path / "a.flac")
    index = indexed(tmp_path, row(), bad, row(text="no"))
    assert [utterance.text for utterance in index.utterances] == ["yes", "no"]
    (dropped,) = index.dropped
    assert (dropped.id, dropped.reason) == ("manifest.jsonl:2", reason)
    assert dropped.detail.startswith(f"{tmp_path}/manifest.jsonl, line 2: ")
    assert detail in dropped.detail
    assert len(dropped.detail) < 400


def test_invalid_bytes_are_dropped_and_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.flac")
    path = tmp_path / "manifest.jsonl"
    good = json.dumps(row()).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\xff\xfe\n" + good)
    index = read_manifest(path, Columns())
    assert len(index.utterances) == 2
    assert [(dropped.id, dropped.reason) for dropped in index.dropped] == [("manifest.jsonl:2", "not_json")]


def test_a_long_line_counts_as_one_line(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.flac")
    path = write_manifest(tmp_path, row(), row(text="a" * 2_500_000), row(text=7))
    index = build(ManifestConfig(path=str(path)), tmp_path).index()
    assert len(index.utterances) == 1
    assert [(drop.id, drop.reason) for drop in index.dropped] == [
        (f"{path.name}:2", "not_json"),
        (f"{path.name}:3", "text_missing"),
    ]


def test_ids_are_unique(tmp_path: Path) -> None:
    for name in ("a.flac", "a.flac:3"):
        write_clip(tmp_path / "clip.flac")
        shutil.copy(tmp_path / "clip.flac", tmp_path / name)
    index = indexed(tmp_path, row(audio_filepath="a.flac:3"), row(), row(text="no"), row(text="no"))
    assert [utterance.id for utterance in index.utterances] == ["a.flac:3", "a.flac", "a.flac:3'", "a.flac:4"]


def test_the_fingerprint_depends_on_the_data_but_not_on_its_location(tmp_path: Path) -> None:
    def fingerprint(place: str, *rows: object) -> str:
        write_clip(tmp_path / place / "a.flac")
        write_clip(tmp_path / place / "b.flac")
        return indexed(tmp_path / place, *rows).fingerprint

    rows = (row(), row(audio_filepath="b.flac", text="no"))
    first = fingerprint("one", *rows)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert fingerprint("two", *rows) == first
    assert fingerprint("two", row(speaker="ann"), "junk", rows[1]) == first
    others = {
        fingerprint("two", rows[0]),
        fingerprint("two", *reversed(rows)),
        fingerprint("two", row(text="yeah"), rows[1]),
        fingerprint("two", row(duration=1.5), rows[1]),
    }
    assert first not in others
    assert len(others) == 4


def test_column_names_can_be_configured(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.flac")
    index = indexed(
        tmp_path,
        {"wav": "a.flac", "len": 1.0, "transcript": "yes", "text": "raw"},
        audio_column="wav",
        duration_column="len",
        text_column="transcript",
    )
    assert index.utterances[0].text == "yes"
    assert index.utterances[0].metadata == {"text": "raw"}
    with pytest.raises(
        ValidationError, match="must name three different columns, not 'audio_filepath', 'text' and 'te"
    ):
        ManifestConfig(path="x", duration_column="text")
    with pytest.raises(ValidationError, match="at least 1 character"):
        ManifestConfig(path="")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_clip(tmp_path / "a.flac")
    write_manifest(tmp_path, row(audio_filepath="~/a.flac"))
    (utterance,) = build(ManifestConfig(path="~/manifest.jsonl"), tmp_path).index().utterances
    assert (utterance.id, utterance.audio_file()) == ("~/a.flac", tmp_path / "a.flac")


def test_files_that_are_not_manifests_are_rejected(tmp_path: Path) -> None:
    def assert_rejected(path: Path, *words: str) -> None:
        with pytest.raises(UserError) as caught:
            build(ManifestConfig(path=str(path)), tmp_path).index()
        for word in (*words, str(path), 'expected one JSON object per line, such as {"audio_filepath": "a.flac"'):
            assert word in str(caught.value)
        assert len(str(caught.value)) < 1_000

    assert_rejected(tmp_path / "none.jsonl", "does not exist")
    assert_rejected(tmp_path, "is a folder")
    assert_rejected(Path("/dev/zero"), "is not a regular file")
    path = tmp_path / "m.jsonl"
    path.write_text("")
    assert_rejected(path, "is empty")
    path.write_text(" \n\n")
    assert_rejected(path, "is empty")
    path.write_bytes(np.random.default_rng(0).bytes(200_000))
    assert_rejected(path, "is not a manifest: none of its first 100 lines is a JSON object")
    path.write_bytes(bytes(30_000_000))
    assert_rejected(path, "no row of the manifest", "(1 read)", "not_json", "a line of 1,000,000 characters or more")
    path.write_text("audio,text\na.flac,yes\n")
    assert_rejected(path, "no row of the manifest", "(2 read); the first problem: not_json", "line 1")
    path.write_text(json.dumps(row()) + "\n")
    assert_rejected(path, "the first problem: audio_missing", "there is no file")


@pytest.mark.skipif(not AN4.exists(), reason="no shared recordings")
def test_an4() -> None:
    index = read_manifest(AN4, Columns())
    assert (len(index.utterances), len(index.dropped)) == (844, 0)
    assert len({utterance.metadata["speaker"] for utterance in index.utterances}) == 66
    assert sum(utterance.duration_s for utterance in index.utterances) / 60 == pytest.approx(37.8, abs=0.1)
    for utterance in index.utterances[::100]:
        waveform = load_audio(utterance.audio_file(), max_duration_s=30)
        assert len(waveform) / SAMPLE_RATE == pytest.approx(utterance.duration_s, abs=0.06)
