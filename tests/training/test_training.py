"""Training: it learns, only what should change changes, and nothing that ought not to matter does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import UNUSABLE, Document, changed, manifest_row, tiny_recipe, write_clips, write_odd_clips
from tiny_audio.commands.run import Run
from tiny_audio.config import RunFailed, UserError
from tiny_audio.data.batches import PlannedBatches
from tiny_audio.data.clips import ClipSet
from tiny_audio.data.dropped import DroppedLog, check_dropped, read_dropped
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.recipe import Recipe, TrainingConfig
from tiny_audio.sources import SOURCES, Dropped, SourceContext
from tiny_audio.training import checkpoint
from tiny_audio.training.assembly import assemble
from tiny_audio.training.batches import Batches
from tiny_audio.training.initialize import StartingPoint
from tiny_audio.training.loop import Trainer
from tiny_audio.training.metrics import MetricsLog, read_metrics
from tiny_audio.training.optimization import build_optimizer, learning_rate
from tiny_audio.training.signals import StopSignal
from tiny_audio.training.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

Weights = dict[str, Tensor]


class Listener:
    """Remembers what a run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[int, dict[str, Any]]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def step(self, step: int, values: dict[str, Any]) -> None:
        self.steps.append((step, values))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_clips(folder, 8)
    return folder


@pytest.fixture
def document(data: Path) -> Document:
    """Eight clips in batches of four, three steps, a CTC head."""
    steps = {"training__steps": 3, "training__warmup_steps": 0, "execution__log_every": 1}
    return changed(tiny_recipe(data), ctc={"weight": 0.5}, **steps)


def parse(document: Document) -> Recipe:
    return Recipe.model_validate_json(json.dumps(document))


def gather(recipe: Recipe) -> ClipSet:
    context = SourceContext(Path("unused"))
    sources = {name: SOURCES.build(source, context) for name, source in recipe.data.train.items()}
    data = recipe.data
    return ClipSet.gather(sources, data.min_duration_s, data.max_duration_s, data.target_text)


def make_trainer(
    document: Document, folder: Path, evaluate: Callable[..., dict[str, Any]] | None = None, listener: Any = None
) -> Trainer:
    recipe = parse(document)
    clips = gather(recipe)
    start = StartingPoint(recipe.training.init_from) if recipe.training.init_from else None
    model, _, target_encoder = assemble(recipe, clips, start)
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(recipe, model, clips, target_encoder, folder, StopSignal(), listener or Listener(), evaluate)


def weights(trainer: Trainer) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in trainer.bare_model.state_dict().items()}


def trained(document: Document, folder: Path, **options: Any) -> Weights:
    trainer = make_trainer(document, folder, **options)
    trainer.run()
    return weights(trainer)


def different(first: Weights, second: Weights) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


# --- it learns


def test_a_tiny_model_learns_a_handful_of_clips_by_heart(data: Path, tmp_path: Path) -> None:
    steps = {"training__steps": 120, "training__learning_rate": 5e-3, "training__warmup_steps": 5}
    settings = {"batching__max_clips": 8, "evaluation__normalizer": "lower", "generation__max_new_tokens": 20}
    listener = Listener()
    document = changed(tiny_recipe(data), **steps, **settings)
    report = Run(parse(document), "by heart", tmp_path / "run", listener).complete()
    scores = report["evaluation"]["held_out"]
    assert (scores["wer"], scores["cer"], scores["num_utterances"]) == (0.0, 0.0, 8)
    curve = losses(tmp_path / "run")
    assert len(curve) == 24
    assert curve[-1] < 0.3 < 2.0 < curve[0]
    assert report["training"]["steps"] == 120
    assert report["training"]["tokens"] == 120 * sum(
        len(row["text"]) + 1 for row in map(json.loads, (data / "manifest.jsonl").read_text().splitlines())
    )
    assert [step for step, _ in listener.steps] == list(range(5, 121, 5))
    assert not (tmp_path / "run" / "dropped.jsonl").exists()


