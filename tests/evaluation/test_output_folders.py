"""`tiny-audio evaluate` with a folder that contains results of another target, other data or another program."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.evaluation.outputs import Output

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
