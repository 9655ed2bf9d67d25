"""One unit of a trained benchmark: one variant under one seed, trained, then decoded on every set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tiny_audio.commands.bench.features import Features
from tiny_audio.config import RunFailed
from tiny_audio.data.augmentation import SpecAugment
from tiny_audio.data.batches import PlannedBatches
from tiny_audio.data.clips import BOUNDS, ClipSet
from tiny_audio.data.dropped import check_dropped
from tiny_audio.data.order import plan_epoch
from tiny_audio.data.target_encoder import TargetEncoder, TargetError
from tiny_audio.evaluation import Hypothesis, hypothesis, transcribe_clips
from tiny_audio.frames import Frames
from tiny_audio.model.model import TargetScores, TinyAudioModel
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.device import set_tf32
from tiny_audio.sources import Dropped
from tiny_audio.training.optimization import build_optimizer, learning_rate
from tiny_audio.training.precision import set_types
from tiny_audio.training.step import take_step
from tiny_audio.training.world import World


@dataclass(frozen=True)
class Budget:
    """What every variant may spend: steps, or seconds of training."""

    steps: int | None = None
    seconds: float | None = None

    def share(self, step: int, seconds: float) -> float:
        """How much of it is spent, 1 is all."""
        if self.seconds is not None:
            return seconds / self.seconds
        assert self.steps is not None, "a budget has one or the other"
        return step / self.steps


@dataclass(frozen=True)
class TrainingBatch:
    """B clips to learn from."""

    frames: Callable[[], Frames]
    """Encodes, or reads what was encoded; called inside the step."""
    targets: list[Tensor]
    """B rows of token ids, each ending in the end token."""
    ctc_targets: list[list[int]] | None
    """B rows of labels; None where no CTC head trains."""


class Material(Protocol):
    """The clips of a benchmark, as frames or as waveforms."""

    def prepare(self, model: TinyAudioModel) -> None:
        """Freeze what does not train with this material."""

    def epoch(
        self, model: TinyAudioModel, recipe: Recipe, target_encoder: TargetEncoder, epoch: int
    ) -> Iterator[TrainingBatch]:
        """Batches of one epoch, in the order that the recipe's seed plans."""

    def transcribe(self, model: TinyAudioModel, recipe: Recipe, tokenizer: Any, name: str) -> list[Hypothesis]:
        """Hypotheses of the evaluation set ``name``, in the order of its clips."""


@dataclass(frozen=True)
class CachedMaterial:
    """Frames that were computed once."""

    train: Features
    evaluation: Mapping[str, Features]

    def prepare(self, model: TinyAudioModel) -> None:
        """The CTC head's logits are computed already."""
        if model.ctc_head is not None:
            model.ctc_head.requires_grad_(False)

    def epoch(
        self, model: TinyAudioModel, recipe: Recipe, target_encoder: TargetEncoder, epoch: int
    ) -> Iterator[TrainingBatch]:
        """Mapped from disk; no CTC loss, since nothing below the projector trains."""
        features, dropped = self.train, list(self.train.dropped)
        ids: dict[int, list[int]] = {}
        for index, (clip, samples) in enumerate(zip(features.clips, features.num_samples, strict=True)):
            try:
                ids[index] = target_encoder.encode(clip.utterance.text, samples).ids
            except TargetError as error:
                dropped.append(Dropped(clip.id, error.reason, str(error)))
        usable = list(ids)
        num_clips = len(usable) + sum(drop.reason not in BOUNDS for drop in dropped)
        check_dropped(dropped, num_clips, recipe.data.max_dropped_share)
        durations = [features.clips[index].utterance.duration_s for index in usable]
        for batch in plan_epoch(durations, recipe.batching, recipe.training.seed, epoch):
            chosen = [usable[place] for place in batch.tolist()]
            targets = [torch.tensor(ids[index], device=model.device) for index in chosen]

            def frames(chosen: list[int] = chosen) -> Frames:
                return features.frames(chosen, model.device)

            yield TrainingBatch(frames, targets, None)

    def transcribe(self, model: TinyAudioModel, recipe: Recipe, tokenizer: Any, name: str) -> list[Hypothesis]:
        """In batches of similar length."""
        features = self.evaluation[name]
        durations = [clip.utterance.duration_s for clip in features.clips]
        waiting = sorted(range(len(durations)), key=lambda index: -durations[index])
        rows: dict[int, Hypothesis] = {}
        while waiting:
            size = max(1, int(recipe.execution.evaluate_max_padded_s / max(0.1, durations[waiting[0]])))
            batch, waiting = waiting[:size], waiting[size:]
            transcripts = model.transcribe_frames(features.frames(batch, model.device), tokenizer)
            for index, transcript in zip(batch, transcripts, strict=True):
                rows[index] = hypothesis(features.clips[index], transcript)
        return [rows[index] for index in sorted(rows)]


