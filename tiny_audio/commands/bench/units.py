"""Run one unit of a trained benchmark: train one variant with one seed, then decode every set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tiny_audio.commands.bench.features import Features
from tiny_audio.config import RunFailed
from tiny_audio.data.batches import Batch, PlannedBatches
from tiny_audio.data.clips import BOUNDS, ClipSet
from tiny_audio.data.dropped import check_dropped
from tiny_audio.data.order import plan_epoch
from tiny_audio.data.target_encoder import TargetEncoder, TargetError
from tiny_audio.evaluation import transcribe_clips
from tiny_audio.evaluation.batches import batched
from tiny_audio.evaluation.hypotheses import Hypothesis, hypothesis
from tiny_audio.frames import Frames
from tiny_audio.model.alignment import AlignmentLoss
from tiny_audio.model.decoding import Transcript
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.splicing import TargetScores
from tiny_audio.recipe import Recipe
from tiny_audio.sources import Dropped
from tiny_audio.training.loop import Budget, Counts, TrainingLoop
from tiny_audio.training.optimization import build_optimizer
from tiny_audio.training.precision import autocast
from tiny_audio.training.progress import Progress


@dataclass(frozen=True)
class TrainingBatch:
    """A batch of B training clips."""

    frames: Callable[[], Frames]
    """A function that runs the encoder or reads cached frames. The training step calls this function under autocast."""
    targets: list[Tensor]
    """B rows of token ids, each ending in the end token."""
    ctc_targets: list[list[int]] | None
    """B rows of CTC labels. None if no CTC head is trained."""

    @property
    def counts(self) -> Counts:
        """Numbers of clips, target tokens and CTC labels."""
        return Counts(len(self.targets), sum(map(len, self.targets)), sum(map(len, self.ctc_targets or [])))


Epochs = Callable[[int], Iterator[TrainingBatch]]
"""A function that yields the batches of the epoch with the given index."""


class BenchmarkClips(Protocol):
    """The clips of a benchmark, as cached frames or as waveforms."""

    def prepare(self, model: TinyAudioModel) -> None:
        """Freeze the weights whose output is cached."""

    def epochs(self, model: TinyAudioModel, recipe: Recipe, target_encoder: TargetEncoder) -> Epochs:
        """Return the epochs of training. The recipe's seed determines the order of the clips."""

    def transcribe(self, model: TinyAudioModel, recipe: Recipe, tokenizer: Any, name: str) -> list[Hypothesis]:
        """Return the hypotheses of the evaluation set ``name``, in the order of its clips."""


@dataclass(frozen=True)
class CachedClips:
    """Clips as cached frames of a frozen encoder."""

    train: Features
    evaluation: Mapping[str, Features]
    without_decoder: bool = False
    """Whether hypotheses are the tokens most similar to the audio embeddings, instead of the decoder's output."""

    def prepare(self, model: TinyAudioModel) -> None:
        """Freeze the CTC head, because its logits are cached."""
        if model.ctc_head is not None:
            model.ctc_head.requires_grad_(False)

    def epochs(self, model: TinyAudioModel, recipe: Recipe, target_encoder: TargetEncoder) -> Epochs:
        """Return epochs of cached frames. The batches have no CTC targets: the encoder and the CTC head are frozen."""
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

        def batches(epoch: int) -> Iterator[TrainingBatch]:
            for batch in plan_epoch(durations, recipe.batching, recipe.training.seed, epoch):
                chosen = [usable[index] for index in batch.tolist()]
                targets = [torch.tensor(ids[index], device=model.device) for index in chosen]
                yield TrainingBatch(partial(features.frames, chosen, model.device), targets, None)

        return batches

    def transcribe(self, model: TinyAudioModel, recipe: Recipe, tokenizer: Any, name: str) -> list[Hypothesis]:
        """Transcribe a set in batches of clips of similar duration."""
        features = self.evaluation[name]
        indices = {clip.id: index for index, clip in enumerate(features.clips)}
        rows: dict[str, Hypothesis] = {}
        for batch in batched(features.clips, recipe.execution.evaluate_max_padded_s):
            frames = features.frames([indices[clip.id] for clip in batch], model.device)
            if self.without_decoder:
                assert isinstance(model.alignment, AlignmentLoss)
                ids = model.alignment.nearest(model.decoder, *model.projector(frames))
                transcripts = [Transcript(tokenizer.decode(row).strip(), None, truncated=False) for row in ids]
            else:
                transcripts = model.transcribe_frames(frames, tokenizer)
            rows |= {clip.id: hypothesis(clip, found) for clip, found in zip(batch, transcripts, strict=True)}
        return [rows[clip.id] for clip in features.clips]


