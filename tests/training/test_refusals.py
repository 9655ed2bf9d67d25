"""Runs that are rejected before training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Document, changed, tiny_recipe, write_clips
from tests.support.training import RecordingCallback, parse
from tests.support.worlds import in_processes
from tiny_audio.cli import main
from tiny_audio.commands.run import Run
from tiny_audio.config import UserError
from tiny_audio.runtime.world import joined

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refusals")
    write_clips(folder, 14)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(tiny_recipe(folder)))
    return path


@pytest.fixture
def document(recipe: Path) -> Document:
    document: Document = json.loads(recipe.read_text())
    return document


def test_a_folder_with_other_files_is_rejected(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "mine.txt").write_text("precious")
    assert main(["run", str(recipe), "--output-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'run'} ")
    assert "state.json" in error
    assert " model," in error
    assert (tmp_path / "run" / "model" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.group_by=accent", "evaluation.group_by: no clip has a value for the column 'accent'; use one"),
        ("data.evaluation.held_out.path=none.jsonl", "none.jsonl does not exist"),
    ],
)
def test_unusable_evaluation_settings_are_rejected_before_training(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert main(["run", str(recipe), override, "--output-dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_leftover_launcher_variable_is_mentioned_once(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    callback = RecordingCallback()
    one_step = {"training__steps": 1, "training__warmup_steps": 0}
    Run(parse(changed(document, **one_step)), "run", tmp_path / "run", callback).complete()
    assert len([note for note in callback.notes if "LOCAL_RANK" in note]) == 1


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_engines_of_accelerate_are_rejected(document: Document, tmp_path: Path, engine: str) -> None:
    def work(rank: int) -> Any:
        os.environ[f"ACCELERATE_USE_{engine}"] = "true"
        return Run(parse(document), "run", tmp_path / "run", RecordingCallback()).complete()

    first, second = in_processes(2, work)
    assert str(first) == str(second)
    assert isinstance(first, UserError)
    assert "accelerate launch" in str(first)
    assert "execution.parallel" in str(first)


def test_more_processes_than_gpus_are_rejected() -> None:
    def work(rank: int) -> Any:
        with joined(torch.device("cuda")):
            raise AssertionError("there is no GPU for this process")

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    first, second = in_processes(2, work)
    assert isinstance(first, UserError)
    assert isinstance(second, UserError)
    assert str(second).startswith("process 1 ")


@pytest.mark.parametrize("command", ["sweep", "bench"])
def test_commands_for_one_process_reject_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    arguments = {"sweep": [recipe, "training.seed=0,1"], "bench": ["projectors", recipe, "--train"]}[command]
    assert main([command, *arguments, "--output-dir", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: tiny-audio {command} ")
    assert "WORLD_SIZE is 4" in message
    assert not (tmp_path / "out").exists()