@dataclass(frozen=True)
class WaveformMaterial:
    """Clips that pass the encoder at every step, as in ``tiny-audio run``."""

    train: ClipSet
    evaluation: Mapping[str, ClipSet]

    def prepare(self, model: TinyAudioModel) -> None:
        """All that the recipe trains, trains."""

    def epoch(
        self, model: TinyAudioModel, recipe: Recipe, target_encoder: TargetEncoder, epoch: int
    ) -> Iterator[TrainingBatch]:
        """Augmented and encoded at every step."""
        clips, seed = self.train.clips, recipe.training.seed
        plan = clips.plan(recipe.batching, seed, epoch)
        spec_augment = recipe.augmentation.spec_augment
        batches = PlannedBatches(
            clips, plan, target_encoder, recipe.augmentation, recipe.data.max_duration_s, seed, epoch
        )
        for batch in (batches[number].to(model.device) for number in range(len(batches))):
            if not batch.targets:
                continue
            transform = SpecAugment(spec_augment, batch.seeds) if spec_augment else None

            def frames(batch: Any = batch, transform: Any = transform) -> Frames:
                return model.encode(batch.waveforms, batch.lengths, transform)

            yield TrainingBatch(frames, batch.targets, batch.ctc_targets)

    def transcribe(self, model: TinyAudioModel, recipe: Recipe, tokenizer: Any, name: str) -> list[Hypothesis]:
        """As an evaluation does; clips that cannot be read are left out."""
        evaluated = self.evaluation[name]
        clips = evaluated.clips
        rows = {}
        for row in transcribe_clips(
            model,
            tokenizer,
            clips,
            max_duration_s=evaluated.max_duration_s,
            max_padded_s=recipe.execution.evaluate_max_padded_s,
        ):
            if not isinstance(row, Dropped):
                rows[row["id"]] = row
        return [rows[clip.id] for clip in clips if clip.id in rows]


@dataclass
class Trained:
    """How a training went."""

    steps: int = 0
    wall_s: float = 0.0
    """Of the steps alone, without building the model and without evaluation."""
    skipped_steps: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean of the decoder's loss per token since the last)."""


def place(model: TinyAudioModel, recipe: Recipe, device: torch.device) -> None:
    """Onto the device, in the types that training has there: fp32 masters, and on a GPU bf16 for what is frozen."""
    set_tf32(recipe.training.tf32)
    set_types(model, recipe.training.precision, device)
    model.to(device)


def train(
    model: TinyAudioModel, recipe: Recipe, epochs: Callable[[int], Iterator[TrainingBatch]], budget: Budget
) -> Trained:
    """Train until the budget is spent; the schedule runs over the budget, whichever its unit.

    Raises:
        RunFailed: too many steps in a row were not finite, or no clip can be used.
    """
    config = recipe.training
    optimizer = build_optimizer(model, recipe)
    batches, trained = _endless(epochs), Trained()
    loss_sum, tokens_sum, skipped_in_a_row = 0.0, 0, 0
    model.train()
    while (spent := budget.share(trained.steps, trained.wall_s)) < 1:
        started = time.monotonic()
        group = [next(batches) for _ in range(config.accumulation)]
        for settings in optimizer.param_groups:
            settings["lr"] = learning_rate(config, int(spent * config.steps), settings["peak"])
        tokens = sum(len(row) for batch in group for row in batch.targets)
        result = take_step(
            model,
            optimizer,
            [lambda batch=batch: _score(model, recipe, batch) for batch in group],  # type: ignore[misc]
            num_tokens=tokens,
            num_labels=sum(len(row) for batch in group for row in batch.ctc_targets or []),
            ctc_weight=recipe.ctc.weight if recipe.ctc else 0.0,
            max_gradient_norm=config.max_gradient_norm,
            world=World(),
        )
        if result.is_finite:
            loss_sum, tokens_sum, skipped_in_a_row = loss_sum + result.decoder_loss, tokens_sum + tokens, 0
        else:
            skipped_in_a_row += 1
            trained.skipped_steps += 1
        trained.steps += 1
        trained.wall_s += time.monotonic() - started
        if skipped_in_a_row > config.max_skipped_steps:
            raise RunFailed(
                f"{skipped_in_a_row} steps in a row had a loss or gradient that is not finite, up to step "
                f"{trained.steps}; lower training.learning_rate, or leave this variant out"
            )
        if trained.steps % recipe.execution.log_every == 0 and tokens_sum:
            trained.curve.append((trained.steps, loss_sum / tokens_sum))
            loss_sum, tokens_sum = 0.0, 0
    return trained


def _endless(epochs: Callable[[int], Iterator[TrainingBatch]]) -> Iterator[TrainingBatch]:
    epoch = 0
    while True:
        found = False
        for batch in epochs(epoch):
            found = True
            yield batch
        if not found:
            raise RunFailed(f"no clip of epoch {epoch} could be used; `tiny-audio run` lists the reasons")
        epoch += 1


def _score(model: TinyAudioModel, recipe: Recipe, batch: TrainingBatch) -> TargetScores:
    config = recipe.training
    with torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        return model.score_frames(batch.frames(), batch.targets, batch.ctc_targets, config.label_smoothing)


def decode(
    model: TinyAudioModel, recipe: Recipe, tokenizer: Any, material: Material, names: Sequence[str]
) -> tuple[dict[str, list[Hypothesis]], float]:
    """Hypotheses of every set, and how many embeddings the projector gave for a second of their audio."""
    model.eval()
    counted = 0

    def count(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        nonlocal counted
        counted += int(output[1].sum())

    handle = model.projector.register_forward_hook(count)
    bf16 = recipe.training.precision == "bf16"
    try:
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            found = {name: material.transcribe(model, recipe, tokenizer, name) for name in names}
    finally:
        handle.remove()
    seconds = sum(row["duration"] for rows in found.values() for row in rows)
    return found, counted / max(1e-9, seconds)