@dataclass(frozen=True)
class WaveformClips:
    """Clips as waveforms, which the encoder processes at every step."""

    train: ClipSet
    evaluation: Mapping[str, ClipSet]

    def prepare(self, model: TinyAudioModel) -> None:
        """Do nothing, because no output is cached."""

    def epochs(self, model: TinyAudioModel, recipe: Recipe, target_encoder: TargetEncoder) -> Epochs:
        """Return epochs of augmented waveforms."""
        clips, seed = self.train.clips, recipe.training.seed
        augmentation, longest_s = recipe.augmentation, recipe.data.max_duration_s

        def frames(batch: Batch) -> Frames:
            return model.encode(batch.waveforms, batch.lengths, augmentation.of_features(batch.seeds))

        def batches(epoch: int) -> Iterator[TrainingBatch]:
            plan = clips.plan(recipe.batching, seed, epoch, augmentation, longest_s)
            planned = PlannedBatches(clips, plan, target_encoder, augmentation, longest_s, seed, epoch)
            for batch in (planned[index].to(model.device) for index in range(len(planned))):
                if batch.targets:
                    yield TrainingBatch(partial(frames, batch), batch.targets, batch.ctc_targets)

        return batches

    def transcribe(self, model: TinyAudioModel, recipe: Recipe, tokenizer: Any, name: str) -> list[Hypothesis]:
        """Transcribe a set as a run does. Clips that cannot be read are left out."""
        evaluated, max_padded_s = self.evaluation[name], recipe.execution.evaluate_max_padded_s
        return transcribe_clips(
            model, tokenizer, evaluated.clips, max_duration_s=evaluated.max_duration_s, max_padded_s=max_padded_s
        )[0]


@dataclass(frozen=True)
class Trained:
    """Result of training one unit."""

    steps: int
    wall_s: float
    """Duration of all steps in seconds. Building and evaluating the model are not included."""
    skipped_steps: int
    curve: list[tuple[int, float]]
    """Pairs of a step and the mean loss per token since the previous pair. The loss is the decoder loss. If training
    leaves out the decoder, it is the alignment loss."""


def train(
    model: TinyAudioModel,
    recipe: Recipe,
    epochs: Epochs,
    budget: Budget,
    without_decoder: bool = False,
) -> Trained:
    """Train until the budget is spent. If ``without_decoder``, train with the alignment loss alone.

    Raises:
        RunFailed: training diverged, a GPU ran out of memory, or no clip can be used.
    """
    progress, curve = Progress(), list[tuple[int, float]]()
    optimizer = build_optimizer(model, recipe)
    model.train()
    score = partial(_score, model, recipe, progress, without_decoder)
    loop = TrainingLoop(model, optimizer, recipe, score, budget, progress)
    alone_steps = 0 if without_decoder else recipe.alone_steps
    for _ in loop.steps(_endless(epochs)):
        if progress.step <= alone_steps:
            progress.start_window()  # leave this step out of the curve, because it has no decoder loss
        elif progress.step % recipe.execution.log_every == 0 and progress.window_tokens:
            loss = progress.window_alignment_loss if without_decoder else progress.window_decoder_loss
            curve.append((progress.step, loss / progress.window_tokens))
            progress.start_window()
    return Trained(progress.step, progress.wall_s, progress.skipped_steps, curve)


def _endless(epochs: Epochs) -> Iterator[TrainingBatch]:
    epoch = 0
    while True:
        found = False
        for batch in epochs(epoch):
            found = True
            yield batch
        if not found:
            raise RunFailed(f"no clip of epoch {epoch} could be used; `tiny-audio run` lists the reasons")
        epoch += 1


def _score(
    model: TinyAudioModel, recipe: Recipe, progress: Progress, without_decoder: bool, batch: TrainingBatch
) -> TargetScores:
    config = recipe.training
    with autocast(config.precision, model.device):
        return model.score_frames(
            batch.frames(),
            batch.targets,
            batch.ctc_targets,
            config.label_smoothing,
            skip_decoder=without_decoder or progress.step < recipe.alone_steps,
        )


def decode(
    model: TinyAudioModel, recipe: Recipe, tokenizer: Any, clips: BenchmarkClips, names: Sequence[str]
) -> tuple[dict[str, list[Hypothesis]], float]:
    """Transcribe every set. Return the hypotheses, and the number of audio embeddings per second of audio."""
    model.eval()
    counted = 0

    def count(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        nonlocal counted
        counted += int(output[1].sum())

    handle = model.projector.register_forward_hook(count)
    try:
        with torch.no_grad(), autocast(recipe.training.precision, model.device):
            found = {name: clips.transcribe(model, recipe, tokenizer, name) for name in names}
    finally:
        handle.remove()
    seconds = sum(row["duration"] for rows in found.values() for row in rows)
    return found, counted / max(1e-9, seconds)
