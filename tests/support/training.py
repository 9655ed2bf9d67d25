"""Runs and trainers of tiny models, and their results."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.conftest import Document, changed, tiny_recipe, write_clips
from tiny_audio.commands.run import Run
from tiny_audio.config import RunFailed, Stopped, UserError
from tiny_audio.data.clips import ClipSet
from tiny_audio.decoders import DECODERS, DecoderContext, build_tokenizer
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.world import World
from tiny_audio.sources import SOURCES, SourceContext
from tiny_audio.training import checkpoint
from tiny_audio.training.assembly import assemble
from tiny_audio.training.initialize import StartingPoint
from tiny_audio.training.metrics import read_metrics
from tiny_audio.training.signals import StopSignal
from tiny_audio.training.trainer import Trainer

Weights = dict[str, Tensor]
ALONE = World()
LORA = {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "v_proj"]}


class RecordingCallback:
    """Records the notes and logged steps of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[int, dict[str, Any]]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def step(self, step: int, values: dict[str, Any]) -> None:
        self.steps.append((step, values))


class ActingCallback(RecordingCallback):
    """Calls a function when a given step is logged."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        super().__init__()
        self._step, self._act = step, act

    def step(self, step: int, values: dict[str, Any]) -> None:
        super().step(step, values)
        if step == self._step:
            self._act()


def recipe_on(folder: Path) -> Document:
    """Return a recipe of two steps with a pretrained, frozen decoder with adapters."""
    write_clips(folder, 8)
    tiny: Any = DECODERS.entry("smollm3").config.tiny()  # type: ignore[attr-defined]
    tokenizer = build_tokenizer(tiny, ["stop now", "go on", "turn right", "left", "yes"])
    torch.manual_seed(0)
    decoder: Any = DECODERS.build(tiny, DecoderContext(tokenizer))
    decoder.model.save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    settings = {"steps": 2, "warmup_steps": 0, "learning_rate": 1e-2}
    return changed(
        tiny_recipe(folder),
        decoder={"name": "smollm3", "pretrained": str(folder / "lm"), "lora": LORA},
        training=settings,
        execution={"device": "cpu", "checkpoint_every": 1, "keep_checkpoints": 5, "log_every": 1},
        data__evaluation={},
    )


def parse(document: Document) -> Recipe:
    return Recipe.model_validate_json(json.dumps(document))


def gather(recipe: Recipe) -> ClipSet:
    context = SourceContext(Path("unused"))
    sources = {name: SOURCES.build(source, context) for name, source in recipe.data.train.items()}
    data = recipe.data
    return ClipSet.gather(
        sources, data.min_duration_s, data.max_duration_s, data.target_text, keep_empty=data.keep_empty
    )


def run(document: Document, folder: Path, callback: RecordingCallback | None = None) -> RecordingCallback:
    """Run a recipe, and return its callback."""
    callback = callback or RecordingCallback()
    Run(parse(document), "run", folder, callback).complete()
    return callback


def run_in_two_parts(document: Document, folder: Path) -> None:
    """Run a recipe in two parts: a signal stops it after the first step, and then it continues."""
    with pytest.raises(Stopped):
        run(document, folder, ActingCallback(1, lambda: os.kill(os.getpid(), signal.SIGINT)))
    run(document, folder)


def exported(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def steps_kept(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def make_trainer(
    document: Document,
    folder: Path,
    evaluate: Callable[..., dict[str, Any]] | None = None,
    callback: RecordingCallback | None = None,
    stop: StopSignal | None = None,
) -> Trainer:
    recipe = parse(document)
    clips = gather(recipe)
    start = StartingPoint(recipe.training.init_from) if recipe.training.init_from else None
    model, _, target_encoder = assemble(recipe, clips, start)
    folder.mkdir(parents=True, exist_ok=True)
    callback = callback or RecordingCallback()
    return Trainer(recipe, model, clips, target_encoder, folder, stop or StopSignal(), callback, evaluate)


def weights(trainer: Trainer) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in trainer.bare_model.state_dict().items()}


def trained(document: Document, folder: Path, **options: Any) -> Weights:
    trainer = make_trainer(document, folder, **options)
    trainer.run()
    return weights(trainer)


def different(first: Weights, second: Weights) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


def logged(folder: Path, key: str) -> list[Any]:
    return [row[key] for row in read_metrics(folder / "metrics.jsonl") if key in row]


def first_gradients(folder: Path) -> list[Tensor]:
    """Return the gradients of a run of one step. After one step, AdamW's ``exp_avg`` is a tenth of the gradient."""
    saved = checkpoint.latest(folder / "checkpoints")
    assert saved is not None
    state = torch.load(saved / "optimizer.pt", weights_only=True)["state"]
    return [state[index]["exp_avg"] * 10 for index in sorted(state)]


EXACT_DECODER = {
    "name": "causal_lm",
    "init": "random",
    "model_type": "gpt_neox",
    "overrides": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "tokenizer": {"kind": "characters"},
    "freeze": False,
}
"""A decoder that computes in float64 if its weights are float64. Llama is unsuitable, because its norms always compute
in float32."""


@dataclass
class Trained:
    """The result of a training in one process."""

    weights: dict[str, Tensor]
    notes: list[str]
    is_sharded: bool
    error: Exception | None


def train(
    document: Document,
    folder: Path,
    world: World = ALONE,
    *,
    dtype: torch.dtype = torch.float32,
    prepare: Callable[[Trainer], None] = lambda trainer: None,
) -> Trained:
    """Train in one of the processes of ``world``."""
    if dtype == torch.float64:
        document = {**document, "decoder": EXACT_DECODER}
    recipe, callback = parse(document), RecordingCallback()
    clips = gather(recipe)
    model, _, target_encoder = assemble(recipe, clips, None)
    folder.mkdir(parents=True, exist_ok=True)
    with StopSignal() as stop:
        trainer = Trainer(recipe, model.to(dtype), clips, target_encoder, folder, stop, callback, world=world)
        if dtype == torch.float64:  # also compute the mel filters in float64
            trainer.bare_model.encoder.register_forward_pre_hook(lambda module, args: (args[0].double(), *args[1:]))
        sharded = all(isinstance(tensor, DTensor) for tensor in trainer.bare_model.parameters())
        prepare(trainer)
        error = None
        try:
            trainer.run()
        except (UserError, RunFailed, Stopped) as failure:
            error = failure
    last = checkpoint.latest(folder / "checkpoints")
    return Trained(load_file(last / "model.safetensors") if last else {}, callback.notes, sharded, error)
