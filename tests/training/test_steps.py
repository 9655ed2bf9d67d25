"""Steps with nonfinite values, and the log of steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import Document, changed
from tests.support.training import (
    RecordingCallback,
    make_trainer,
)
from tiny_audio.config import RunFailed
from tiny_audio.training import checkpoint
from tiny_audio.training.metrics import MetricsLog, read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_restart_removes_log_lines_of_repeated_steps(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3, 4):
        log.write("train", step, loss=float(step))
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "train", "step": 5, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]
    log = MetricsLog(tmp_path, 2)
    log.write("train", 3, loss=30.0)
    log.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_nonfinite_values_are_null_in_the_log(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.write("train", 1, loss=math.nan, gradient_norm=math.inf, epoch=0, set="a", ctc_loss=None, ends=[0.5, math.nan])
    log.close()
    row = (
        '{"kind": "train", "step": 1, "loss": null, "gradient_norm": null, "epoch": 0, "set": "a", "ctc_loss": null, '
        '"ends": [0.5, null]}\n'
    )
    assert (tmp_path / "metrics.jsonl").read_text() == row


def test_a_much_too_high_learning_rate_stops_the_run(document: Document, tmp_path: Path) -> None:
    steps = {"training__steps": 30, "training__learning_rate": 1e30, "training__max_skipped_steps": 3}
    trainer = make_trainer(changed(document, **steps, execution__checkpoint_every=1), tmp_path)
    with pytest.raises(RunFailed) as failure:
        trainer.run()
    message = str(failure.value)
    assert message.startswith("4 steps in a row")
    assert "training.learning_rate" in message
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert str(saved) in message
    assert all(tensor.isfinite().all() for tensor in load_file(saved / "model.safetensors").values())  # type: ignore[operator]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["skipped_steps"] for row in rows][-3:] == [1, 2, 3]
    assert rows[-1]["loss"] is None


def test_a_run_in_which_all_steps_are_skipped_fails(document: Document, tmp_path: Path) -> None:
    trainer = make_trainer(changed(document, training__steps=3), tmp_path)
    trainer.bare_model.get_parameter("projector.down.weight").register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(RunFailed, match=r"^none of the 3 steps "):
        trainer.run()
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_one_bad_step_is_skipped_and_counted(document: Document, tmp_path: Path) -> None:
    callback = RecordingCallback()
    trainer = make_trainer(changed(document, execution__log_every=3), tmp_path, callback=callback)
    calls, seen = [], []
    parameter = trainer.bare_model.get_parameter("projector.down.weight")

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(1)
        seen.append(parameter.detach().clone())
        return gradient * math.nan if len(calls) == 2 else gradient

    parameter.register_hook(spoil)
    progress = trainer.run()
    assert progress.skipped_steps == 1
    assert progress.skipped_in_a_row == 0
    assert callback.notes == ["step 2 skipped: its loss or gradient is not finite"]
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["skipped_steps"] == 1
    assert math.isfinite(row["loss"])


def test_the_last_steps_before_an_early_stop_are_logged(document: Document, tmp_path: Path) -> None:
    settings = {"training__steps": 9, "execution__log_every": 5, "execution__evaluate_every": 1}
    best = {"execution__evaluate_set": "held_out", "training__keep_best": {"set": "held_out", "patience": 6}}
    scores = {"set": "held_out", "utterances": 4, "wer": 0.5, "cer": None}
    trainer = make_trainer(changed(document, **settings, **best), tmp_path, lambda model: scores)
    assert trainer.run().step == 7
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [5, 7]
    assert math.isfinite(rows[-1]["loss"])
