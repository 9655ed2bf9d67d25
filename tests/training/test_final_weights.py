"""Final weights: best evaluation, early stopping, and averages of checkpoints. Kills do not change these weights."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Document, changed, tiny_recipe, write_clips
from tests.support.processes import finish, kill, last_step, start, wait_until
from tests.support.training import (
    ActingCallback,
    RecordingCallback,
    Weights,
    different,
    exported,
    make_trainer,
    parse,
    run,
    steps_kept,
    weights,
)
from tiny_audio.analysis.warnings import warnings_of
from tiny_audio.cli import main
from tiny_audio.config import Stopped, UserError
from tiny_audio.training import checkpoint
from tiny_audio.training.final_weights import FinalWeights, Selection
from tiny_audio.training.metrics import read_metrics
from tiny_audio.training.progress import Progress
from tiny_audio.training.signals import StopSignal
from tiny_audio.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

VALUES = {2: 0.5, 4: 0.25, 6: 0.25, 8: 0.375, 10: 0.1, 12: 0.1}
"""Word error rates by step. Those of the steps 4 and 6 are equal."""
AVERAGE = -1
"""Key, in place of a step, of the word error rate of the averaged weights."""


class Killed(BaseException):
    """Ends training like a kill, because no code catches it."""


@pytest.fixture(scope="module")
def stopping(data: Path) -> Document:
    """Return a recipe of 12 steps. With ``VALUES`` as error rates, step 4 is best, and training stops at step 8."""
    settings: dict[str, Any] = {
        "decoder__dropout": 0.1,
        "training__steps": 12,
        "training__keep_best": {"set": "held_out", "metric": "wer", "patience": 2},
        "execution__log_every": 1,
        "execution__checkpoint_every": 3,
        "execution__evaluate_every": 2,
        "execution__evaluate_set": "held_out",
    }
    return changed(tiny_recipe(data), ctc={"weight": 0.5}, **settings)


@dataclass(frozen=True)
class Whole:
    """A run without kills, and its results."""

    folder: Path
    trainer: Trainer
    weights: Weights
    notes: list[str]


@pytest.fixture(scope="module")
def whole(stopping: Document, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder, callback = tmp_path_factory.mktemp("whole"), RecordingCallback()
    trainer, found = finished(stopping, folder, callback=callback)
    return Whole(folder, trainer, found, callback.notes)


def scripted(
    document: Document, folder: Path, values: Mapping[int, float] = VALUES, **options: Any
) -> tuple[Trainer, list[int]]:
    """Return a trainer whose evaluations give these values, and the list of steps that it evaluates."""
    evaluated: list[int] = []

    def evaluate(model: object) -> dict[str, Any]:
        step = trainer.progress.step
        key = AVERAGE if step in evaluated else step
        evaluated.append(key)
        return {"set": "held_out", "utterances": 4, "wer": values[key], "cer": None}

    trainer = make_trainer(document, folder, evaluate, **options)
    return trainer, evaluated


def finished(document: Document, folder: Path, **options: Any) -> tuple[Trainer, Weights]:
    trainer, _ = scripted(document, folder, **options)
    trainer.run()
    return trainer, weights(trainer)


def saved(folder: Path, step: int) -> Weights:
    return load_file(folder / "checkpoints" / f"step-{step:09d}" / "model.safetensors")


def assert_weights(found: Weights, expected: Weights) -> None:
    assert expected
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


def rows(folder: Path) -> list[tuple[str, int, Any]]:
    return [
        (row["kind"], row["step"], row.get("wer", row.get("loss"))) for row in read_metrics(folder / "metrics.jsonl")
    ]


def test_the_final_weights_are_the_best_and_training_stops_early(whole: Whole) -> None:
    assert whole.trainer.final == FinalWeights((4,), "held_out", "wer", 0.25, 4, stopped_early=True)
    assert whole.trainer.progress.step == 8
    assert_weights(whole.weights, saved(whole.folder, 4))
    assert steps_kept(whole.folder) == [4, 6, 8]
    logged = [row for row in read_metrics(whole.folder / "metrics.jsonl") if row["kind"] == "evaluation"]
    assert [(row["step"], row["best_step"], row["stops_early"]) for row in logged] == [
        (2, 2, False),
        (4, 4, False),
        (6, 4, False),
        (8, 4, True),
    ]
    notes = [note for note in whole.notes if "held_out" in note]
    assert notes[1] == "step 4: held_out WER 25.00% (the best WER so far)"
    assert notes[3].endswith(
        "(the best WER is 25.00% at step 4; stopped early after 2 evaluations without a better value)"
    )


def test_the_last_step_is_evaluated_too(stopping: Document, tmp_path: Path) -> None:
    document = changed(stopping, training__steps=3, training__keep_best={"set": "held_out", "patience": None})
    trainer, found = finished(document, tmp_path, values={2: 0.5, 3: 0.4})
    assert trainer.final.steps == (3,)
    assert not trainer.final.stopped_early
    assert_weights(found, saved(tmp_path, 3))


def kill_in_evaluation(trainer: Trainer, step: int, patch: pytest.MonkeyPatch) -> None:
    evaluate = trainer.evaluate

    def killed(model: Any) -> dict[str, Any]:
        assert evaluate is not None
        if trainer.progress.step == step:
            raise Killed
        return evaluate(model)

    trainer.evaluate = killed


def kill_between_evaluation_and_checkpoint(trainer: Trainer, step: int, patch: pytest.MonkeyPatch) -> None:
    save = checkpoint.save

    def killed(*args: Any, **options: Any) -> None:
        if trainer.progress.step == step:
            assert trainer.progress.evaluated_step == step
            raise Killed
        save(*args, **options)

    patch.setattr(checkpoint, "save", killed)


def kill_in_a_step(trainer: Trainer, step: int, patch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        if trainer.progress.step == step:
            raise Killed

    trainer.bare_model.projector.register_forward_hook(killed)


def kill_before_the_export(trainer: Trainer, step: int, patch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise Killed

    patch.setattr(checkpoint, "read_weights", killed)


KILLS: list[tuple[Callable[[Trainer, int, pytest.MonkeyPatch], None], int]] = [
    (kill_in_evaluation, 4),
    (kill_between_evaluation_and_checkpoint, 4),
    (kill_in_a_step, 4),
    (kill_in_a_step, 7),
    (kill_in_evaluation, 8),
    (kill_between_evaluation_and_checkpoint, 8),
    (kill_before_the_export, 8),
]


def test_final_weights_do_not_depend_on_kills(
    stopping: Document, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single run is killed at each moment in ``KILLS``, and continued after each kill."""
    for act, step in KILLS:
        trainer, _ = scripted(stopping, tmp_path)
        with monkeypatch.context() as patch:
            act(trainer, step, patch)
            with pytest.raises(Killed):
                trainer.run()
        assert trainer.progress.step == step, act
    trainer, found = finished(stopping, tmp_path)
    assert (trainer.final, trainer.progress.step) == (whole.trainer.final, whole.trainer.progress.step)
    assert not different(found, whole.weights)
    assert rows(tmp_path) == rows(whole.folder)
    assert steps_kept(tmp_path) == steps_kept(whole.folder)


