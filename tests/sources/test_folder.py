"""Source ``folder``: audio files with a table of transcripts."""

from __future__ import annotations

import json
import os
import pickle
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.sources.clip_files import build, dropped, write, write_clip
from tiny_audio.audio.load import load_audio
from tiny_audio.config import UserError
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.runtime.files import files_below
from tiny_audio.sources import Source, _durations


def folder(path: Path, **fields: Any) -> Source:
    return build("folder", path, **fields)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_files_are_read_with_their_transcripts(place: Path) -> None:
    write_clip(place / "a.wav", 0.5)
    write_clip(place / "deep" / "er" / "b.FLAC", 0.75)
    write_clip(place / "deep" / "c.mp3", 1.25)
    write(
        place / "metadata.csv",
        "\ufefffile_name,speaker,transcription,age",
        "a.wav,ann,  Hello you ,31",
        'deep/er/b.FLAC,,"Yes, ""you""",',
    )
    write(place / "deep" / "metadata.csv", "file_name,transcription", "./c.mp3,Grüße")
    source = folder(place)
    index = source.index()
    assert [(u.id, u.text) for u in index.utterances] == [
        ("deep/c.mp3", "Grüße"),
        ("a.wav", "Hello you"),
        ("deep/er/b.FLAC", 'Yes, "you"'),
    ]
    assert [u.duration_s for u in index.utterances] == pytest.approx([1.25, 0.5, 0.75], abs=0.05)
    assert [dict(u.metadata) for u in index.utterances] == [
        {"file_name": "deep/c.mp3"},
        {"file_name": "a.wav", "speaker": "ann", "age": "31"},
        {"file_name": "deep/er/b.FLAC"},
    ]
    assert (index.dropped, index.groups) == ((), None)
    for utterance in index.utterances:
        audio = pickle.loads(pickle.dumps(source)).encoded(pickle.loads(pickle.dumps(utterance)))
        assert len(load_audio(audio, max_duration_s=2)) / SAMPLE_RATE == pytest.approx(utterance.duration_s, abs=0.05)


def test_json_lines(place: Path) -> None:
    write_clip(place / "a.wav")
    rows = [{"file_name": "a.wav", "text": "yes", "native": True, "tags": ["x"]}, {"file_name": "a.wav", "text": "no"}]
    write(place / "metadata.jsonl", json.dumps(rows[0]), "", json.dumps(rows[1] | {"later": 1}))
    first, second = folder(place).index().utterances
    assert first.metadata == {"file_name": "a.wav", "native": "true", "tags": '["x"]'}
    assert second.metadata == {"file_name": "a.wav", "later": "1"}
    assert (first.id, second.id) == ("a.wav", "a.wav:metadata.jsonl:3"), "ids are unique"


@pytest.mark.parametrize(
    ("row", "drop", "reason", "detail"),
    [
        (
            "none.wav,yes",
            "metadata.csv:3",
            "audio_missing",
            "there is no audio file none.wav; 'file_name' is 'none.wav'",
        ),
        ("../a.wav,yes", "metadata.csv:3", "audio_missing", "there is no audio file ../a.wav"),
        (",yes", "metadata.csv:3", "audio_missing", "'file_name' must be the path of an audio file, not None"),
        ("notes.txt,yes", "metadata.csv:3", "audio_missing", "its suffix is not that of an audio file"),
        (
            "b.wav,yes, you",
            "metadata.csv:3",
            "bad_row",
            "3 cells, but the header has 2",
        ),
        ("b.wav", "metadata.csv:3", "bad_row", "1 cells, but the header has 2"),
        (b"b.wav,\xff", "metadata.csv:3", "bad_unicode", "not UTF-8"),
        ("text.wav,yes", "text.wav", "undecodable", "not an audio file that can be decoded"),
        ("empty.wav,yes", "empty.wav", "empty", "the file is empty"),
    ],
)
def test_bad_rows_are_dropped_with_their_line(
    place: Path, row: str | bytes, drop: str, reason: str, detail: str
) -> None:
    for name in ("a.wav", "b.wav"):
        write_clip(place / name)
    write(place / "text.wav", "no audio")
    (place / "empty.wav").write_bytes(b"")
    write(place / "metadata.csv", "file_name,transcription", "a.wav,yes", row, "a.wav,no")
    index = folder(place).index()
    assert [utterance.text for utterance in index.utterances] == ["yes", "no"]
    (found,) = (found for found in index.dropped if found.id == drop)
    assert found.reason == reason
    assert found.detail.startswith("metadata.csv, line 3: ")
    assert detail in found.detail


