"""`tiny-audio transcribe`: formats, folders, standard input, finished transcripts and unreadable files."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import termios
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.commands.conftest import NUM_BURSTS
from tests.commands.transcribing import CUT, call
from tests.support.fast import fast_ones
from tests.support.processes import begin, finish
from tiny_audio.audio.load import audio_blocks, load_audio
from tiny_audio.cli import main
from tiny_audio.commands.transcribe._formats import JsonArray
from tiny_audio.commands.transcribe._inputs import Recording
from tiny_audio.commands.transcribe._screen import line
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.transcriber import Transcriber

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.usefixtures("pauses_by_loudness")
def test_every_format_has_the_same_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = place / "audio" / "deep" / "long.flac"
    (row,) = json.loads(call(capsys, place / "model", long, "--format", "json", "--words")[1])
    assert len(row["segments"]) == NUM_BURSTS
    assert row["text"]
    words = [word for segment in row["segments"] for word in segment["words"]]
    assert " ".join(word["text"] for word in words) == row["text"]
    assert all(0 <= word["confidence"] <= 1 for word in words if word["confidence"] is not None)
    assert call(capsys, place / "model", long)[1] == f"{long}\t{row['text']}\n"
    head, *lines = call(capsys, place / "model", long, "--format", "tsv", "--words")[1].splitlines()
    assert head == "audio_filepath\tstart_s\tend_s\ttext"
    assert [line.split("\t")[3] for line in lines] == row["text"].split()
    code, out, err = call(capsys, place / "model", long, "--format", "vtt")
    assert (code, err) == (0, "")
    assert out.startswith("WEBVTT\n\n00:00:0")


def test_a_truncated_text_is_reported(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = place / "audio" / "a.wav"
    (row,) = json.loads(call(capsys, place / "model", clip, "--json")[1])
    assert row["truncated"]
    assert main(["transcribe", str(place / "model"), str(clip), "--no-filters"]) == 0
    assert capsys.readouterr().err == f"{clip}{CUT}\n"


@pytest.mark.usefixtures("pauses_by_loudness")
def test_parts_without_text_are_reported(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both recordings last 40 s. The replaced filters accept only the first second of ``part``. ``none`` is silent."""
    hum = np.sin(np.arange(4 * SAMPLE_RATE))
    sounds = {
        "part": np.concatenate([hum[:SAMPLE_RATE], np.zeros(35 * SAMPLE_RATE), hum]),
        "none": np.zeros(40 * 16000),
    }
    for name, sound in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * sound, SAMPLE_RATE)
    monkeypatch.setattr(
        "tiny_audio.inference.transcriber.non_speech_reason", lambda wave: "tones" if len(wave) > 3e4 else None
    )
    monkeypatch.setattr("tiny_audio.inference.transcriber.filter_text", lambda transcript, *_: (transcript.text, None))
    files = [tmp_path / "part.wav", tmp_path / "none.wav"]
    assert main(["transcribe", str(place / "model"), *map(str, files)]) == 0
    none, part = [line for line in capsys.readouterr().err.splitlines() if CUT not in line]
    assert re.fullmatch(rf"{files[0]}: parts without text: 4\.\d s: .*tones.*; check the audio, .*--no-filters", part)
    assert re.fullmatch(rf"{files[1]}: no text: .*; check the audio, or add --no-filters", none)
    rows = json.loads(call(capsys, place / "model", *files, "--json")[1])
    for row in rows:
        spans = [(segment["start_s"], segment["end_s"]) for segment in row["segments"]]
        assert (spans[0][0], spans[-1][1]) == (0.0, 40.0)
        assert all(after[0] <= before[1] for before, after in pairwise(spans))


def test_a_terminal_shows_partial_texts(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long, clip = place / "audio" / "deep" / "long.flac", place / "audio" / "a.wav"
    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", 40, 400, 0, 0)  # rows and columns, wide enough that no line is wrapped
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    with begin("transcribe", place / "model", long, clip, "--no-filters", stdout=theirs) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b"")).decode()
        assert process.stderr is not None
        assert set(process.stderr.read().splitlines()) <= {f"{name}{CUT}" for name in (long, clip)}
    assert process.returncode == 0
    os.close(ours)
    rows = [
        (row["audio_filepath"], segment["text"])
        for row in json.loads(call(capsys, place / "model", long, clip, "--json")[1])
        for segment in row["segments"]
        if segment["text"]
    ]
    lines = [line.split("\t") for line in re.split(r"\x1b\[[?0-9;]*[a-zA-Z]|[\r\n]+", shown) if "\t" in line]
    assert [(name, text) for name, _, text in lines] == rows
    # At the start of the output, the line of the first text is shown repeatedly, with growing partial texts.
    name, clock, whole = lines[0]
    assert re.match(rf"(\x1b\[[?0-9;]*[a-zA-Z])*{re.escape(name)} +{clock} ", shown)
    growing = re.findall(rf"{re.escape(name)} +{clock} +([^\r]*)\r", shown)
    assert len(set(growing)) > 3
    assert all(whole.startswith(text) for text in growing)
    assert growing[-1] == whole


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # raised on Linux when the other end is closed
        return b""


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, "0:00:00.0"), (59.96, "0:01:00.0"), (3599.97, "1:00:00.0"), (36_061.04, "10:01:01.0")]
)
def test_times_are_rounded_as_a_whole(seconds: float, shown: str) -> None:
    assert line(Recording(Path("a.wav"), "a.wav", "a"), seconds, "six") == f"a.wav\t{shown}\tsix"


