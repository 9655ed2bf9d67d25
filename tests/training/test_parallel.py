"""Several processes train like a single process: same batches, losses, gradients and weights. They stop together."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.conftest import Document, changed, manifest_row, tiny_recipe, write_clips
from tests.support.fast import fast_ones
from tests.support.training import (
    ALONE,
    RecordingCallback,
    Trained,
    first_gradients,
    logged,
    parse,
    train,
)
from tests.support.worlds import in_processes, in_world
from tiny_audio.commands.run import Run
from tiny_audio.config import RunFailed, Stopped, TinyAudioError, UserError
from tiny_audio.data.dropped import read_dropped
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.export.load import load_model
from tiny_audio.projectors import PROJECTORS
from tiny_audio.runtime.world import World
from tiny_audio.training import checkpoint
from tiny_audio.training.metrics import read_metrics
from tiny_audio.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
PARALLEL = ("ddp", "fsdp")
FSDP_SLOW = ("ddp", pytest.param("fsdp", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_clips(folder, 14)
    return folder


@pytest.fixture
def document(data: Path) -> Document:
    """Return a recipe with batches of five clips, which two processes split into three and two. The last batch of an
    epoch has four clips. Each step has two batches."""
    settings = {"training__steps": 6, "training__accumulation": 2, "batching__max_clips": 5, "execution__log_every": 1}
    return changed(tiny_recipe(data), ctc={"weight": 0.5}, alignment={"weight": 0.4}, data__evaluation={}, **settings)


def complete(size: int, document: Document, folder: Path) -> list[Any]:
    """Complete a run in ``size`` processes, and return the result or the error of each process."""
    return in_processes(size, lambda rank: Run(parse(document), "run", folder, RecordingCallback()).complete())


def assert_printed_once(printed: Exception | None, silent: Exception | None) -> None:
    """Check that both processes raise the same error, and that only one of them prints it."""
    assert isinstance(printed, TinyAudioError)
    assert isinstance(silent, TinyAudioError)
    assert isinstance(printed, type(silent))
    assert str(printed) == str(silent)
    assert printed.origin is None
    assert silent.origin is not None


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= tolerance


# --- the same arithmetic


# The fast run tests only FSDP here. For DDP, test_a_run_continues_with_another_number_of_processes is enough.
@pytest.mark.parametrize("parallel", fast_ones(PARALLEL, "fsdp"))
@pytest.mark.parametrize("steps", fast_ones([2, 50], 2))
def test_losses_equal_those_of_one_process(document: Document, tmp_path: Path, parallel: str, steps: int) -> None:
    document = changed(document, training__steps=steps, execution__parallel=parallel)
    alone = train(document, tmp_path / "one", dtype=torch.float64)
    two = in_world(2, lambda world: train(document, tmp_path / "two", world, dtype=torch.float64))
    assert not alone.is_sharded
    assert [process.is_sharded for process in two] == [parallel == "fsdp"] * 2
    for key in ("loss", "decoder_loss", "ctc_loss", "alignment_loss", "gradient_norm", "audio_hours"):
        one = logged(tmp_path / "one", key)
        assert min(one) > 0
        assert len(one) == steps
        assert logged(tmp_path / "two", key) == pytest.approx(one, abs=1e-9), key
    assert_close(two[0].weights, alone.weights, 1e-9)
    for name in ("epoch", "tokens", "skipped_steps"):
        one, other = (getattr(progress(tmp_path / run), name) for run in ("one", "two"))
        assert one == other, name


def progress(folder: Path) -> checkpoint.Progress:
    last = checkpoint.latest(folder / "checkpoints")
    assert last is not None
    return checkpoint._read(last).progress


@pytest.mark.parametrize("parallel", FSDP_SLOW)
def test_the_first_gradients_equal_those_of_one_process(document: Document, tmp_path: Path, parallel: str) -> None:
    """Each of the two processes computes the start of the prompt once for all its clips. The single process uses
    ``sdpa`` and computes the start for each clip."""
    one_step = {"training__steps": 1, "training__warmup_steps": 0, "training__max_gradient_norm": 1e9}
    document = changed(document, prompt={"user": "turn right now{audio}"}, **one_step, execution__parallel=parallel)
    train(changed(document, decoder__attention="sdpa"), tmp_path / "one")
    in_world(2, lambda world: train(document, tmp_path / "two", world))
    one, two = first_gradients(tmp_path / "one"), first_gradients(tmp_path / "two")
    assert len(one) == len(two) > 20
    largest = max(float(gradient.abs().max()) for gradient in one)
    assert largest > 0.01
    assert max(float((ours - theirs).abs().max()) for ours, theirs in zip(one, two, strict=True)) < 1e-5 * largest


def test_more_processes_than_clips_train_like_one(document: Document, tmp_path: Path) -> None:
    """One of the three processes never has a clip."""
    document = changed(document, batching__max_clips=2, training__steps=2)
    alone = train(document, tmp_path / "one", dtype=torch.float64)
    three = in_world(3, lambda world: train(document, tmp_path / "three", world, dtype=torch.float64))
    assert logged(tmp_path / "three", "loss") == pytest.approx(logged(tmp_path / "one", "loss"), abs=1e-9)
    assert_close(three[0].weights, alone.weights, 1e-9)


def test_gradients_are_reduced_once_per_step(document: Document, tmp_path: Path) -> None:
    counts: list[int] = []

    def count(bucket: Any) -> Any:
        counts.append(bucket.index())
        work = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True)
        assert work is not None
        return work.get_future().then(lambda done: done.value()[0])

    def work(world: World) -> int:
        train(
            changed(document, training__steps=2, training__accumulation=3),
            tmp_path,
            world,
            prepare=lambda trainer: trainer.model.register_comm_hook(None, lambda state, bucket: count(bucket)),
        )
        return counts.count(0)

    assert in_world(2, work) == [2, 2]


def parts() -> dict[str, Document]:
    registries: dict[str, Any] = {"encoder": ENCODERS, "projector": PROJECTORS, "decoder": DECODERS}
    return {
        name: {kind: {"name": name, **registry.entry(name).config.tiny().model_dump(mode="json", exclude_unset=True)}}
        for kind, registry in registries.items()
        for name in registry.names()
    }


@pytest.mark.slow
@pytest.mark.parametrize("parallel", PARALLEL)
def test_every_part_trains_in_several_processes(document: Document, tmp_path: Path, parallel: str) -> None:
    settings = {"training__steps": 2, "data__max_dropped_share": 0.5, "execution__parallel": parallel}
    documents = {name: {**changed(document, **settings), **part} for name, part in parts().items()}
    assert len(documents) > 15
    for name, changes in documents.items():
        train(changes, tmp_path / "one" / name)

    def work(world: World) -> None:
        for name, changes in documents.items():
            train(changes, tmp_path / "two" / name, world)

    in_world(2, work)
    for name in documents:
        one = logged(tmp_path / "one" / name, "loss")
        assert len(one) == 2
        assert logged(tmp_path / "two" / name, "loss") == pytest.approx(one, rel=1e-5), name


LORA = {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "v_proj"]}


# In the fast run, test_steps_without_the_decoder_equal_those_of_one_process saves and loads adapters.
@pytest.mark.slow
@pytest.mark.parametrize("parallel", PARALLEL)
def test_adapters_are_saved_and_loaded(document: Document, tmp_path: Path, parallel: str) -> None:
    """Encoder and decoder are frozen, with adapters, bf16 and gradient checkpointing. The export is complete."""
    for kind in ("encoder", "decoder"):
        lora = LORA | {"dora": kind == "decoder"}
        document[kind] |= {"freeze": True, "lora": lora, "gradient_checkpointing": True}
    document = changed(document, training__steps=2, training__precision="bf16", execution__parallel=parallel)
    Run(parse(document), "one", tmp_path / "one", RecordingCallback()).complete()
    first, second = complete(2, document, tmp_path / "two")
    assert first["training"]["steps"] == 2
    assert second is None
    assert logged(tmp_path / "two", "loss") == pytest.approx(logged(tmp_path / "one", "loss"), rel=5e-3)
    saved = checkpoint.latest(tmp_path / "two" / "checkpoints")
    assert saved is not None
    trained, exported = load_file(saved / "model.safetensors"), load_file(tmp_path / "two" / "model/model.safetensors")
    adapters = [name for name in trained if "lora" in name]
    assert len(adapters) == 16 + 4, "two matrices for each layer, and magnitudes in the decoder"
    assert all(torch.equal(exported[name], trained[name]) for name in trained)
    assert min(float(trained[name].abs().max()) for name in adapters if "lora_B" in name) > 1e-4
    loaded = load_model(tmp_path / "two" / "model")[0].state_dict()
    assert all(torch.equal(loaded[name], exported[name]) for name in exported)


@pytest.mark.parametrize("parallel", FSDP_SLOW)
def test_evaluation_during_and_after_training_equals_that_of_one_process(
    document: Document, data: Path, tmp_path: Path, parallel: str
) -> None:
    (data / "few.jsonl").write_text("".join((data / "manifest.jsonl").read_text().splitlines(keepends=True)[:5]))
    held_out = {"held_out": {"name": "manifest", "path": str(data / "few.jsonl")}}
    often = {"execution__evaluate_every": 2, "execution__evaluate_set": "held_out", "evaluation__num_bootstrap": 100}
    chosen = {"training__keep_best": {"set": "held_out"}, "training__average_last": 2, "execution__checkpoint_every": 2}
    settings = {"training__steps": 4, "generation__max_new_tokens": 5}
    document = changed(document, data__evaluation=held_out, **often, **chosen, **settings)
    one = Run(parse(document), "one", tmp_path / "one", RecordingCallback()).complete()
    assert one is not None
    first, second = complete(2, changed(document, execution__parallel=parallel), tmp_path / "two")
    assert first["evaluation"]["held_out"]["wer"] == one["evaluation"]["held_out"]["wer"]
    assert first["training"]["final_weights"] == one["training"]["final_weights"]
    assert second is None
    assert [row["step"] for row in read_metrics(tmp_path / "two" / "metrics.jsonl") if "wer" in row] == [2, 4]
    assert logged(tmp_path / "two", "wer") == logged(tmp_path / "one", "wer")


# --- stopped and continued


def stop_after(steps: int, rank: int, world: World) -> Callable[[Trainer], None]:
    """Return a function for ``train(prepare=...)``. In step ``steps``, it sends a signal to the process of ``rank``."""

    def prepare(trainer: Trainer) -> None:
        passes: list[int] = []

        def count(*_: object) -> None:
            passes.append(1)
            if len(passes) == 2 * steps and world.rank == rank:
                os.kill(os.getpid(), signal.SIGTERM)

        trainer.bare_model.projector.register_forward_hook(count)

    return prepare


@pytest.mark.parametrize("parallel", FSDP_SLOW)
def test_a_run_continues_with_another_number_of_processes(document: Document, tmp_path: Path, parallel: str) -> None:
    """The run starts with two processes, and the second gets a signal. The run continues with one process, and then
    with three. It uses the same clips as an uninterrupted run in one process."""
    document = changed(document, execution__log_clips=True, training__steps=5, execution__parallel=parallel)
    alone = train(document, tmp_path / "one", dtype=torch.float64)

    def step_by_step(world: World, steps: int) -> Trained:
        prepare = stop_after(steps, world.size - 1, world)
        return train(document, tmp_path / "run", world, dtype=torch.float64, prepare=prepare)

    first, second = in_world(2, lambda world: step_by_step(world, 2))
    assert isinstance(first.error, Stopped)
    assert "step 2 is saved" in str(first.error)
    assert_printed_once(first.error, second.error)
    third = step_by_step(ALONE, 2)
    assert isinstance(third.error, Stopped)
    assert "continuing from step 2 (step-000000002)" in third.notes
    last = in_world(3, lambda world: step_by_step(world, 100))
    assert [process.error for process in last] == [None] * 3
    clips = read_metrics(tmp_path / "one" / "clips.jsonl")
    assert len(clips) == 10
    assert read_metrics(tmp_path / "run" / "clips.jsonl") == clips
    assert logged(tmp_path / "run", "loss") == pytest.approx(logged(tmp_path / "one", "loss"), abs=1e-9)
    assert_close(last[0].weights, alone.weights, 1e-9)


@pytest.mark.parametrize("parallel", FSDP_SLOW)
def test_steps_without_the_decoder_equal_those_of_one_process(
    document: Document, tmp_path: Path, parallel: str
) -> None:
    """Only step 3 has the decoder. The encoder has adapters. A further run is stopped in step 1, and then continued."""
    document["encoder"] |= {"freeze": True, "lora": LORA}
    alignment = {"weight": 0.4, "alone_steps": 2}
    document = changed(document, alignment=alignment, training__steps=3, execution__parallel=parallel)
    whole = train(document, tmp_path / "one", dtype=torch.float64)
    two = in_world(2, lambda world: train(document, tmp_path / "two", world, dtype=torch.float64))
    assert [loss is None for loss in logged(tmp_path / "one", "decoder_loss")] == [True, True, False]
    for key in ("loss", "ctc_loss", "alignment_loss", "gradient_norm"):
        assert logged(tmp_path / "two", key) == pytest.approx(logged(tmp_path / "one", key), abs=1e-9), key
    assert_close(two[0].weights, whole.weights, 1e-9)
    stopped = train(document, tmp_path / "parts", dtype=torch.float64, prepare=stop_after(1, 0, ALONE))
    assert isinstance(stopped.error, Stopped)
    adapters = [tensor for name, tensor in stopped.weights.items() if "lora_B" in name]
    assert adapters
    assert all(tensor.any() for tensor in adapters), "adapters are trained without the decoder"
    assert_close(train(document, tmp_path / "parts", dtype=torch.float64).weights, whole.weights, 0.0)


def test_dropout_depends_on_step_and_process_only(document: Document, tmp_path: Path) -> None:
    document = changed(document, encoder__dropout=0.2, decoder__dropout=0.2, training__steps=2)
    whole = in_world(2, lambda world: train(document, tmp_path / "whole", world))

    def stopping(world: World) -> Trained:
        return train(document, tmp_path / "parts", world, prepare=stop_after(1, 0, world))

    in_world(2, stopping)
    parts = in_world(2, lambda world: train(document, tmp_path / "parts", world))
    assert "continuing from step 1 (step-000000001)" in parts[0].notes
    assert_close(parts[0].weights, whole[0].weights, 0.0)
    train(changed(document, training__steps=1, encoder__dropout=0.0, decoder__dropout=0.0), tmp_path / "dry")
    assert logged(tmp_path / "dry", "loss")[0] != pytest.approx(logged(tmp_path / "whole", "loss")[0], rel=1e-4)


# --- decisions of all processes


@pytest.mark.parametrize("parallel", FSDP_SLOW)
def test_a_nonfinite_gradient_in_one_process_is_skipped_in_all(
    document: Document, tmp_path: Path, parallel: str
) -> None:
    def spoil(world: World) -> Callable[[Trainer], None]:
        def prepare(trainer: Trainer) -> None:
            passes: list[int] = []

            def nothing_finite(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> Any:
                passes.append(1)
                # A step has two batches, so pass 5 is the first of step 3. Change it in the second process only.
                return (output[0] * torch.nan, output[1]) if len(passes) == 5 and world.rank == 1 else output

            trainer.bare_model.projector.register_forward_hook(nothing_finite)

        return prepare

    document = changed(document, training__steps=4, execution__parallel=parallel)
    two = in_world(2, lambda world: train(document, tmp_path, world, prepare=spoil(world)))
    assert two[0].notes == ["step 3 skipped: its loss or gradient is not finite"]
    assert progress(tmp_path).skipped_steps == 1
    assert all(tensor.isfinite().all() for tensor in two[0].weights.values())
    assert [loss is None for loss in logged(tmp_path, "loss")] == [False, False, True, False]


@pytest.mark.slow  # test_steps.py tests this with one process
def test_a_diverging_run_stops_in_all_processes(document: Document, tmp_path: Path) -> None:
    document = changed(document, training__learning_rate=1e30, training__warmup_steps=0, training__max_skipped_steps=2)
    first, second = in_world(2, lambda world: train(document, tmp_path, world))
    assert isinstance(first.error, RunFailed)
    assert str(first.error).startswith("3 steps in a row, up to step 4")
    assert_printed_once(first.error, second.error)


def test_clips_that_one_process_drops_are_listed_once(document: Document, tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, 12)
    with manifest.open("a") as file:
        for number in range(6):
            (tmp_path / f"broken{number}.wav").write_bytes(b"no audio")
            file.write(manifest_row(tmp_path / f"broken{number}.wav", "yes", 1.0))
    document["data"]["train"]["clips"]["path"] = str(manifest)
    document = changed(document, data__max_dropped_share=0.5, training__steps=2)
    train(document, tmp_path / "one")
    in_world(2, lambda world: train(document, tmp_path / "two", world))
    one, two = (read_dropped(tmp_path / run / "dropped.jsonl") for run in ("one", "two"))
    assert len(two) == len({drop.id for drop in two}) == 6
    assert sorted(drop.id for drop in one) == sorted(drop.id for drop in two)
    assert logged(tmp_path / "two", "dropped_clips")[-1] == 6
    assert logged(tmp_path / "two", "loss") == pytest.approx(logged(tmp_path / "one", "loss"), rel=1e-4)
    few = changed(document, data__max_dropped_share=0.25)
    first, second = in_world(2, lambda world: train(few, tmp_path / "few", world))
    assert isinstance(first.error, UserError)
    assert "of 18 training clips are unusable" in str(first.error)
    assert_printed_once(first.error, second.error)
    assert first.weights  # weights of the last good step


# --- processes that do not fit together


@pytest.mark.parametrize(("sets", "name"), [("train__clips", "training clips"), ("evaluation__held_out", "'held_out'")])
def test_processes_with_different_clips_are_rejected(
    document: Document, data: Path, tmp_path: Path, sets: str, name: str
) -> None:
    scored = {"execution__evaluate_every": 2, "execution__evaluate_set": "held_out", "execution__parallel": "fsdp"}
    (data / "other.jsonl").write_text("".join((data / "manifest.jsonl").read_text().splitlines(keepends=True)[:9]))

    def work(rank: int) -> Any:
        own = {f"data__{sets}__path": str(data / "other.jsonl")} if rank else {}
        held_out = {"name": "manifest", "path": str(data / "manifest.jsonl")}
        here = changed(document, data__evaluation__held_out=held_out, **scored, **own)
        return Run(parse(here), "run", tmp_path / "run", RecordingCallback()).complete()

    first, second = in_processes(2, work)
    assert isinstance(second, UserError)
    assert re.match(rf"process 1 has a different .*set .*{name} \(", str(second))
    assert str(second).endswith("); give all machines the same files")
    assert_printed_once(second, first)
