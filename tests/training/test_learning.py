"""Training reduces the loss, accumulation does not change the loss, and the seed determines the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.conftest import Document, changed, tiny_recipe, write_clips
from tests.support.fast import fast_ones
from tests.support.training import (
    RecordingCallback,
    different,
    first_gradients,
    logged,
    make_trainer,
    parse,
    trained,
    weights,
)
from tiny_audio.commands.run import Run
from tiny_audio.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_tiny_model_memorizes_a_few_clips(tmp_path: Path) -> None:
    data = tmp_path / "four"
    write_clips(data, 4)
    steps = {"training__steps": 60, "training__learning_rate": 1e-2, "training__warmup_steps": 5}
    settings = {"batching__max_clips": 4, "evaluation__normalizer": "lower", "generation__max_new_tokens": 20}
    callback = RecordingCallback()
    document = changed(tiny_recipe(data), **steps, **settings)
    report = Run(parse(document), "by heart", tmp_path / "run", callback).complete()
    scores = report["evaluation"]["held_out"]
    assert (scores["wer"], scores["cer"], scores["num_utterances"]) == (0.0, 0.0, 4)
    curve = logged(tmp_path / "run", "loss")  # one value for every five steps
    assert len(curve) == 12
    assert curve[-1] < 0.3 < 2.0 < curve[0]
    assert report["training"]["steps"] == 60
    assert report["training"]["tokens"] == 60 * sum(
        len(row["text"]) + 1 for row in map(json.loads, (data / "manifest.jsonl").read_text().splitlines())
    )
    assert [step for step, _ in callback.steps] == list(range(5, 61, 5))
    assert not (tmp_path / "run" / "dropped.jsonl").exists()


def test_the_first_losses_equal_the_golden_values(document: Document, tmp_path: Path) -> None:
    trained(document, tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    for key, golden in GOLDEN.items():
        assert rows[0][key] == pytest.approx(golden[0], abs=1e-4), key
        # Later losses may differ more: AdamW's first updates depend on gradient signs, which rounding can change.
        assert [row[key] for row in rows] == pytest.approx(golden, rel=1e-2), key
    for row in rows:
        assert row["loss"] == pytest.approx(row["decoder_loss"] + 0.5 * row["ctc_loss"], abs=1e-9)


GOLDEN = {"decoder_loss": [3.11630, 3.01945, 2.98326], "ctc_loss": [14.11594, 25.03313, 22.76215]}
"""Losses on a CPU in fp32. The CTC loss rises at first, because there is no warmup."""


def test_bf16_training_keeps_trainable_weights_in_fp32(document: Document, tmp_path: Path) -> None:
    steps = {"training__steps": 15, "training__learning_rate": 5e-3, "batching__max_clips": 8}
    trainer = make_trainer(changed(document, training__precision="bf16", **steps), tmp_path)
    trainer.run()
    types = {tensor.dtype for tensor in trainer.bare_model.parameters() if tensor.requires_grad}
    assert types == {torch.float32}
    curve = logged(tmp_path, "loss")
    assert curve[-1] < 0.7 * curve[0]
    full = make_trainer(changed(document, **(steps | {"training__steps": 2})), tmp_path / "fp32")
    full.run()
    assert logged(tmp_path / "fp32", "loss")[0] == pytest.approx(curve[0], rel=0.02)
    assert logged(tmp_path / "fp32", "loss") != curve[:2]


def test_label_smoothing_changes_the_loss(document: Document, tmp_path: Path) -> None:
    trained(changed(document, training__steps=1), tmp_path / "plain")
    trained(changed(document, training__steps=1, training__label_smoothing=0.2), tmp_path / "smooth")
    assert logged(tmp_path / "plain", "loss") != logged(tmp_path / "smooth", "loss")


def test_two_accumulated_batches_equal_one_larger_batch(document: Document, tmp_path: Path) -> None:
    one = {"training__steps": 1, "training__max_gradient_norm": 1e9}
    (tmp_path / "four").mkdir()
    write_clips(tmp_path / "four", 4)
    document["data"]["train"]["clips"]["path"] = str(tmp_path / "four" / "manifest.jsonl")
    trained(changed(document, **one, batching__max_clips=4), tmp_path / "whole")
    trained(changed(document, **one, batching__max_clips=2, training__accumulation=2), tmp_path / "halves")
    (whole,), (halves,) = (
        read_metrics(tmp_path / "whole" / "metrics.jsonl"),
        read_metrics(tmp_path / "halves" / "metrics.jsonl"),
    )
    for key in ("loss", "decoder_loss", "ctc_loss", "gradient_norm"):
        assert halves[key] == pytest.approx(whole[key], rel=1e-5), key
    gradients = list(zip(first_gradients(tmp_path / "whole"), first_gradients(tmp_path / "halves"), strict=True))
    assert len(gradients) > 20
    largest = max(float(whole.abs().max()) for whole, _ in gradients)
    assert largest > 0.01
    assert max(float((whole - halves).abs().max()) for whole, halves in gradients) < 1e-6 * max(1.0, largest)


def test_gradients_are_clipped_to_the_maximum_norm(document: Document, tmp_path: Path) -> None:
    trained(changed(document, training__steps=1, training__max_gradient_norm=0.01), tmp_path)
    norm = torch.cat([gradient.flatten() for gradient in first_gradients(tmp_path)]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["gradient_norm"] > 0.1


def test_frozen_weights_do_not_change_and_adapters_do(document: Document, tmp_path: Path) -> None:
    lora = {"rank": 2, "alpha": 4.0, "targets": ["q_proj"]}
    frozen = {"encoder__freeze": True, "decoder__freeze": True, "decoder__lora": lora}
    trainer = make_trainer(changed(document, **frozen), tmp_path)
    before = weights(trainer)
    trainer.run()
    moved = different(before, weights(trainer))
    adapters = {name for name in before if "lora_" in name}
    assert len(adapters) == 4
    assert adapters <= moved
    assert {name.split(".")[0] for name in moved - adapters} == {"projector", "ctc_head"}
    assert {name for name in before if name.startswith(("projector.", "ctc_head."))} <= moved


@pytest.mark.parametrize("precision", fast_ones(["fp32", "bf16"], "fp32"))
def test_evaluation_during_training_does_not_change_the_weights(
    document: Document, tmp_path: Path, precision: str
) -> None:
    dropout = {"encoder__dropout": 0.1, "decoder__dropout": 0.1, "generation__max_new_tokens": 5}
    plain = changed(document, **dropout, training__steps=2, training__precision=precision)
    often = changed(plain, execution__evaluate_every=1, execution__evaluate_set="held_out")
    callback = RecordingCallback()
    Run(parse(plain), "plain", tmp_path / "plain", RecordingCallback()).complete()
    Run(parse(often), "often", tmp_path / "often", callback).complete()
    first, second = (tmp_path / name / "model" / "model.safetensors" for name in ("plain", "often"))
    assert first.read_bytes() == second.read_bytes()
    rows = [row for row in read_metrics(tmp_path / "often" / "metrics.jsonl") if row["kind"] == "evaluation"]
    assert [row["step"] for row in rows] == [1, 2]
    assert {row["set"] for row in rows} == {"held_out"}
    for row in rows:
        more = row["reference_loss_with_other_audio"] - row["reference_loss"]
        assert row["bits_from_audio"] == pytest.approx(more / math.log(2))
        low, high = row["bits_from_audio_interval"]
        assert low <= row["bits_from_audio"] <= high
    assert [note for note in callback.notes if note.startswith("step 1: held_out WER ")]


def test_loader_processes_do_not_change_training(document: Document, tmp_path: Path) -> None:
    speed = {"augmentation__speed": [0.9, 1.0, 1.1], "augmentation__white_noise": {"snr_db": [10.0, 30.0]}}
    speed |= {"augmentation__silence": {}}
    write_clips(tmp_path / "sounds", 3)
    sounds = {"folder": str(tmp_path / "sounds"), "probability": 0.5}
    speed |= {"augmentation__noise": sounds, "augmentation__reverberation": sounds}
    masks = {"augmentation__spec_augment": {"max_time_mask_s": 0.1}, "decoder__dropout": 0.1}
    alone = changed(document, **speed, **masks)
    helped = changed(alone, execution__num_workers=2)
    assert not different(trained(alone, tmp_path / "alone"), trained(helped, tmp_path / "helped"))
    assert logged(tmp_path / "alone", "loss") == logged(tmp_path / "helped", "loss")


def test_the_seed_determines_the_weights(document: Document, tmp_path: Path) -> None:
    first = trained(document, tmp_path / "first")
    assert not different(first, trained(document, tmp_path / "again"))
    assert different(first, trained(changed(document, training__seed=1), tmp_path / "other"))