def test_transcription_of_a_folder_continues(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = tmp_path / "audio"
    shutil.copytree(place / "audio", audio)
    (audio / "bad.wav").write_text("no audio")
    arguments = (place / "model", audio, "--format", "srt", "--output-dir", tmp_path / "out")
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == f"3 written to {tmp_path / 'out'}\n"
    assert err.startswith(f"error: {audio / 'bad.wav'}: not an audio file that can be decoded")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    names = {str(path.relative_to(tmp_path / "out")) for path in written}
    assert names == {"a.srt", "b.srt", "deep/long.srt", ".tiny-audio.jsonl"}
    (audio / "bad.wav").unlink()
    (tmp_path / "out" / "a.srt").unlink()
    code, out, err = call(capsys, *arguments)
    assert (code, out, err) == (0, f"1 written to {tmp_path / 'out'}, 2 already there\n", "")
    assert (tmp_path / "out" / "b.srt").stat().st_mtime_ns == written[tmp_path / "out" / "b.srt"]
    os.utime(audio / "b.flac")  # as if the recording had changed
    assert call(capsys, *arguments)[1].startswith("1 written")
    assert call(capsys, *arguments, "--overwrite")[1].startswith("3 written")


def test_other_files_are_not_overwritten(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(place / "audio" / "a.wav", tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("what a person wrote")
    arguments = (place / "model", tmp_path / "a.wav", "--output-dir", tmp_path)
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert str(tmp_path / "a.txt") in err
    assert "--overwrite" in err
    assert (tmp_path / "a.txt").read_text() == "what a person wrote"
    assert call(capsys, *arguments, "--overwrite")[0] == 0
    assert (tmp_path / "a.txt").read_text() != "what a person wrote"


def test_a_folder_of_transcripts_keeps_files_of_another_origin(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("x", "y"):
        shutil.copytree(place / "audio", tmp_path / folder)
    output = ("--output-dir", tmp_path / "out")
    assert call(capsys, place / "model", tmp_path / "x" / "a.wav", *output)[0] == 0
    # A recording in another folder, but with the same name, size and time, was probably moved. Its transcript is kept.
    assert call(capsys, place / "model", tmp_path / "y" / "a.wav", *output)[1].endswith("1 already there\n")
    os.utime(tmp_path / "y" / "a.wav")
    code, _, err = call(capsys, place / "model", tmp_path / "y" / "a.wav", *output)
    assert code == 2
    assert all(part in err for part in (str(tmp_path / "out" / "a.txt"), str(tmp_path / "x" / "a.wav"), "--overwrite"))
    (tmp_path / "out" / "b.txt").write_text("what a person wrote")
    code, _, err = call(capsys, place / "model", tmp_path / "x" / "a.wav", tmp_path / "x" / "b.flac", *output)
    assert code == 2
    assert str(tmp_path / "out" / "b.txt") in err
    assert (tmp_path / "out" / "b.txt").read_text() == "what a person wrote"
    # Logs of older versions do not contain the paths of recordings. Then y/a.wav counts as a newer version of x/a.wav.
    log = tmp_path / "out" / ".tiny-audio.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(line for line in lines if b'"path"' not in line))
    assert call(capsys, place / "model", tmp_path / "x" / "a.wav", *output)[1].endswith("1 already there\n")
    assert call(capsys, place / "model", tmp_path / "y" / "a.wav", *output)[1].startswith("1 written")


def test_transcripts_of_another_model_or_options_are_not_continued(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, output = place / "audio" / "a.wav", ("--output-dir", tmp_path)
    assert call(capsys, place / "model", clip, *output)[0] == 0
    refused = "by another model or with other options"
    code, _, err = call(capsys, place / "headless", clip, *output)
    assert code == 2
    assert refused in err
    # With `main`, the filters are on. `call` would add --no-filters.
    assert main(["transcribe", str(place / "model"), str(clip), "--output-dir", str(tmp_path)]) == 2
    assert refused in capsys.readouterr().err
    code, _, err = call(capsys, place / "model", clip, *output, "--no-search")
    assert code == 2
    assert refused in err
    # Transcripts in another format, or of other recordings, can be added.
    assert call(capsys, place / "headless", clip, *output, "--format", "json")[0] == 0
    assert call(capsys, place / "model", clip, place / "audio" / "b.flac", *output)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "a.json", "b.txt", ".tiny-audio.jsonl"}
    assert call(capsys, place / "headless", clip, *output, "--overwrite")[0] == 0


@pytest.mark.parametrize("options", [(), ("--no-search",)])
def test_no_search_turns_the_search_for_cuts_off(
    place: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched, begin_with = [], Transcriber.__init__

    def note(self: Transcriber, *arguments: Any, **settings: Any) -> None:
        searched.append(settings["search_cuts"])
        begin_with(self, *arguments, **settings)

    monkeypatch.setattr(Transcriber, "__init__", note)
    assert call(capsys, place / "model", place / "audio" / "a.wav", *options)[0] == 0
    assert searched == [not options]


@pytest.mark.parametrize("number", fast_ones([signal.SIGINT, signal.SIGTERM], signal.SIGTERM))
def test_an_interruption_keeps_finished_rows(
    place: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(JsonArray):
        def add(self, row: dict[str, Any]) -> None:
            super().add(row)
            os.kill(os.getpid(), number)

    monkeypatch.setattr("tiny_audio.commands.transcribe._job.JsonArray", Stopping)
    clips = [str(place / "audio" / name) for name in ("a.wav", "b.flac")]
    code, out, err = finish(begin("transcribe", place / "model", *clips, "--no-filters", "--json"))
    assert (code, err) == (3, "stopped\n")
    assert [row["audio_filepath"] for row in json.loads(out)] == clips[:1]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--format", "doc"], ["--format 'doc'", "text, json, srt, vtt, tsv"]),
        (["--words"], ["--words", "--format json, srt, vtt or tsv"]),
        (["--json", "--format", "srt"], ["--json", "--format srt"]),
        (["--overwrite"], ["--overwrite", "--output-dir"]),
        (["--format", "srt"], ["3 recordings", "--output-dir"]),
    ],
)
def test_invalid_options_are_rejected(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], names: list[str]
) -> None:
    code, out, err = call(capsys, place / "model", place / "audio", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert all(name in err for name in names)


def test_folders_without_audio_and_repeated_inputs(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{tmp_path} and its subfolders contain no audio file" in call(capsys, place / "model", tmp_path)[2]
    clip = place / "audio" / "a.wav"
    assert "- is given twice" in _twice(place, capsys)
    code, _, err = call(capsys, place / "model", "https://example.com/a.wav")
    assert (code, "download the file" in err) == (2, True)
    assert f"{clip}: no such folder" in call(capsys, clip, place / "model")[2]
    message = call(capsys, place / "model", clip, clip)[2]
    assert message == ""


def _twice(place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"x")))
        return call(capsys, place / "model", "-", "-")[2]


def test_words_need_a_ctc_head(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = place / "audio" / "a.wav"
    assert "CTC head" in call(capsys, place / "headless", clip, "--json", "--words")[2]
    output = ("--json", "--output-dir", tmp_path / "out")
    assert call(capsys, place / "headless", clip, *output)[0] == 0
    assert call(capsys, place / "headless", clip, *output, "--words", "--overwrite")[0] == 2
    assert "1 already there" in call(capsys, place / "headless", clip, *output)[1], "the failed command changed nothing"
    assert call(capsys, place / "headless", clip, "--format", "srt")[0] == 0


def test_a_missing_ffmpeg_is_named(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = call(capsys, place / "model", tmp_path / "x.m4a")
    assert (code, out) == (2, "")
    assert "install the FFmpeg program (apt install ffmpeg; brew install ffmpeg; winget install ffmpeg)" in err


def untagged_mp3(path: Path) -> Path:
    """Write an MP3 file of five seconds without a length tag."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * SAMPLE_RATE).astype(np.float32)
    soundfile.write(file, noise, SAMPLE_RATE, format="MP3")
    mp3 = file.getvalue()
    path.write_bytes(mp3[mp3.index(b"\xff\xf3", 4) :])
    return path


def test_an_mp3_without_a_length_tag_needs_no_ffmpeg(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (row,) = json.loads(call(capsys, place / "model", untagged_mp3(tmp_path / "x.mp3"), "--json")[1])
    assert row["duration"] == pytest.approx(5.0, abs=0.15)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the FFmpeg program is not here")
def test_m4a_is_decoded_by_ffmpeg(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / "a.m4a"
    command = ["ffmpeg", "-v", "error", "-i", str(place / "audio" / "a.wav"), "-c:a", "aac", str(clip)]
    subprocess.run(command, check=True, capture_output=True)
    (row,) = json.loads(call(capsys, place / "model", clip, "--json")[1])
    assert row["duration"] == pytest.approx(2.0, abs=0.1)
    clip.write_bytes(clip.read_bytes()[:2000])
    code, _, err = call(capsys, place / "model", clip)
    assert code == 2
    assert err.startswith(f"error: {clip}: not an audio file that can be decoded")
    assert "; FFmpeg cannot decode it: " in err
    assert err.count(str(clip)) == 1


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_joined_blocks_equal_the_whole_recording(tmp_path: Path, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiny_audio.audio._decode._BLOCK_SAMPLES", 10_000)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * rate + 13)
    soundfile.write(tmp_path / "x.wav", samples, rate)
    whole = load_audio(tmp_path / "x.wav", max_duration_s=60)
    blocks = list(audio_blocks(tmp_path / "x.wav"))
    assert len(blocks) > 2
    assert np.abs(np.concatenate(blocks) - whole.numpy()).max() < 1e-6
