"""A run folder is held by one process, and its state survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import tiny_recipe
from tiny_audio.commands.run.prepare import open_folder
from tiny_audio.commands.run.state import EvaluationState, RunState, TrainingInputs, TrainingState
from tiny_audio.config import UserError
from tiny_audio.plan.work import Work
from tiny_audio.recipe import Recipe

HOLD = """
import os, sys, time
from contextlib import ExitStack
from pathlib import Path
from tiny_audio.commands.run.prepare import open_folder
from tiny_audio.recipe import Recipe
held = ExitStack()
open_folder(Recipe.model_validate_json(sys.argv[2]), Path(sys.argv[1]), held)
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_run_leaves_the_folder_free_though_its_workers_live(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(tiny_recipe(tmp_path), strict=False)
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder), recipe.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with ExitStack() as held, pytest.raises(UserError) as caught:
                open_folder(recipe, folder, held)
            assert str(folder) in str(caught.value)
            process.kill()
            process.wait()
            os.kill(child, 0)  # it lives
            with ExitStack() as held:
                open_folder(recipe, folder, held)
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_state_survives_a_file(tmp_path: Path) -> None:
    training = TrainingState(TrainingInputs("d", encoder="e"), Work((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 7, 8.0))
    evaluation = {"held_out": EvaluationState("i", "d", {"wer": 0.5, "groups": None}, {"beside_s": 1.0})}
    state = RunState({"seed": None}, "now", {"a/b": "c"}, training, None, evaluation)
    state.write(tmp_path)
    assert RunState.read(tmp_path) == state
    written = (tmp_path / "state.json").stat().st_mtime_ns
    state.write(tmp_path)
    assert (tmp_path / "state.json").stat().st_mtime_ns == written
