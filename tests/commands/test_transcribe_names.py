"""`tiny-audio transcribe`: names of recordings and of their transcripts, pipes, and files that are left out."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import soundfile

from tests.commands.transcribing import call
from tests.support.fast import fast_ones
from tiny_audio.commands.transcribe._inputs import read_inputs
from tiny_audio.frames import SAMPLE_RATE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems, file names must be valid text")
def test_a_file_name_can_have_invalid_bytes(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / os.fsdecode(b"a\xff.wav")
    shutil.copy(place / "audio" / "a.wav", odd)
    shutil.copy(place / "audio" / "b.flac", tmp_path / "b.flac")
    code, out, _ = call(capsys, place / "model", tmp_path, "--json")
    assert code == 0
    assert [Path(row["audio_filepath"]).name for row in json.loads(out)] == ["a\N{REPLACEMENT CHARACTER}.wav", "b.flac"]
    code, out, _ = call(capsys, place / "model", tmp_path, "--json", "--output-dir", tmp_path / "out")
    assert (code, out) == (0, f"2 written to {tmp_path / 'out'}\n")
    assert (tmp_path / "out" / os.fsdecode(b"a\xff.json")).is_file()


def test_files_with_the_same_name_need_different_output_files(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        shutil.copy(place / "audio" / "a.wav", tmp_path / folder / "a.wav")
    clips = (tmp_path / "x" / "a.wav", tmp_path / "y" / "a.wav")
    code, out, _ = call(capsys, place / "model", *clips)
    assert (code, len(out.splitlines())) == (0, 2)
    code, _, err = call(capsys, place / "model", *clips, "--output-dir", tmp_path / "out")
    assert code == 2
    assert all(str(clip) in err for clip in clips)


def test_recordings_that_differ_in_their_suffix_keep_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.flac", "a.wav"):
        samples, _ = soundfile.read(place / "audio" / "a.wav")
        soundfile.write(tmp_path / name, samples, SAMPLE_RATE)
    call(capsys, place / "model", tmp_path, "--output-dir", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".tiny-audio.jsonl",
        "a.flac.txt",
        "a.wav.txt",
    ]


def test_standard_input_can_be_transcribed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = place / "audio" / "a.wav"
    text = call(capsys, place / "model", clip)[1].split("\t")[1]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(clip.read_bytes())))
    assert call(capsys, place / "model", "-")[1] == f"-\t{text}"


@pytest.mark.parametrize("name", ["two\nlines and a\ttab and a carriage\rreturn.wav"])
def test_a_name_with_a_line_break_or_tab_stays_in_one_row(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shutil.copy(place / "audio" / "a.wav", tmp_path / name)
    shown = str(tmp_path / name).replace("\n", r"\n").replace("\t", r"\t").replace("\r", r"\r")
    (line,) = call(capsys, place / "model", tmp_path / name)[1].split("\n")[:-1]
    assert line.startswith(f"{shown}\t")
    _, *rows = call(capsys, place / "model", tmp_path / name, "--format", "tsv")[1].split("\n")[:-1]
    assert {row.split("\t")[0] for row in rows} == {shown}
    assert {len(row.split("\t")) for row in rows} == {4}
    (row,) = json.loads(call(capsys, place / "model", tmp_path / name, "--json")[1])
    assert row["audio_filepath"] == str(tmp_path / name)
    (tmp_path / name).write_bytes(b"no audio")
    assert len(call(capsys, place / "model", tmp_path / name)[2].splitlines()) == 1


def test_transcripts_are_not_listed_as_other_files(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.wav", "deep/b.wav"):
        shutil.copy(place / "audio" / "a.wav", tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    for output_dir in (tmp_path / "out", tmp_path / "deep" / ".." / "deep"):
        for _ in range(2):
            code, _, err = call(capsys, place / "model", tmp_path, "--output-dir", output_dir)
            assert (code, "1 other files" in err, "notes.txt" in err) == (0, True, True)
        assert len(list(output_dir.rglob("*.txt"))) == 2
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.wav", "a"), ("a.b.wav", "a.b"), (".wav", ".wav"), ("..wav", "..wav"), ("...wav", "...wav"), ("a..wav", "a.")],
)
def test_the_stem_of_a_transcript_is_a_name(tmp_path: Path, name: str, stem: str) -> None:
    (tmp_path / name).touch()
    with ExitStack() as stack:
        (found,) = read_inputs([tmp_path / name], stack).recordings
    assert found.stem == stem


@pytest.mark.parametrize("stem", fast_ones(["n" * 240, "é" * 120, "x" * 251], "é" * 120))
def test_a_name_can_have_the_maximum_length(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stem: str
) -> None:
    shutil.copy(place / "audio" / "a.wav", tmp_path / f"{stem}.wav")
    for _ in range(2):
        code, out, err = call(
            capsys, place / "model", tmp_path / f"{stem}.wav", "--json", "--output-dir", tmp_path / "out"
        )
        assert (code, err) == (0, "")
    assert out == f"0 written to {tmp_path / 'out'}, 1 already there\n"
    (written,) = (path for path in (tmp_path / "out").iterdir() if not path.name.startswith("."))
    assert json.loads(written.read_text(encoding="utf-8"))["audio_filepath"] == str(tmp_path / f"{stem}.wav")
    assert len(written.name.encode()) <= 255


def test_a_too_long_name_does_not_affect_other_files(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, place / "model", tmp_path / ("x" * 300), place / "audio" / "a.wav")
    assert (code, len(out.splitlines())) == (2, 1)
    assert "File name too long" in err


@pytest.mark.parametrize("name", fast_ones(["transcribe", ".tiny-audio", "model"], ".tiny-audio"))
def test_a_recording_can_have_the_name_of_a_tiny_audio_file(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shutil.copy(place / "audio" / "a.wav", tmp_path / f"{name}.wav")
    arguments = (place / "model", tmp_path / f"{name}.wav", "--json", "--output-dir", tmp_path / "out")
    assert call(capsys, *arguments)[1].startswith("1 written")
    assert call(capsys, *arguments)[1].startswith("0 written")
    assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["text"]


def test_a_recording_replaced_by_an_older_file_is_transcribed_again(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "a.wav"
    shutil.copy(place / "audio" / "a.wav", clip)
    arguments = (place / "model", clip, "--output-dir", tmp_path / "out")
    assert call(capsys, *arguments)[1].startswith("1 written")
    samples, rate = soundfile.read(clip)
    soundfile.write(clip, samples[: rate + rate // 2], rate)
    os.utime(clip, (1_000_000_000, 1_000_000_000))
    assert call(capsys, *arguments)[1].startswith("1 written")
    assert call(capsys, *arguments)[1].startswith("0 written")


def test_an_output_error_does_not_affect_other_files(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = tmp_path / "audio"
    shutil.copytree(place / "audio", audio)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").write_text("a file where a folder is needed")
    code, out, err = call(capsys, place / "model", audio, "--output-dir", tmp_path / "out")
    assert (code, out) == (2, f"2 written to {tmp_path / 'out'}\n")
    assert err.startswith(f"error: {audio / 'deep' / 'long.flac'}: its transcript cannot be written: ")
    assert (tmp_path / "out" / "b.txt").exists()
    shutil.copy(place / "audio" / "a.wav", tmp_path / "speech.txt")
    same = (place / "model", tmp_path / "speech.txt", "--output-dir", tmp_path, "--overwrite")
    code, _, err = call(capsys, *same)
    assert code == 2
    assert "the transcript would replace the recording" in err
    assert (tmp_path / "speech.txt").read_bytes() == (place / "audio" / "a.wav").read_bytes()


def test_other_files_in_a_folder_are_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.WAVE", "b.aifc", "c.rf64"):
        samples, rate = soundfile.read(place / "audio" / "a.wav")
        format_ = {"a.WAVE": "WAV", "b.aifc": "AIFF", "c.rf64": "RF64"}[name]
        soundfile.write(tmp_path / name, samples, rate, format=format_)
    for index in range(7):
        (tmp_path / f"note {index}.md").write_text("x")
    code, out, err = call(capsys, place / "model", tmp_path)
    assert (code, len(out.splitlines())) == (0, 3)
    assert re.search(r": 7 other files .*: note 0.md, note 1.md, .* and 2 more\n$", err)


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are files on Unix only")
def test_pipes_are_always_transcribed_again(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = place / "audio" / "a.wav"
    text = call(capsys, place / "model", clip)[1].split("\t")[1]
    os.mkfifo(tmp_path / "63")
    arguments = (place / "model", tmp_path / "63", "--output-dir", tmp_path / "out")
    for _ in range(2):  # a pipe can have different content every time
        with ThreadPoolExecutor(1) as pool:
            pool.submit((tmp_path / "63").write_bytes, clip.read_bytes())
            assert call(capsys, *arguments)[1] == f"1 written to {tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "63.txt").read_text() == text


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_file_names_match_in_any_unicode_form(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: Literal["NFC", "NFD"]
) -> None:
    other: Literal["NFC", "NFD"] = "NFD" if form == "NFC" else "NFC"
    folder = tmp_path / unicodedata.normalize(form, "été")
    folder.mkdir()
    shutil.copy(place / "audio" / "a.wav", folder / unicodedata.normalize(other, "réunion.wav"))
    given = tmp_path / unicodedata.normalize(other, "été") / unicodedata.normalize(form, "réunion.wav")
    code, out, _ = call(capsys, place / "model", given)
    assert (code, len(out.splitlines())) == (0, 1)
