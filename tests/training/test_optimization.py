"""The learning rate schedule and weight decay."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.conftest import Document, changed
from tests.support.training import (
    different,
    make_trainer,
    trained,
)
from tiny_audio.recipe import TrainingConfig
from tiny_audio.training.metrics import read_metrics
from tiny_audio.training.optimization import build_optimizer, learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("schedule", "floor", "expected"),
    [
        ("cosine", 0.0, {0: 0.5, 1: 1.0, 2: 1.0, 4: 0.75, 6: 0.25 + 0.25, 10: 0.0}),
        ("linear", 0.0, {0: 0.5, 1: 1.0, 2: 1.0, 4: 0.75, 6: 0.5, 10: 0.0}),
        ("linear", 0.2, {2: 1.0, 6: 0.6, 10: 0.2}),
        ("cosine", 0.2, {2: 1.0, 6: 0.6, 10: 0.2}),
        ("constant", 0.0, {0: 0.5, 1: 1.0, 2: 1.0, 9: 1.0}),
    ],
)
def test_learning_rates(schedule: str, floor: float, expected: dict[int, float]) -> None:
    settings = {"steps": 10, "learning_rate": 1.0, "warmup_steps": 2, "final_learning_rate_ratio": floor}
    config = TrainingConfig.model_validate({**settings, "schedule": schedule})
    if schedule == "cosine" and not floor:
        expected = expected | {4: (1 + math.cos(math.pi / 4)) / 2}
    assert {step: learning_rate(config, step) for step in expected} == pytest.approx(expected, abs=1e-12)


def test_without_warmup_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(TrainingConfig(steps=10, learning_rate=0.3), 0) == 0.3


def test_the_learning_rate_of_each_step_is_logged(document: Document, tmp_path: Path) -> None:
    rates = {"training__schedule": "linear", "training__warmup_steps": 1, "training__learning_rate": 1e-3}
    trained(changed(document, **rates), tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 1e-3, 5e-4])


def test_only_matrices_have_weight_decay(document: Document, tmp_path: Path) -> None:
    trainer = make_trainer(changed(document, training__weight_decay=0.1), tmp_path)
    names = {id(tensor): name for name, tensor in trainer.bare_model.named_parameters()}
    optimizer = build_optimizer(trainer.bare_model, trainer.recipe)
    decayed, kept = ([names[id(tensor)] for tensor in group["params"]] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert "projector.down.weight" in decayed
    assert "ctc_head.bias" in kept
    assert not [name for name in decayed if "norm" in name or "bias" in name or "positions" in name]
    assert not [name for name in kept if "norm" not in name and "bias" not in name]
    trains = {name for name, tensor in trainer.bare_model.named_parameters() if tensor.requires_grad}
    assert sorted(decayed + kept) == sorted(trains)


def test_a_part_can_have_its_own_learning_rate_and_weight_decay(document: Document, tmp_path: Path) -> None:
    own = {"encoder__learning_rate": 1e-5, "decoder__weight_decay": 0.3, "training__weight_decay": 0.1}
    trainer = make_trainer(changed(document, **own), tmp_path)
    settings: dict[str, set[tuple[float, float]]] = {}
    names = {id(tensor): name for name, tensor in trainer.bare_model.named_parameters()}
    for group in build_optimizer(trainer.bare_model, trainer.recipe).param_groups:
        for tensor in group["params"]:
            settings.setdefault(names[id(tensor)].split(".")[0], set()).add((group["peak"], group["weight_decay"]))
    rate = trainer.config.learning_rate
    assert settings["encoder"] == {(1e-5, 0.1), (1e-5, 0.0)}
    assert settings["decoder"] == {(rate, 0.3), (rate, 0.0)}
    assert settings["projector"] == {(rate, 0.1), (rate, 0.0)}


def test_a_parts_learning_rate_follows_the_schedule(document: Document, tmp_path: Path) -> None:
    trainer = make_trainer(changed(document, encoder__learning_rate=1e-5, training__schedule="linear"), tmp_path)
    trainer.run()
    last = {group["peak"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert last[1e-5] / last[trainer.config.learning_rate] == pytest.approx(1e-5 / trainer.config.learning_rate)
    assert 0 < last[1e-5] < 1e-5


def test_weight_decay_changes_the_weights(document: Document, tmp_path: Path) -> None:
    plain = trained(changed(document, training__steps=1), tmp_path / "plain")
    decayed = trained(changed(document, training__steps=1, training__weight_decay=0.5), tmp_path / "decayed")
    name = "projector.down.weight"
    assert name in different(plain, decayed)
    assert "ctc_head.bias" not in different(plain, decayed)