@pytest.mark.parametrize("cell", ["", "  "])
def test_an_empty_text_means_a_clip_without_speech(place: Path, cell: str) -> None:
    for name in ("a.wav", "b.wav"):
        write_clip(place / name)
    write(place / "metadata.csv", "file_name,transcription", "a.wav,yes", f"b.wav,{cell}")
    index = folder(place).index()
    assert [one.text for one in index.utterances] == ["yes", ""]
    assert index.without_text().tolist() == [False, True]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_file_names_match_in_any_unicode_form(place: Path, form: Literal["NFC", "NFD"]) -> None:
    other: Literal["NFC", "NFD"] = "NFD" if form == "NFC" else "NFC"
    write_clip(place / unicodedata.normalize(other, "réunion.wav"))
    write(place / "metadata.csv", "file_name,transcription", unicodedata.normalize(form, "réunion.wav,oui"))
    index = folder(place).index()
    assert [one.text for one in index.utterances] == ["oui"]
    assert index.utterances[0].audio_file().exists()
    assert not index.dropped


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("{not json", "not_json", "not JSON: Expecting property name"),
        ("[" * 100_000, "not_json", "not JSON"),
        ("[1]", "not_an_object", "not a JSON object, but [1]"),
        (b'{"file_name": "a.wav", "text": "\xff"}', "bad_unicode", "not UTF-8"),
        ('{"file_name": "a.wav", "text": "\\ud800"}', "bad_unicode", "contains an incomplete character"),
        ('{"file_name": "a.wav", "text": 3}', "text_missing", "'text' must be a string, not 3"),
        ('{"file_name": ["a.wav"], "text": "yes"}', "audio_missing", "not ['a.wav']"),
    ],
)
def test_bad_json_lines_are_dropped(place: Path, line: str | bytes, reason: str, detail: str) -> None:
    write_clip(place / "a.wav")
    write(place / "metadata.jsonl", '{"file_name": "a.wav", "text": "yes"}', line)
    (drop,) = folder(place).index().dropped
    assert drop.reason == reason
    assert detail in drop.detail


def test_files_without_a_row_are_listed_as_dropped(place: Path) -> None:
    for name in ("a.wav", "b.wav", "deep/c.ogg", ".hidden.wav", ".trash/d.wav"):
        write_clip(place / name)
    write(place / "notes.txt", "no audio")
    write(place / "e.m4a", "named like audio")
    write(place / "metadata.csv", "file_name,text", "a.wav,yes")
    index = folder(place).index()
    assert dropped(index) == dict.fromkeys(("b.wav", "deep/c.ogg", "e.m4a"), "row_missing")
    assert index.dropped[0].detail == "b.wav: this file is not listed in any row of metadata.csv"


@pytest.mark.skipif(os.name == "nt", reason="on Windows, all names are Unicode")
def test_files_whose_names_are_not_utf8_are_dropped(place: Path) -> None:
    write_clip(place / "a.wav")
    write_clip(place / "b.wav")
    (place / "b.wav").rename(place / os.fsdecode(b"caf\xe9.wav"))
    write(place / "metadata.csv", "file_name,text", "a.wav,yes")
    for _ in range(2):  # the second time, the index comes from the cache
        index = folder(place).index()
        assert [one.id for one in index.utterances] == ["a.wav"]
        assert dropped(index) == {"caf\\xe9.wav": "bad_unicode"}