def test_the_first_losses_are_what_they_were(document: Document, tmp_path: Path) -> None:
    trained(document, tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    for key, golden in GOLDEN.items():
        assert rows[0][key] == pytest.approx(golden[0], abs=1e-4), key
        # AdamW's first steps are nearly signs of gradients, so rounding shows.
        assert [row[key] for row in rows] == pytest.approx(golden, rel=1e-2), key
    for row in rows:
        assert row["loss"] == pytest.approx(row["decoder_loss"] + 0.5 * row["ctc_loss"], abs=1e-9)


GOLDEN = {"decoder_loss": [3.11630, 3.01945, 2.98326], "ctc_loss": [14.11594, 25.03313, 22.76215]}
"""On a CPU in fp32. The CTC loss rises at first: the warmup is left out here."""


def test_bf16_trains_and_keeps_what_trains_in_fp32(document: Document, tmp_path: Path) -> None:
    steps = {"training__steps": 15, "training__learning_rate": 5e-3, "batching__max_clips": 8}
    trainer = make_trainer(changed(document, training__precision="bf16", **steps), tmp_path)
    trainer.run()
    assert {tensor.dtype for tensor in trainer.bare_model.parameters()} == {torch.float32}
    curve = losses(tmp_path)
    assert curve[-1] < 0.7 * curve[0]
    full = make_trainer(changed(document, **steps), tmp_path / "fp32")
    full.run()
    assert losses(tmp_path / "fp32")[0] == pytest.approx(curve[0], rel=0.02)
    assert losses(tmp_path / "fp32") != curve


def test_label_smoothing_is_part_of_the_loss(document: Document, tmp_path: Path) -> None:
    trained(changed(document, training__steps=1), tmp_path / "plain")
    trained(changed(document, training__steps=1, training__label_smoothing=0.2), tmp_path / "smooth")
    assert losses(tmp_path / "plain") != losses(tmp_path / "smooth")


# --- accumulation


def first_gradients(folder: Path) -> list[Tensor]:
    """Gradients of a run of one step, from AdamW's first average, which is a tenth of them."""
    saved = checkpoint.latest(folder / "checkpoints")
    assert saved is not None
    state = torch.load(saved / "optimizer.pt", weights_only=True)["state"]
    return [state[number]["exp_avg"] * 10 for number in sorted(state)]


def test_two_batches_of_two_are_one_batch_of_four(document: Document, tmp_path: Path) -> None:
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


def test_gradients_are_scaled_down_to_their_greatest_norm(document: Document, tmp_path: Path) -> None:
    trained(changed(document, training__steps=1, training__max_gradient_norm=0.01), tmp_path)
    norm = torch.cat([gradient.flatten() for gradient in first_gradients(tmp_path)]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["gradient_norm"] > 0.1


# --- schedule and optimizer


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


def test_the_rate_of_each_step_is_logged(document: Document, tmp_path: Path) -> None:
    rates = {"training__schedule": "linear", "training__warmup_steps": 1, "training__learning_rate": 1e-3}
    trained(changed(document, **rates), tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 1e-3, 5e-4])


def test_weights_decay_in_matrices_only(document: Document, tmp_path: Path) -> None:
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


def test_a_part_has_its_own_rate_and_decay(document: Document, tmp_path: Path) -> None:
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


def test_a_parts_rate_follows_the_schedule(document: Document, tmp_path: Path) -> None:
    trainer = make_trainer(changed(document, encoder__learning_rate=1e-5, training__schedule="linear"), tmp_path)
    trainer.run()
    last = {group["peak"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert last[1e-5] / last[trainer.config.learning_rate] == pytest.approx(1e-5 / trainer.config.learning_rate)
    assert 0 < last[1e-5] < 1e-5


def test_weight_decay_reaches_the_weights(document: Document, tmp_path: Path) -> None:
    plain = trained(changed(document, training__steps=1), tmp_path / "plain")
    decayed = trained(changed(document, training__steps=1, training__weight_decay=0.5), tmp_path / "decayed")
    name = "projector.down.weight"
    assert name in different(plain, decayed)
    assert "ctc_head.bias" not in different(plain, decayed)


# --- checkpoints


def state_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_checkpoint_brings_everything_back(document: Document, tmp_path: Path) -> None:
    first = make_trainer(document, tmp_path / "first")
    progress = first.run()
    saved = checkpoint.latest(tmp_path / "first" / "checkpoints")
    assert saved is not None
    assert saved.name == "step-000000003"
    after = torch.rand(3)

    second = make_trainer(changed(document, training__seed=9), tmp_path / "second")
    assert different(weights(first), weights(second))
    optimizer, notes = second.optimizer, []
    loaded = checkpoint.load_newest(saved.parent, second.bare_model, optimizer, notes.append, World())
    # What the last checkpoint itself took comes after it.
    assert loaded.beside_s < progress.beside_s
    assert replace(loaded, beside_s=progress.beside_s, rated_j=progress.rated_j) == progress
    assert notes == ["continuing from step 3 (step-000000003)"]
    assert torch.equal(torch.rand(3), after)
    assert not different(weights(first), weights(second))
    checkpoint.save(tmp_path, second.bare_model, optimizer, progress, 1, World())
    again = tmp_path / saved.name
    tensors = torch.load(again / "optimizer.pt", weights_only=True)["state"]
    for number, state in torch.load(saved / "optimizer.pt", weights_only=True)["state"].items():
        assert all(torch.equal(value, tensors[number][key]) for key, value in state.items())


def test_uncommitted_checkpoints_are_ignored_and_removed(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nothing") is None
    (tmp_path / "step-000000007").mkdir()
    (tmp_path / "step-000000010").mkdir()
    torn = tmp_path / ".writing-step-000000013"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half of")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000000010"
    assert not torn.exists()


def test_the_newest_checkpoints_are_kept(document: Document, tmp_path: Path) -> None:
    settings = {"training__steps": 5, "execution__checkpoint_every": 1, "execution__keep_checkpoints": 2}
    trained(changed(document, **settings), tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000004", "step-000000005"]


def test_a_checkpoint_of_other_tensors_is_refused(document: Document, tmp_path: Path) -> None:
    trained(changed(document, training__steps=1), tmp_path)
    without = {**changed(document, training__steps=1), "ctc": None}
    with pytest.raises(RunFailed, match=r"does not hold the tensors that this recipe trains \(ctc_head.bias, ctc_he"):
        make_trainer(without, tmp_path).run()
    wider = changed(document, training__steps=1, projector__hidden_dim=65)
    with pytest.raises(RunFailed, match=r"holds projector\.\w+\.weight as \[.*64.*\], and this recipe trains \[.*65"):
        make_trainer(wider, tmp_path).run()


def test_checkpoints_hold_what_trains_and_no_more(document: Document, tmp_path: Path) -> None:
    trainer = make_trainer(changed(document, encoder__freeze=True), tmp_path)
    trainer.run()
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None
    names = load_file(saved / "model.safetensors").keys()
    trains = {name for name, tensor in trainer.bare_model.named_parameters() if tensor.requires_grad}
    buffers = {name for name, _ in trainer.bare_model.named_buffers()} & trainer.bare_model.state_dict().keys()
    assert names == trains | buffers
    assert not [name for name in trains if name.startswith("encoder.")]


# --- the log


def test_a_restart_takes_out_what_comes_again(tmp_path: Path) -> None:
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


def test_what_is_not_finite_is_null_in_the_log(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.write("train", 1, loss=math.nan, gradient_norm=math.inf, epoch=0, set="a", ctc_loss=None)
    log.close()
    row = (
        '{"kind": "train", "step": 1, "loss": null, "gradient_norm": null, "epoch": 0, "set": "a", "ctc_loss": null}\n'
    )
    assert (tmp_path / "metrics.jsonl").read_text() == row


# --- steps that are not finite


def test_a_learning_rate_beyond_reason_ends_the_run(document: Document, tmp_path: Path) -> None:
    steps = {"training__steps": 30, "training__learning_rate": 1e30, "training__max_skipped_steps": 3}
    trainer = make_trainer(changed(document, **steps, execution__checkpoint_every=1), tmp_path)
    with pytest.raises(RunFailed) as failure:
        trainer.run()
    message = str(failure.value)
    assert message.startswith(
        "4 steps in a row had a loss or gradient that is not finite; the last good checkpoint is "
    )
    assert message.endswith(". Lower training.learning_rate, or lengthen training.warmup_steps.")
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert str(saved) in message
    assert all(tensor.isfinite().all() for tensor in load_file(saved / "model.safetensors").values())  # type: ignore[operator]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["skipped_steps"] for row in rows][-3:] == [1, 2, 3]
    assert rows[-1]["loss"] is None


def test_one_bad_step_is_skipped_and_counted(document: Document, tmp_path: Path) -> None:
    listener = Listener()
    trainer = make_trainer(changed(document, execution__log_every=3), tmp_path, listener=listener)
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
    assert listener.notes == ["step 2 skipped: its loss or gradient is not finite"]
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["skipped_steps"] == 1
    assert math.isfinite(row["loss"])


# --- what changes


def test_frozen_parts_stay_and_adapters_learn(document: Document, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluating_while_training_changes_nothing(document: Document, tmp_path: Path, precision: str) -> None:
    dropout = {"encoder__dropout": 0.1, "decoder__dropout": 0.1, "generation__max_new_tokens": 10}
    plain = changed(document, **dropout, training__precision=precision)
    often = changed(plain, execution__evaluate_every=1, execution__evaluate_set="held_out")
    listener = Listener()
    Run(parse(plain), "plain", tmp_path / "plain", Listener()).complete()
    Run(parse(often), "often", tmp_path / "often", listener).complete()
    first, second = (tmp_path / name / "model" / "model.safetensors" for name in ("plain", "often"))
    assert first.read_bytes() == second.read_bytes()
    rows = [row for row in read_metrics(tmp_path / "often" / "metrics.jsonl") if row["kind"] == "evaluation"]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {row["set"] for row in rows} == {"held_out"}
    assert [note for note in listener.notes if note.startswith("step 1: held_out WER ")]


def test_loader_processes_change_nothing(document: Document, tmp_path: Path) -> None:
    speed = {"augmentation__speed": [0.9, 1.0, 1.1], "augmentation__white_noise": {"snr_db": [10.0, 30.0]}}
    speed |= {"augmentation__silence": {}}
    write_clips(tmp_path / "sounds", 3)
    sounds = {"folder": str(tmp_path / "sounds"), "probability": 0.5}
    speed |= {"augmentation__noise": sounds, "augmentation__reverberation": sounds}
    masks = {"augmentation__spec_augment": {"max_time_mask_s": 0.1}, "decoder__dropout": 0.1}
    alone = changed(document, **speed, **masks)
    helped = changed(alone, execution__num_workers=2)
    assert not different(trained(alone, tmp_path / "alone"), trained(helped, tmp_path / "helped"))
    assert losses(tmp_path / "alone") == losses(tmp_path / "helped")


def test_a_batch_is_the_same_whatever_the_number_of_threads(document: Document) -> None:
    document = changed(document, augmentation__speed=[0.9], augmentation__white_noise={"snr_db": [10.0, 30.0]})
    alone = first_batch(document)
    torch.set_num_threads(2)
    try:
        assert torch.equal(first_batch(document).waveforms, alone.waveforms)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_seed_decides(document: Document, tmp_path: Path) -> None:
    first = trained(document, tmp_path / "first")
    assert not different(first, trained(document, tmp_path / "again"))
    assert different(first, trained(changed(document, training__seed=1), tmp_path / "other"))


# --- training.init_from


@pytest.fixture(scope="module")
def earlier(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a CTC head, trained on other texts."""
    folder = tmp_path_factory.mktemp("earlier")
    write_clips(folder, 8)
    (folder / "manifest.jsonl").write_text((folder / "manifest.jsonl").read_text().replace('"yes"', '"why quiz"'))
    steps = {"training__steps": 1, "training__warmup_steps": 0}
    document = changed(tiny_recipe(folder), ctc={"weight": 0.5}, **steps, data__evaluation={})
    Run(parse(document), "earlier", folder / "run", Listener()).complete()
    return folder / "run"


def starting(document: Document, path: Path, parts: Sequence[str] | None = None, **changes: Any) -> Any:
    """Model, tokenizer and target_encoder as a run from ``path`` begins with them."""
    document = changed(document, training__init_from={"path": str(path), "parts": parts}, **changes)
    recipe = parse(document)
    assert recipe.training.init_from is not None
    return assemble(recipe, gather(recipe), StartingPoint(recipe.training.init_from))


def test_everything_is_taken_over(document: Document, earlier: Path) -> None:
    for path in (earlier, earlier / "model"):
        model, tokenizer, target_encoder = starting(document, path)
        saved = load_file(earlier / "model" / "model.safetensors")
        assert saved
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.items())
        assert tokenizer.unk_token_id not in tokenizer.encode("quiz", add_special_tokens=False)
        assert "q" in target_encoder.ctc.characters


def test_only_the_named_parts_are_taken(document: Document, earlier: Path) -> None:
    model, tokenizer, target_encoder = starting(document, earlier, ["encoder", "projector"])
    saved = load_file(earlier / "model" / "model.safetensors")
    taken = {name for name in saved if name in (own := model.state_dict()) and torch.equal(own[name], saved[name])}
    assert {name for name in saved if name.startswith(("encoder.", "projector."))} <= taken
    assert "ctc_head.weight" not in taken
    assert "q" not in target_encoder.ctc.characters
    assert tokenizer.unk_token_id in tokenizer.encode("quiz", add_special_tokens=False)


def test_what_was_started_from_is_part_of_a_run(document: Document, earlier: Path, tmp_path: Path) -> None:
    start = {"path": str(earlier), "parts": None}
    report = Run(parse(changed(document, training__init_from=start)), "x", tmp_path, Listener()).complete()
    assert len(report["provenance"]["init_from"]) == 64


def test_a_folder_without_a_model(document: Document, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        starting(document, tmp_path)
    assert str(refusal.value) == (
        f"training.init_from.path: {tmp_path} holds no trained model (no config.json and *.safetensors); finish that "
        "run first, or give the folder of an exported model"
    )


def test_a_damaged_model(document: Document, earlier: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 50)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"training\.init_from: .*config\.json is damaged"):
        starting(document, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"training\.init_from: cannot read the weights in"):
        starting(document, tmp_path, ["encoder"])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"projector__hidden_dim": 48}, r"projector\.down\.weight is \[32, 64\] there and \[32, 48\] here"),
        ({"encoder__lora": {"rank": 2, "alpha": 2.0, "targets": ["q_proj"]}, "encoder__freeze": True}, r"is missing"),
        ({"ctc": None}, r"ctc_head\.bias has no place in this recipe's model"),
    ],
)
def test_parts_that_do_not_fit(document: Document, earlier: Path, changes: Document, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as refusal:
        starting(document, earlier, **changes)
    message = str(refusal.value)
    assert message.startswith(f"training.init_from: {earlier / 'model'} does not fit this recipe:\n  ")
    assert message.endswith("\nUse the same parts as that run, or name the ones to take in training.init_from.parts.")


def test_many_problems_are_cut_short(document: Document, earlier: Path) -> None:
    lora = {"rank": 2, "alpha": 2.0, "targets": ["q_proj", "k_proj", "v_proj"]}
    with pytest.raises(UserError, match=r"\n  … and \d+ more\n"):
        starting(document, earlier, encoder__lora=lora, encoder__freeze=True)


def test_a_start_without_a_ctc_head(document: Document, data: Path, tmp_path: Path) -> None:
    plain = {**changed(document, training__steps=1), "ctc": None}
    Run(parse(plain), "plain", tmp_path, Listener()).complete()
    with pytest.raises(UserError) as refusal:
        starting(document, tmp_path)
    assert str(refusal.value) == (
        f"training.init_from: {tmp_path / 'model'} has no CTC head; name the parts to take, without ctc_head"
    )
    starting(document, tmp_path, ["encoder", "projector", "decoder"])


# --- clips that cannot be used


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Twelve good clips and one of each that cannot be used; some show only when they are decoded."""
    manifest = write_clips(tmp_path, 12)
    write_odd_clips(tmp_path)
    with manifest.open("a") as file:
        for name in UNUSABLE:
            file.write(manifest_row(tmp_path / name, "yes", 1.0))
        file.write(manifest_row(tmp_path / "clip000.wav", " ", 1.0))
        file.write(manifest_row(tmp_path / "clip001.flac", "no", 99.0))
    return tmp_path


REASONS = {
    **UNUSABLE,
    "one_sample.wav": "duration_differs",  # the manifest says 1 s
    "manifest.jsonl:19": "text_missing",
    "clip001.flac:20": "too_long",
}


def mixed_recipe(folder: Path, share: float, **changes: Any) -> Document:
    return changed(tiny_recipe(folder), data__max_dropped_share=share, training__warmup_steps=0, **changes)


def test_unusable_clips_below_the_ceiling_are_listed(mixed: Path, tmp_path: Path) -> None:
    settings = {"training__steps": 5, "execution__log_every": 5}
    make_trainer(mixed_recipe(mixed, 0.5, **settings), tmp_path / "run").run()
    listed = {drop.id: drop for drop in read_dropped(tmp_path / "run" / "dropped.jsonl")}
    assert {name: drop.reason for name, drop in listed.items()} == {
        f"clips/{name}": reason for name, reason in REASONS.items()
    }
    assert listed["clips/nan.wav"].detail == "nan.wav: holds NaN or infinite samples"
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["dropped_clips"] == len(REASONS)


def test_too_many_unusable_clips_stop_the_run(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        make_trainer(mixed_recipe(mixed, 0.25), tmp_path / "run").run()
    message = str(refusal.value)
    assert message.startswith("5 of 19 training clips are unusable (26.3%; data.max_dropped_share is 25.0%):\n  ")
    assert "\n  text_missing: 1, such as clips/manifest.jsonl:19: " in message
    assert message.endswith("\nMend the data, or raise data.max_dropped_share.")
    listed = [drop.reason for drop in read_dropped(tmp_path / "run" / "dropped.jsonl")]
    assert len(listed) == 6
    assert "too_long" in listed  # and not counted


def test_what_the_index_shows_stops_before_the_first_step(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^1 of 19 training clips are unusable"):
        make_trainer(mixed_recipe(mixed, 0.04), tmp_path / "run").run()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert len(read_dropped(tmp_path / "run" / "dropped.jsonl")) == 2


def test_after_a_start_over_only_what_is_dropped_now_is_listed(mixed: Path, tmp_path: Path) -> None:
    trainer = make_trainer(mixed_recipe(mixed, 0.5, training__steps=1), tmp_path / "run")
    DroppedLog(tmp_path / "run" / "dropped.jsonl").add([Dropped("clips/gone", "empty", "an earlier attempt's")])
    trainer.run()
    assert "clips/gone" not in {drop.id for drop in read_dropped(tmp_path / "run" / "dropped.jsonl")}


def test_each_dropped_clip_is_listed_once(tmp_path: Path) -> None:
    path = tmp_path / "dropped.jsonl"
    DroppedLog(path).add([Dropped("a", "empty", "first"), Dropped("b", "empty", "é\u2028")])
    DroppedLog(path).add([Dropped("a", "too_long", "second"), Dropped("c", "empty", "")])
    assert [(drop.id, drop.detail) for drop in read_dropped(path)] == [("a", "first"), ("b", "é\u2028"), ("c", "")]


def test_the_message_names_an_example_of_each_reason() -> None:
    dropped = [Dropped("a", "empty", "0 bytes"), Dropped("b", "empty", "no samples"), Dropped("c", "channels", "99")]
    dropped += [Dropped(f"d{number}", "too_long", "lasts 99 s") for number in range(100)]  # as the recipe wants it
    check_dropped(dropped, 6, 0.5)
    with pytest.raises(UserError) as refusal:
        check_dropped(dropped, 5, 0.5)
    assert str(refusal.value) == (
        "3 of 5 training clips are unusable (60.0%; data.max_dropped_share is 50.0%):\n"
        "  empty: 2, such as b: no samples\n"
        "  channels: 1, such as c: 99\n"
        "Mend the data, or raise data.max_dropped_share."
    )


def test_no_clip_at_all(tmp_path: Path) -> None:
    write_clips(tmp_path, 2)
    recipe = parse(changed(tiny_recipe(tmp_path), data__min_duration_s=5.0))
    with pytest.raises(UserError) as refusal:
        assemble(recipe, gather(recipe), None)
    assert str(refusal.value) == (
        "data.train has no usable clip; 2 dropped, the first: lasts 1.10 s, and data allows 5 to 10 s; check the data, "
        "and data.min_duration_s and data.max_duration_s"
    )


def first_batch(document: Document) -> Any:
    """The first of the first epoch."""
    recipe = parse(document)
    clips = gather(recipe)
    _, _, target_encoder = assemble(recipe, clips, None)
    plan = clips.clips.plan(recipe.batching, 0, 0)
    return PlannedBatches(clips.clips, plan, target_encoder, recipe.augmentation, recipe.data.max_duration_s, 0, 0)[0]


def test_silence_around_clips_counts_as_audio_and_stays_within_bounds(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 4)
    with manifest.open("a") as file:
        file.write(manifest_row(tmp_path / "clip001.flac", "no " * 11, 0.61))  # in 31 frames of its own is no room
    document = changed(tiny_recipe(tmp_path), ctc={"weight": 0.5}, data__max_duration_s=1.5, batching__max_clips=8)
    plain = first_batch(document)
    silence = {"max_before_s": 5.0, "max_after_s": 5.0, "probability": 1.0}
    padded = first_batch(changed(document, augmentation__silence=silence))
    assert [drop.reason for drop in plain.dropped] == ["text_too_long"]
    assert not padded.dropped
    assert len(padded.lengths) == len(plain.lengths) + 1
    assert 1.49 < int(padded.lengths.max()) / SAMPLE_RATE <= 1.5
    assert padded.audio_s > plain.audio_s


def test_a_text_that_does_not_fit_its_clip_is_dropped(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 2)
    with manifest.open("a") as file:
        file.write(manifest_row(tmp_path / "clip001.flac", "no " * 40, 0.61))
        file.write(manifest_row(tmp_path / "clip000.wav", "yes", 3.0))
    batch = first_batch(changed(tiny_recipe(tmp_path), ctc={"weight": 0.5}))
    assert {drop.id: drop.reason for drop in batch.dropped} == {
        "clips/clip001.flac:3": "text_too_long",
        "clips/clip000.wav:4": "duration_differs",
    }
    details = " ".join(drop.detail for drop in batch.dropped)
    assert "119 characters do not fit 31 frames" in details
    assert "lasts 1.10 s, and its index says 3.00 s; correct the index" in details
    assert len(batch.targets) == 2
    assert batch.waveforms.shape[0] == len(batch.seeds) == len(batch.ctc_targets) == 2


def test_a_text_that_fits_its_clip_only_unhurried_is_used_so(tmp_path: Path) -> None:
    """Speeding a clip up takes frames away; that is not the data's fault, and nothing to drop it for."""
    manifest = write_clips(tmp_path, 2)
    with manifest.open("a") as file:
        file.write(manifest_row(tmp_path / "clip001.flac", "stop now go on left stop no ba", 0.61))
    document = changed(tiny_recipe(tmp_path), ctc={"weight": 0.5}, augmentation={"speed": [1.1], "white_noise": {}})
    first, again = first_batch(document), first_batch(document)
    assert not first.dropped
    lengths = {row.numel(): length for row, length in zip(first.targets, first.lengths.tolist(), strict=True)}
    assert lengths[max(lengths)] == 9760, "as recorded"
    assert 0.61 * 16_000 / 1.1 < 9_000
    assert sorted(first.lengths.tolist())[0] < 9_000, "others are sped up"
    assert torch.equal(first.waveforms, again.waveforms)


def test_a_clip_that_is_not_sped_up_after_all_keeps_its_bound(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 2)
    with manifest.open("a") as file:
        for _ in range(12):  # some have silence only where they are not sped up
            file.write(manifest_row(tmp_path / "clip001.flac", "stop now go on left stop no ba", 0.61))
    augmentation = {"speed": [1.1], "silence": {"max_before_s": 5.0, "max_after_s": 5.0}}
    document = changed(tiny_recipe(tmp_path), ctc={"weight": 0.5}, augmentation=augmentation, batching__max_clips=16)
    batch = first_batch(changed(document, data__max_duration_s=1.5))
    assert len(batch.lengths) == 14
    assert int(batch.lengths.max()) <= 1.5 * SAMPLE_RATE


def test_a_text_with_a_control_token_is_dropped(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 2)
    with manifest.open("a") as file:
        file.write(manifest_row(tmp_path / "clip001.flac", "no <|end|>", 0.61))
    batch = first_batch(tiny_recipe(tmp_path))
    assert {drop.id: drop.reason for drop in batch.dropped} == {"clips/clip001.flac:3": "special_token"}
    assert "'<|end|>'" in batch.dropped[0].detail
    assert len(batch.targets) == 2


def test_targets_are_rewritten_and_what_is_left_empty_is_dropped(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 2)
    with manifest.open("a") as file:
        file.write(manifest_row(tmp_path / "clip001.flac", "Uh [noise]", 0.61))
        file.write(manifest_row(tmp_path / "clip001.flac", "I'm UM here", 0.61))
    batch = first_batch(changed(tiny_recipe(tmp_path), data__target_text="whisper_english"))
    assert len(batch.targets) == 3
    (drop,) = batch.dropped
    assert (drop.id, drop.reason, drop.detail) == (
        "clips/clip001.flac:3",
        "text_missing",
        "data.target_text leaves nothing of its transcript",
    )


def test_a_plan_that_is_another_one_now_is_not_continued(tmp_path: Path) -> None:
    write_clips(tmp_path, 4)
    recipe = parse(changed(tiny_recipe(tmp_path), batching__max_clips=2))
    clips = gather(recipe)
    _, _, target_encoder = assemble(recipe, clips, None)
    batches = Batches(recipe, clips, target_encoder, World(), lambda dropped: None, StopSignal(), pin_memory=False)
    plan = clips.clips.plan(recipe.batching, recipe.training.seed, 0)
    assert next(batches.start(0, 1, plan.hash)).index == 1
    with pytest.raises(RunFailed) as failure:
        next(batches.start(0, 1, "another"))
    assert str(failure.value) == (
        "epoch 0 was planned by another version of the code, and batch 1 of it is another; continue with the version "
        "that began, or start over"
    )


def test_an_epoch_without_clips_is_passed_over(tmp_path: Path) -> None:
    """Three clips, each in one epoch of ten; then so rarely that it is a mistake."""

    def mixed(weight: float) -> Document:
        source = tiny_recipe(tmp_path)["data"]["train"]["clips"]
        mix = {"name": "mix", "sources": {"few": {"source": source, "weight": weight}}}
        return changed(tiny_recipe(tmp_path), data__train={"mix": mix}, training__steps=4, execution__log_clips=True)

    write_clips(tmp_path, 3)
    make_trainer(mixed(0.1), tmp_path / "run").run()
    epochs = [row["epoch"] for row in read_metrics(tmp_path / "run" / "clips.jsonl")]
    assert len(epochs) == 4
    assert epochs[0] > 0
    assert epochs == sorted(set(epochs))
    with pytest.raises(RunFailed) as failure:
        make_trainer(mixed(1e-7), tmp_path / "never").run()
    assert str(failure.value) == (
        "the weights in data.train leave 1,000 epochs on end without a clip, up to epoch 1000: they add up to 3e-07 "
        "clips an epoch; raise them"
    )


def test_a_clip_that_comes_again_in_an_epoch_is_augmented_otherwise(tmp_path: Path) -> None:
    write_clips(tmp_path, 2)
    document = changed(tiny_recipe(tmp_path), augmentation={"speed": [0.8, 0.9, 1.1, 1.2]}, batching__max_clips=8)
    mixed = {"source": document["data"]["train"]["clips"], "weight": 4}
    recipe = parse(changed(document, data__train={"mix": {"name": "mix", "sources": {"clips": mixed}}}))
    clips = gather(recipe)
    _, _, target_encoder = assemble(recipe, clips, None)
    plan = clips.clips.plan(recipe.batching, 0, 0)
    whole = PlannedBatches(clips.clips, plan, target_encoder, recipe.augmentation, recipe.data.max_duration_s, 0, 0)[0]
    assert len(set(whole.seeds)) == 8
    assert len(set(whole.lengths.tolist())) > 2
    parts = [
        PlannedBatches(
            clips.clips, plan, target_encoder, recipe.augmentation, recipe.data.max_duration_s, 0, 0, rank, 2
        )[0]
        for rank in range(2)
    ]
    assert [parts[place % 2].seeds[place // 2] for place in range(8)] == whole.seeds