def test_a_saved_step_without_an_evaluation_is_evaluated(stopping: Document, tmp_path: Path) -> None:
    trainer, _ = scripted(stopping, tmp_path)

    def unwritable(kind: str, step: int, **values: Any) -> None:
        if step == 4:
            raise OSError(28, "No space left on device")

    opened = trainer._open_logs

    def open_logs() -> None:
        opened()
        trainer._metrics.write = unwritable  # type: ignore[method-assign]

    trainer._open_logs = open_logs  # type: ignore[method-assign]
    with pytest.raises(UserError, match="No space left"):
        trainer.run()
    assert steps_kept(tmp_path)[-1] == 4
    again, evaluated = scripted(stopping, tmp_path)
    again.run()
    assert evaluated == [4, 6, 8]
    assert again.final.steps == (4,)


def test_a_damaged_best_checkpoint_is_named(stopping: Document, whole: Whole, tmp_path: Path) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    (folder / "checkpoints" / "step-000000004" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"step-000000004, .*\(model.safetensors has 0 of .*delete"):
        finished(stopping, folder)


# --- averages


@pytest.fixture
def averaging(document: Document) -> Document:
    """Return a recipe with checkpoints at the steps 2, 4, 6 and 7. It averages the last three checkpoints."""
    every = {"execution__checkpoint_every": 2, "execution__keep_checkpoints": 1}
    return changed(document, training__steps=7, training__average_last=3, decoder__dropout=0.1, **every)


def mean(folder: Path, steps: tuple[int, ...]) -> Weights:
    parts = [saved(folder, step) for step in steps]
    return {name: torch.stack([part[name].double() for part in parts]).mean(0).float() for name in parts[0]}


def test_the_last_checkpoints_are_averaged(averaging: Document, tmp_path: Path) -> None:
    trainer, found = finished(averaging, tmp_path / "whole")
    assert trainer.final == FinalWeights((4, 6, 7))
    assert steps_kept(tmp_path / "whole") == [4, 6, 7]
    assert_weights(found, mean(tmp_path / "whole", (4, 6, 7)))

    # A signal also saves step 5, which is not averaged.
    folder, stop = tmp_path / "stopped", StopSignal()
    with pytest.raises(Stopped):
        finished(averaging, folder, stop=stop, callback=ActingCallback(5, stop.ask))
    assert steps_kept(folder) == [2, 4, 5]
    again, same = finished(averaging, folder)
    assert again.final == trainer.final
    assert not different(found, same)


@pytest.mark.parametrize(("value", "steps"), [(0.2, (3, 6, 8)), (0.25, (4,))])
def test_the_better_of_average_and_best_checkpoint_is_used(
    stopping: Document, tmp_path: Path, value: float, steps: tuple[int, ...]
) -> None:
    document = changed(stopping, training__average_last=3, execution__keep_checkpoints=1)
    trainer, found = finished(document, tmp_path, values=VALUES | {AVERAGE: value})
    chosen = min(value, 0.25)
    assert trainer.final == FinalWeights(steps, "held_out", "wer", chosen, 5, stopped_early=True)
    assert trainer.progress.step == 8
    assert steps_kept(tmp_path) == [3, 4, 6, 8]
    assert_weights(found, saved(tmp_path, 4) if steps == (4,) else mean(tmp_path, steps))