def test_the_text_column_is_found_or_configured(place: Path) -> None:
    write_clip(place / "a.wav")
    table = place / "metadata.csv"
    write(table, "file_name,text,transcription", "a.wav,one,two")
    with pytest.raises(UserError, match=r"has two columns, transcription and text; set text_column .*; its"):
        folder(place).index()
    index = folder(place, text_column="text").index()
    assert (index.utterances[0].text, index.utterances[0].metadata["transcription"]) == ("one", "two")
    write(table, "file_name,sentence", "a.wav,three")
    with pytest.raises(UserError, match=r"no column transcription or text; .* columns: file_name, sentence$"):
        folder(place).index()
    assert folder(place, text_column="sentence").index().utterances[0].text == "three"
    with pytest.raises(
        UserError, match=r"metadata.csv has no column 'said' \(text_column\); its columns: file_name, s"
    ):
        folder(place, text_column="said").index()


def test_other_folders_are_rejected(place: Path) -> None:
    expected = "a folder needs a metadata.csv or metadata.jsonl with the columns file_name"

    def assert_rejected(message: str, also: str = expected) -> None:
        with pytest.raises(UserError) as caught:
            folder(place).index()
        assert message in str(caught.value)
        assert also in str(caught.value)

    assert_rejected(f"the folder {place} cannot be read: No such file or directory; ")
    write_clip(place / "a.wav")
    assert_rejected(f"there is no table in {place}; ")
    write(place / "metadata.csv", "file,text", "a.wav,yes")
    assert_rejected(f"{place}/metadata.csv has no column 'file_name'; its columns: file, text; ")
    write(place / "metadata.jsonl", '{"file_name": "a.wav", "text": "yes"}')
    assert_rejected(f"{place} holds metadata.csv and metadata.jsonl; keep one of them", "")
    (place / "metadata.jsonl").unlink()
    (place / "metadata.csv").write_bytes(b"")
    assert_rejected(f"{place}/metadata.csv is empty; its first line must name its columns", "")
    write(place / "metadata.csv", "file_name,text,text", "a.wav,yes,yes")
    assert_rejected("metadata.csv has several columns with the same name; its columns: file_name, text, text; ", "")
    write(place / "metadata.csv", b"file_name,text,Gr\xf6\xdfe", "a.wav,yes,x")
    assert_rejected(f"{place}/metadata.csv, line 1: the column names are not UTF-8; save the file as UTF-8", "")
    write(place / "metadata.csv", "file_name,text", 'a.wav,"yes', "b.wav,no")
    assert_rejected("metadata.csv, line 3: unexpected end of data; quote cells that contain commas or quotes", "")
    write(place / "metadata.csv", "file_name,text", "b.wav,yes")
    assert_rejected(
        f"no row of {place} can be used; the first problem of 2: metadata.csv, line 2: there is no audio file b.wav", ""
    )
    (place / "metadata.csv").unlink()
    (place / "metadata.csv").mkdir()
    assert_rejected(f"there is no table in {place}; ")


@pytest.mark.parametrize(("table", "rows"), [
    ("metadata.csv", "file_name,text\na.wav,yes\n"),
    ("metadata.jsonl", '{"file_name": "a.wav", "text": "yes"}\n'),
])  # fmt: skip
def test_utf_16_that_is_cut_off_is_an_error(place: Path, table: str, rows: str) -> None:
    write_clip(place / "a.wav")
    (place / table).write_bytes(rows.encode("utf-16")[:-1])
    with pytest.raises(UserError, match=rf"/{table} cannot be read: .*truncated data"):
        folder(place).index()


def test_the_fingerprint_depends_on_the_data_but_not_on_its_location(place: Path, tmp_path: Path) -> None:
    def fingerprint(name: str, text: str = "yes", seconds: float = 1.0) -> str:
        write_clip(tmp_path / name / "a.wav", seconds)
        write(tmp_path / name / "metadata.csv", "file_name,text", f"a.wav,{text}")
        return folder(tmp_path / name).index().fingerprint

    first = fingerprint("one")
    assert fingerprint("two") == first
    assert fingerprint("two", text="no") != first
    assert fingerprint("two", seconds=2.0) != first
    assert fingerprint("two") == first


