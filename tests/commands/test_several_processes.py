"""`transcribe` and `evaluate` in several processes.

The output is the same as in one process. Errors are printed once, and finished work is kept after an interruption.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_clips
from tests.support.fast import fast_ones
from tests.support.worlds import free_port, in_processes
from tests.support.worlds import place as place_of
from tiny_audio.cli import main
from tiny_audio.commands.transcribe._formats import JsonArray

pytestmark = pytest.mark.usefixtures("one_thread")

Ended = tuple[int, str, str]
"""Exit code, standard output and standard error."""


def run(*arguments: object) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def together(size: int, *commands: list[object]) -> list[list[Ended]]:
    """Run each command in ``size`` processes. For each command, return the results of all processes."""
    ports = [free_port() for _ in commands]

    def work(rank: int) -> list[Ended]:
        ended = []
        for port, command in zip(ports, commands, strict=True):
            os.environ.update(place_of(rank, size, port))
            ended.append(run(*command))
        return ended

    return [list(processes) for processes in zip(*in_processes(size, work), strict=True)]


@pytest.fixture
def audio(place: Path, tmp_path: Path) -> Path:
    """Return a folder with three clips and a file that is not audio."""
    folder = tmp_path / "audio"
    (folder / "deep").mkdir(parents=True)
    for name, source in (("a.wav", "a.wav"), ("b.flac", "b.flac"), ("deep/c.wav", "a.wav")):
        shutil.copy(place / "audio" / source, folder / name)
    (folder / "bad.wav").write_text("no audio")
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("*/manifest/hypotheses.jsonl")
    lines = path.read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def scores_in(output: str) -> dict[str, Any]:
    """Return the scores that `evaluate --json` printed, without times."""
    (sets,) = json.loads(output).values()
    return {key: value for key, value in sets["manifest"].items() if key not in ("time_s", "rtfx", "load_s")}


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.srt")}


def test_two_processes_give_the_output_of_one(place: Path, audio: Path, tmp_path: Path) -> None:
    manifest = write_clips(tmp_path / "clips", 7)
    (tmp_path / "clips" / "clip001.flac").write_text("no audio")
    transcribe: list[object] = ["transcribe", place / "model", audio, "--no-filters"]
    evaluate: list[object] = ["evaluate", place / "model", "--data", manifest, "--json"]
    formats = [[*transcribe, "--json", "--words"], transcribe]

    def to(folder: str) -> list[list[object]]:
        return [
            [*transcribe, "--format", "srt", "--output-dir", tmp_path / folder],
            [*evaluate, "--output-dir", tmp_path / f"{folder}-scores"],
        ]

    # First run the commands in this process. The later processes are forks, which inherit the imported modules, so they
    # start fast.
    expected = [run(*command) for command in formats]
    alone = [run(*command) for command in to("one")]
    *printed, (written, not_written), (scored, not_scored) = together(2, *formats, *to("two"))
    for one, (first, second) in zip(expected, printed, strict=True):
        assert first == one
        assert second == (2, "", "")
    assert written[:2] == (2, f"3 written to {tmp_path / 'two'}\n")
    assert not_written == (2, "", "")
    assert scored[0] == 0, scored[2]
    assert not_scored == (0, "", "")
    assert alone[0][2] == written[2]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert rows_of(tmp_path / "one-scores") == rows_of(tmp_path / "two-scores")
    assert len(rows_of(tmp_path / "two-scores")) == 7
    assert scores_in(alone[1][1]) == scores_in(scored[1])


def test_transcription_continues_with_another_number_of_processes(place: Path, audio: Path, tmp_path: Path) -> None:
    (audio / "bad.wav").unlink()
    output: list[object] = ["--no-filters", "--format", "srt", "--output-dir", tmp_path / "out"]
    everything: list[object] = ["transcribe", place / "model", audio, *output]
    assert run("transcribe", place / "model", audio / "a.wav", *output)[0] == 0
    (once, silent), (again, _) = together(2, everything, everything)
    # First, a.wav was given as a file. Now its folder is given. The name of its transcript is the same in both cases,
    # so the transcript is not written again.
    assert once[:2] == (0, f"2 written to {tmp_path / 'out'}, 1 already there\n")
    assert silent == (0, "", "")
    assert again[:2] == (0, f"0 written to {tmp_path / 'out'}, 3 already there\n")
    assert run(*everything)[1] == again[1]
    # A folder with the transcripts of another model is rejected, also if several processes wrote the transcripts.
    other: list[object] = ["transcribe", place / "headless", audio, *output]
    assert run(*other)[0] == 2
    assert run(*other, "--overwrite")[0] == 0
    assert run(*everything)[0] == 2


def test_evaluation_continues_with_another_number_of_processes(place: Path, tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 6)
    command: list[object] = ["evaluate", place / "model", "--data", manifest, "--output-dir", tmp_path / "out"]
    assert run(*command)[0] == 0
    (path,) = (tmp_path / "out").glob("*/manifest/hypotheses.jsonl")
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:2]) + whole[2][:9])  # as if the process had been killed
    ((code, _, err), silent), *_ = together(2, command)
    assert (code, silent) == (0, (0, "", ""))
    assert "2 of 6 are done" in err
    assert [json.loads(line)["pred_text"] for line in path.read_text().splitlines()] == [
        json.loads(line)["pred_text"] for line in whole
    ]


@pytest.mark.parametrize("interrupted", fast_ones([0, 1], 1))
def test_an_interruption_keeps_finished_transcripts(
    place: Path, monkeypatch: pytest.MonkeyPatch, interrupted: int
) -> None:
    # Raise an exception instead of sending a signal, because background jobs of a shell ignore Ctrl-C.
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    class Stopping(JsonArray):
        def add(self, row: dict[str, Any]) -> None:
            super().add(row)
            if os.environ["RANK"] == str(interrupted) == "0":
                interrupt()

    monkeypatch.setattr("tiny_audio.commands.transcribe._job.JsonArray", Stopping)
    if interrupted:
        monkeypatch.setattr("tiny_audio.commands.transcribe._job.Job._send", interrupt)
    clips = [place / "audio" / name for name in ("a.wav", "b.flac", "deep/long.flac")]
    ((first, second),) = together(2, ["transcribe", place / "model", *clips, "--no-filters", "--json"])
    codes = [first[0], second[0]]
    assert codes[interrupted] == 3
    assert codes[1 - interrupted] == 1  # a launcher would end the other process; here, it fails
    rows = json.loads(first[1])
    assert 1 <= len(rows) <= 3
    assert all(row["text"] is not None for row in rows)
    assert second[1] == ""
    assert second[2] in ("", "failed: another process ended too early; see the error message of that process\n")


ERRORS = (
    (["transcribe", "{place}/model", "-"], ["- is a stream", "2 processes"]),
    (["transcribe", "{place}/nothing", "{place}/audio"], ["{place}/nothing"]),
    (["transcribe", "{place}/model", "{place}/audio", "--format", "srt"], ["3 recordings"]),
    (["evaluate", "{place}/nothing", "--data", "x.jsonl"], ["{place}/nothing"]),
)
"""Arguments of a command, and the texts that its error message contains."""


def test_an_error_in_all_processes_is_printed_once(place: Path) -> None:
    commands = [[argument.format(place=place) for argument in arguments] for arguments, _ in ERRORS]
    for (first, second), (_, names) in zip(together(2, *commands), ERRORS, strict=True):
        assert first[:2] == (2, "")
        assert second == (2, "", "")
        assert first[2].startswith("error: ")
        assert all(name.format(place=place) in first[2] for name in names)


def test_an_error_in_one_process_is_printed_by_this_process(place: Path, tmp_path: Path) -> None:
    """One process has different clips. It prints an error, and all processes fail."""
    write_clips(tmp_path, 4)

    def work(rank: int) -> Ended:
        if rank:
            lines = (tmp_path / "manifest.jsonl").read_text().splitlines(keepends=True)
            (tmp_path / "other").mkdir()
            for clip in tmp_path.glob("clip*"):
                shutil.copy(clip, tmp_path / "other")
            (tmp_path / "other" / "manifest.jsonl").write_text("".join(lines[:3]))
        data = tmp_path / ("other/manifest.jsonl" if rank else "manifest.jsonl")
        return run("evaluate", place / "model", "--data", data, "--output-dir", tmp_path / "out")

    first, second = in_processes(2, work)
    assert first == (2, "", "")
    assert second[0] == 2
    assert second[2].startswith("error: process 1 has different clips in manifest than the main process")


@pytest.mark.slow
def test_torchrun_starts_both_commands(place: Path, audio: Path, tmp_path: Path) -> None:
    manifest = write_clips(tmp_path / "clips", 5)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tiny_audio.cli"]
    (audio / "bad.wav").unlink()
    for command in (
        ["transcribe", place / "model", audio, "--no-filters"],
        ["evaluate", place / "model", "--data", manifest, "--output-dir", tmp_path / "out", "--json"],
    ):
        launched = [*torchrun[:5], "--master-port", str(free_port()), *torchrun[5:], *map(str, command)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(launched, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        if command[0] == "transcribe":
            assert done.stdout == run(*command)[1]
        else:
            assert json.loads(done.stdout)[place.name]["manifest"]["num_clips"] == 5