# --- the choice


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [("cer", [0.3, 0.2, 0.2, 0.4], 2), ("error_free_rate", [0.3, 0.2, 0.4, 0.4], 3), ("insertions", [5, 5], 1)],
)
def test_the_earliest_of_equal_values_is_the_best(
    stopping: Document, metric: str, values: list[float], best: int
) -> None:
    document = changed(stopping, training__keep_best={"set": "held_out", "metric": metric})
    selection, progress = Selection(parse(document)), Progress()
    for progress.step, value in enumerate(values, start=1):
        selection.add(progress, {"set": "held_out", metric: value})
    assert (progress.best_step, progress.best_value) == (best, values[best - 1])
    assert progress.num_evaluations == len(values)
    assert not selection.stops_early(progress)


def test_a_set_without_a_word_error_rate_has_a_dash(stopping: Document) -> None:
    document = changed(stopping, training__keep_best=None)
    assert Selection(parse(document)).text(Progress(step=1), {"wer": None}) == "WER –"


# --- whole runs


def test_a_report_states_which_set_chose_the_weights(data: Path, tmp_path: Path) -> None:
    clips = {"name": "manifest", "path": str(data / "manifest.jsonl")}
    document = changed(
        tiny_recipe(data),
        data__evaluation={"held_out": clips, "other": clips},
        training__steps=4,
        training__warmup_steps=0,
        training__keep_best={"set": "held_out", "metric": "cer"},
        generation__max_new_tokens=5,
        evaluation__num_bootstrap=100,
        execution__evaluate_every=2,
        execution__evaluate_set="held_out",
        execution__keep_checkpoints=2,
    )
    folder = tmp_path / "run"
    run(document, folder)
    report = json.loads((folder / "report.json").read_text())
    final = report["training"]["final_weights"]
    (best,) = final["steps"]
    assert (final["selected_on"], final["metric"], final["num_evaluations"]) == ("held_out", "cer", 2)
    found = load_file(folder / "model" / "model.safetensors")
    assert_weights(found, saved(folder, best))
    chose = {name: len([*warnings_of(scores)]) for name, scores in report["evaluation"].items()}
    assert chose["held_out"] == chose["other"] + 1
    texts = [(folder / name).read_text() for name in ("report.html", "model/README.md")]
    assert all("these clips were used to choose the weights" in text for text in texts)
    assert f"those of step {best}, the best of 2 evaluations by cer on held\\_out." in texts[1]

    for step in (2, 4):
        assert main(["export", str(folder), str(tmp_path / f"step{step}"), "--step", str(step)]) == 0
        at_step = load_file(tmp_path / f"step{step}" / "model.safetensors")
        assert_weights(at_step, saved(folder, step))
        is_scored = "Not measured" not in (tmp_path / f"step{step}" / "README.md").read_text()
        assert is_scored == (step == best)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe whose evaluations use a real model that learns."""
    folder = tmp_path_factory.mktemp("recipe")
    write_clips(folder, 12)
    settings: dict[str, Any] = {
        "ctc": {"weight": 0.5},
        "decoder__dropout": 0.1,
        "batching__max_clips": 6,
        "training__steps": 60,
        "training__learning_rate": 5e-3,
        "training__keep_best": {"set": "held_out", "metric": "cer", "patience": 3},
        "training__average_last": 2,
        "generation__max_new_tokens": 8,
        "evaluation__num_bootstrap": 100,
        "execution__log_every": 1,
        "execution__checkpoint_every": 7,
        "execution__evaluate_every": 4,
        "execution__evaluate_set": "held_out",
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(changed(tiny_recipe(folder), **settings)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_at_random_times_has_the_same_final_weights(recipe: Path, tmp_path: Path, seed: int) -> None:
    code, out, err = finish(start(recipe, tmp_path / "whole"))
    assert (code, err) == (0, ""), out
    folder, rng, kills = tmp_path / "run", random.Random(seed), 0
    while True:
        process = start(recipe, folder)
        aim = last_step(folder) + rng.randint(1, 5)
        if not wait_until(process, lambda aim=aim: last_step(folder) >= aim):  # type: ignore[misc]
            break
        time.sleep(rng.uniform(0, 0.1))
        kill(process)
        kills += 1
    assert finish(process)[0] == 0
    assert kills >= 2
    assert exported(folder) == exported(tmp_path / "whole")
    ours, theirs = (json.loads((run / "report.json").read_text()) for run in (folder, tmp_path / "whole"))
    assert ours["training"]["final_weights"] == theirs["training"]["final_weights"]
    assert ours["training"]["steps"] == theirs["training"]["steps"]
    assert rows(folder) == rows(tmp_path / "whole")
