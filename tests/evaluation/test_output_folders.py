"""`tiny-audio evaluate` with a folder that already has results of another target, data set, sample or program."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.evaluation.outputs import Output, deepgram, rows_in
from tests.support.provider_server import Vendors
from tiny_audio.analysis.rescore import rescore
from tiny_audio.evaluation.hypotheses import Hypothesis, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def test_results_of_something_else_are_not_continued(call: Output, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "run" / "model", run / "model")
    shutil.copy(trained / "manifest.jsonl", tmp_path)
    for clip in trained.glob("clip*"):
        shutil.copy(clip, tmp_path)
    arguments = [run, "--data", tmp_path / "manifest.jsonl", "--output-dir", tmp_path / "out"]
    assert call(*arguments)[0] == 0
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "manifest.jsonl").write_text("".join(lines[:4]))
    code, _, err = call(*arguments)
    assert code == 2
    assert "has results of other data; give another --output-dir" in err
    (tmp_path / "manifest.jsonl").write_text("".join(lines))
    assert call(*arguments)[0] == 0
    (run / "model" / "model.safetensors").touch()
    code, _, err = call(*arguments)
    assert code == 2
    assert "has results of another target" in err
    (tmp_path / "out/run/manifest/target.json").unlink()
    assert "has no target.json" in call(*arguments)[2]


def test_a_file_of_other_rows_is_rejected(call: Output, trained: Path, tmp_path: Path) -> None:
    arguments = [trained / "run", "--data", trained / "manifest.jsonl", "--output-dir", tmp_path]
    assert call(*arguments)[0] == 0
    path = tmp_path / "run" / "manifest" / "hypotheses.jsonl"
    path.write_text('{"a": 1}\n' + path.read_text())
    code, _, err = call(*arguments)
    assert code == 2
    assert f"{path}, line 1: not a hypothesis of an evaluation; give another --output-dir" in err


@pytest.fixture
def sampled(call: Output, server: Vendors, trained: Path, tmp_path: Path) -> tuple[Callable[[int], int], Path]:
    """Return the folder of the results, and a function that evaluates a sample and returns the number of requests."""
    arguments = [deepgram(server), "--data", trained / "manifest.jsonl", "--output-dir", tmp_path, "--max-samples"]

    def evaluate(num_clips: int) -> int:
        server.asked.clear()
        code, _, err = call(*arguments, num_clips)
        assert code == 0, err
        return len(server.asked)

    assert evaluate(4) == 4
    (path,) = tmp_path.rglob("hypotheses.jsonl")
    return evaluate, path.parent


def test_hypotheses_of_other_samples_are_in_another_file(sampled: tuple[Callable[[int], int], Path]) -> None:
    evaluate, folder = sampled
    path, others = folder / "hypotheses.jsonl", folder / "other_hypotheses.jsonl"
    every = path.read_text().splitlines()
    assert evaluate(2) == 0
    few = path.read_text().splitlines()
    assert len(few) == 2
    (rescored,) = rescore([path]).summary["targets"]
    assert rescored["wer"] == json.loads((folder / "scores.json").read_text())["wer"]
    rest = others.read_text().splitlines()
    assert (len(rest), {*few, *rest}) == (2, set(every))
    assert evaluate(4) == 0
    assert (path.read_text().splitlines(), others.exists()) == (every, False)

    # An earlier version of this package wrote all rows to one file.
    failed = json.loads(rest[1]) | {"pred_text": None, "error": "answered 500"}
    path.write_text("\n".join([*few, rest[0], json.dumps(failed)]) + "\n")
    assert evaluate(2) == 0
    assert (path.read_text().splitlines(), others.read_text().splitlines()) == (few, rest[:1])
    assert evaluate(4) == 1
    assert len(rows_in(folder)) == 4


@pytest.mark.parametrize("num_written", range(3))
@pytest.mark.parametrize("before", [2, 4])
def test_hypotheses_are_kept_when_a_process_is_killed_while_it_moves_them(
    sampled: tuple[Callable[[int], int], Path], before: int, num_written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, folder = sampled
    assert evaluate(before) == 0
    written = []

    def write(path: Path, rows: Iterable[Hypothesis]) -> None:
        if len(written) == num_written:
            raise KeyboardInterrupt
        written.append(path)
        write_rows(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr("tiny_audio.evaluation.target_on_set.write_rows", write)
        with pytest.raises(AssertionError):
            evaluate(6 - before)
    assert len(written) == num_written
    assert evaluate(4) == 0
    assert len(rows_in(folder)) == 4
    assert not (folder / "other_hypotheses.jsonl").exists()