def test_headers_are_read_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = _durations.audio_duration

    def counted(path: Path, *, name: str) -> float:
        opened.append(name)
        return read(path, name=name)

    monkeypatch.setattr(_durations, "audio_duration", counted)
    for name in ("a.wav", "b.wav", "c.wav"):
        write_clip(place / name)
    write(place / "d.wav", "no audio")
    rows = [f"{name}.wav,yes" for name in "abcd"]
    write(place / "metadata.csv", "file_name,text", *rows)
    index = folder(place).index()
    assert sorted(opened) == ["a.wav", "b.wav", "c.wav", "d.wav"]
    assert folder(place).index() == index
    write(place / "metadata.csv", "file_name,text", *rows[:2], "c.wav,no")
    os.utime(write_clip(place / "b.wav", 2.0), ns=(0, 0))
    again = folder(place).index()
    assert opened[4:] == ["b.wav"], (
        "the header is read again after its file changes, but not after its transcript changes"
    )
    assert [utterance.duration_s for utterance in again.utterances] == [1.0, 2.0, 1.0]
    (kept,) = (place.parent / "cache" / "durations").iterdir()
    kept.write_bytes(kept.read_bytes()[:40])
    write(place / "metadata.csv", "file_name,text", *rows[:1])
    folder(place).index()
    assert len(opened) == 9, "a damaged cache is written again"


def test_a_file_that_could_not_be_opened_is_tried_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.wav", "b.wav"):
        write_clip(place / name)
    write(place / "metadata.csv", "file_name,text", "a.wav,yes", "b.wav,no")

    def with_one_unreadable_file(folder: Path, *arguments: Any) -> dict[str, _durations.Header]:
        (place / "b.wav").rename(place.parent / "aside.wav")
        (place / "b.wav").symlink_to("b.wav")  # a link to itself cannot be opened
        try:
            return _durations.read_headers(folder, *arguments)
        finally:
            (place.parent / "aside.wav").replace(place / "b.wav")

    with monkeypatch.context() as patch:
        patch.setattr("tiny_audio.sources.folder.read_headers", with_one_unreadable_file)
        index = folder(place).index()
    assert [(drop.id, drop.reason) for drop in index.dropped] == [("b.wav", "unreadable")]
    assert [utterance.id for utterance in index.utterances] == ["a.wav"]
    again = folder(place).index()
    assert again.dropped == ()
    assert [(utterance.id, utterance.text) for utterance in again.utterances] == [("a.wav", "yes"), ("b.wav", "no")]
    assert folder(place).index() == again


def test_an_unwritable_cache_is_an_error(place: Path, tmp_path: Path) -> None:
    write_clip(place / "a.wav")
    write(place / "metadata.csv", "file_name,text", "a.wav,yes")
    write(tmp_path / "cache" / "durations", "a file")
    with pytest.raises(UserError, match=r"the cache folder .*/cache/durations cannot be written: "):
        folder(place).index()


def test_links_are_followed_and_cycles_end(place: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "elsewhere" / "a.wav")
    place.mkdir()
    (place / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(place)
    assert list(files_below(place, lambda name: True)) == ["link/a.wav"]
    (place / "itself").symlink_to("itself")
    assert list(files_below(place, lambda name: True)) == ["link/a.wav"]


def test_a_folder_with_several_links_is_listed_once(place: Path) -> None:
    for number in range(9):  # the file system may list folders in any order, so use several
        write_clip(place / f"{number}" / "a.wav")
        (place / f"link-{number}").symlink_to(f"{number}")
    write_clip(place / "a.wav")
    (place / "0" / "all").symlink_to(place)
    assert list(files_below(place, lambda name: True)) == [*(f"{number}/a.wav" for number in range(9)), "a.wav"]
    write(place / "metadata.csv", "file_name,text", "a.wav,yes")
    assert [utterance.id for utterance in folder(place).index().utterances] == ["a.wav"]
