"""A run folder is used by one process at a time, and its state can be saved and loaded."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import tiny_recipe
from tests.support.processes import fork
from tiny_audio.commands.run.prepare import open_folder
from tiny_audio.commands.run.state import EvaluationState, RunState, TrainingInputs, TrainingState
from tiny_audio.config import UserError
from tiny_audio.plan.work import Work
from tiny_audio.recipe import Recipe


def hold(recipe: Recipe, folder: Path) -> None:
    """Open a run folder, start a child process, print the child's id, and wait."""
    held = ExitStack()  # closing it releases the folder
    open_folder(recipe, folder, held)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_folder_of_a_killed_run_is_released_while_its_workers_live(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(tiny_recipe(tmp_path), strict=False)
    folder = tmp_path / "run"
    with fork(lambda: hold(recipe, folder)) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with ExitStack() as held, pytest.raises(UserError) as caught:
                open_folder(recipe, folder, held)
            assert str(folder) in str(caught.value)
            process.kill()
            process.wait()
            os.kill(child, 0)  # raises an error unless the child is alive
            with ExitStack() as held:
                open_folder(recipe, folder, held)
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_state_can_be_saved_and_loaded(tmp_path: Path) -> None:
    training = TrainingState(TrainingInputs("d", encoder="e"), Work((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 7, 8.0))
    evaluation = {"held_out": EvaluationState("i", "d", {"wer": 0.5, "groups": None}, {"beside_s": 1.0})}
    state = RunState({"seed": None}, "now", {"a/b": "c"}, training, None, evaluation)
    state.write(tmp_path)
    assert RunState.read(tmp_path) == state
    written = (tmp_path / "state.json").stat().st_mtime_ns
    state.write(tmp_path)
    assert (tmp_path / "state.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("content", ["", '{"recipe": {}}', '{"recipe": 1, "started": "now"}'])
def test_a_damaged_state_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"/state\.json is damaged: .*; restore it from a backup"):
        RunState.read(tmp_path)
