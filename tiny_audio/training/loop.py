"""The training loop: short enough to read in one sitting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader

from tiny_audio.augmentation import SpecAugment
from tiny_audio.config import RunFailed, Stopped
from tiny_audio.data.clips import Batch, ClipSet, Labeler, PlannedBatches, check_dropped, read_dropped, write_dropped
from tiny_audio.device import device_of, set_tf32
from tiny_audio.model import TinyAudioModel
from tiny_audio.plan.work import Work
from tiny_audio.recipe import Recipe
from tiny_audio.sources import Dropped
from tiny_audio.training import checkpoint
from tiny_audio.training.compilation import compile_layers, uncompiled
from tiny_audio.training.fused import fused_cross_entropy
from tiny_audio.training.host import Host
from tiny_audio.training.ledger import Ledger
from tiny_audio.training.metrics import MetricsLog
from tiny_audio.training.optimization import build_optimizer, learning_rate
from tiny_audio.training.signals import StopSignal


class Watcher(Protocol):
    """Who is told how training goes, such as a progress bar."""

    def step(self, step: int, values: dict[str, Any]) -> None:
        """After every logged step."""

    def note(self, message: str) -> None:
        """Something happened that a person wants to know."""


@dataclass
class _Window:
    """Sums since the last line of the log; losses, tokens and labels of the steps that were not skipped."""

    decoder_loss: float = 0.0
    ctc_loss: float = 0.0
    tokens: int = 0
    labels: int = 0


class Trainer:
    """Trains one model by one recipe, in one run folder, from wherever the last checkpoint stands.

    Args:
        recipe: what to do.
        model: freshly assembled; a checkpoint's weights go over it.
        clips: the training clips.
        labeler: turns transcripts into targets.
        run_dir: ``checkpoints/``, ``metrics.jsonl`` and ``dropped.jsonl`` live here.
        stop: asked between steps.
        watcher: told about progress.
        evaluate: scores the model while training: ``model -> {"set": …, "wer": …, …}``.
        work: what a clip takes, for the ledger; None where it is not known.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: TinyAudioModel,
        clips: ClipSet,
        labeler: Labeler,
        run_dir: Path,
        stop: StopSignal,
        watcher: Watcher,
        evaluate: Callable[[TinyAudioModel], dict[str, Any]] | None = None,
        work: Work | None = None,
    ) -> None:
        self.recipe, self.config = recipe, recipe.training
        self.clips, self.labeler = clips, labeler
        self.run_dir, self.checkpoints = run_dir, run_dir / "checkpoints"
        self.stop, self.watcher, self.evaluate = stop, watcher, evaluate
        set_tf32(self.config.tf32)
        # accelerate keeps the settings of the first run of a process, and refuses a second one with others.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if self.config.precision == "bf16" else "no",
            cpu=device_of(recipe.execution.device).type == "cpu",
        )
        self._dropped: list[Dropped] = []
        self._dropped_file = run_dir / "dropped.jsonl"
        self._num_clips = len(clips.clips) + len(clips.dropped)
        if self.config.precision == "bf16" and self.accelerator.device.type == "cuda":
            for tensor in model.parameters():
                if not tensor.requires_grad:
                    tensor.data = tensor.data.to(torch.bfloat16)
        for tensor in model.parameters():
            # bf16 masters would round small updates of norms to zero; a CPU gains nothing from bf16 weights; and
            # without autocast, types may not meet.
            if tensor.requires_grad or self.accelerator.device.type == "cpu" or self.config.precision == "fp32":
                tensor.data = tensor.data.float()
        self.bare_model = model
        self.optimizer: Any = build_optimizer(model.to(self.accelerator.device), recipe)
        self.model, self.optimizer = self.accelerator.prepare(model, self.optimizer)
        execution, device = recipe.execution, self.accelerator.device
        if execution.compile:
            compile_layers(model, device)
        self.linear_cross_entropy = fused_cross_entropy(device) if execution.fused_cross_entropy else None
        self.progress = checkpoint.Progress()
        self._host = Host.of(self.accelerator.device, recipe.execution, self.config)
        self._work = work

    def run(self) -> checkpoint.Progress:
        """Train to the last step.

        Raises:
            Stopped: a signal came; a checkpoint is written.
            RunFailed: too many steps in a row were not finite.
            UserError: too many clips turned out unusable.
        """
        last = checkpoint.latest(self.checkpoints)
        if last is not None:
            self.progress = checkpoint.load(last, self.bare_model, self.optimizer.optimizer)
            own = self.recipe.data.train
            self._dropped = [drop for drop in read_dropped(self._dropped_file) if drop.id.split("/")[0] in own]
            if self._dropped:
                check_dropped(self._dropped, self._num_clips, self.recipe.data.max_dropped_share)
            self.watcher.note(f"continuing from step {self.progress.step} ({last.name})")
        else:
            self._dropped_file.unlink(missing_ok=True)
            self._note_dropped(self.clips.dropped)
        self._metrics = MetricsLog(self.run_dir, self.progress.step)
        self.ledger = Ledger(self.progress, self._host, self._work)
        try:
            with self.stop.deferred():
                self._train()
        finally:
            self._metrics.close()
        return self.progress

    def _train(self) -> None:
        execution, progress = self.recipe.execution, self.progress
        self.model.train()
        window, batches = _Window(), self._batches()
        while progress.step < self.config.steps:
            with self.ledger.waiting():
                micro_batches = [next(batches) for _ in range(self.config.accumulation)]
            gradient_norm = self._step(micro_batches, window)
            progress.step += 1
            self.ledger.step_done(self.ledger.amounts(micro_batches))
            if progress.step % execution.log_every == 0 or progress.step == self.config.steps:
                self._log(window, gradient_norm)
                window = _Window()
            if self.evaluate and execution.evaluate_every and progress.step % execution.evaluate_every == 0:
                self._evaluate()
            finished = progress.step == self.config.steps
            if finished or progress.step % execution.checkpoint_every == 0 or self.stop.requested:
                self._save()
            if self.stop.requested:
                raise Stopped(f"stopped by a signal; step {progress.step} is saved, the same command continues")

    def _batches(self) -> Iterator[Batch]:
        """Planned batches from where progress stands, epoch after epoch; progress moves as they are used."""
        progress, seed = self.progress, self.config.seed
        while True:
            plan = self.clips.clips.plan(self.recipe.batching, seed, progress.epoch)
            batches = PlannedBatches(
                self.clips.clips,
                plan,
                self.labeler,
                self.recipe.augmentation,
                self.recipe.data.max_duration_s,
                seed,
                progress.epoch,
            )
            loader = DataLoader(
                batches,
                batch_size=None,
                sampler=range(progress.batch, len(plan)),
                num_workers=self.recipe.execution.num_workers,
                pin_memory=self.accelerator.device.type == "cuda",
                # Loaders draw a base seed from the global generator; that must not depend on how often we restarted.
                generator=torch.Generator().manual_seed(seed),
            )
            useful = 0
            for batch in loader:
                progress.batch += 1
                self._note_dropped(batch.dropped)
                if batch.targets:
                    useful += 1
                    yield batch
            if not useful and len(loader) == len(plan):
                raise RunFailed(f"no clip of epoch {progress.epoch} could be used; see dropped.jsonl for the reasons")
            progress.epoch, progress.batch = progress.epoch + 1, 0

    def _note_dropped(self, dropped: Sequence[Dropped]) -> None:
        if not dropped:
            return
        known = {drop.id for drop in self._dropped}
        fresh = [drop for drop in dropped if drop.id not in known]
        if fresh:
            self._dropped += fresh
            write_dropped(self._dropped_file, fresh)
            check_dropped(self._dropped, self._num_clips, self.recipe.data.max_dropped_share)

    def _step(self, micro_batches: list[Batch], window: _Window) -> float:
        """One optimiser step; the loss is a mean over the tokens of all its batches, however they are cut."""
        progress, ctc = self.progress, self.recipe.ctc
        num_tokens = sum(len(row) for batch in micro_batches for row in batch.targets)
        num_labels = sum(len(row) for batch in micro_batches for row in batch.ctc_targets or [])
        finite, decoder_loss, ctc_loss = True, 0.0, 0.0
        spec_augment = self.recipe.augmentation.spec_augment
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, progress.step, group["peak"])
        for batch in (micro_batch.to(self.accelerator.device) for micro_batch in micro_batches):
            scores = self.model(
                batch.waveforms,
                batch.lengths,
                batch.targets,
                batch.ctc_targets,
                transform=SpecAugment(spec_augment, batch.seeds) if spec_augment else None,
                label_smoothing=self.config.label_smoothing,
                linear_cross_entropy=self.linear_cross_entropy,
            )
            loss = scores.decoder_loss.sum() / num_tokens
            if ctc is not None:
                loss = loss + ctc.weight * scores.ctc_loss.sum() / max(1, num_labels)
                ctc_loss += scores.ctc_loss.sum().item()
            decoder_loss += scores.decoder_loss.sum().item()
            finite = finite and bool(loss.isfinite())
            if not finite:
                break
            self.accelerator.backward(loss)
        gradient_norm = math.nan
        if finite:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
            gradient_norm = float(norm)
        if math.isfinite(gradient_norm):
            self.optimizer.step()
            progress.skipped_in_a_row = 0
            window.decoder_loss += decoder_loss
            window.ctc_loss += ctc_loss
            window.tokens += num_tokens
            window.labels += num_labels
        else:
            self._skip()
        self.optimizer.zero_grad()
        return gradient_norm

    def _skip(self) -> None:
        progress = self.progress
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        self.watcher.note(f"step {progress.step + 1} skipped: its loss or gradient is not finite")
        if progress.skipped_in_a_row > self.config.max_skipped_steps:
            last = checkpoint.latest(self.checkpoints)
            raise RunFailed(
                f"{progress.skipped_in_a_row} steps in a row had a loss or gradient that is not finite; the last good "
                f"checkpoint is {last or '(none)'}. Lower training.learning_rate, or lengthen training.warmup_steps."
            )

    def _log(self, window: _Window, gradient_norm: float) -> None:
        progress, ctc = self.progress, self.recipe.ctc
        decoder_loss = window.decoder_loss / window.tokens if window.tokens else math.nan
        ctc_loss = window.ctc_loss / max(1, window.labels) if ctc else None
        values = {
            "epoch": progress.epoch,
            "loss": decoder_loss + (ctc.weight * ctc_loss if ctc and ctc_loss is not None else 0.0),
            "decoder_loss": decoder_loss,
            "ctc_loss": ctc_loss,
            "learning_rate": learning_rate(self.config, progress.step - 1),
            "gradient_norm": gradient_norm,
            "skipped_steps": progress.skipped_steps,
            "dropped_clips": len(self._dropped),
            **self.ledger.row(),
        }
        self._metrics.write("train", progress.step, **values)
        self.watcher.step(progress.step, values)

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        self.bare_model.eval()
        # As in a training step: a frozen part in half precision and a trained one in full meet under autocast only.
        with self.accelerator.autocast(), uncompiled() if self.recipe.execution.compile else nullcontext():
            scores = self.evaluate(self.bare_model)
        self.model.train()
        self._metrics.write("evaluation", self.progress.step, **scores)
        self.watcher.note(f"step {self.progress.step}: {scores['set']} WER {scores['wer']:.1%}")

    def _save(self) -> None:
        keep = self.recipe.execution.keep_checkpoints
        checkpoint.save(self.checkpoints, self.bare_model, self.optimizer.optimizer, self.progress, keep)


def summary(progress: checkpoint.Progress) -> dict[str, Any]:
    """What a report says about training."""
    values = asdict(progress)
    return {
        "steps": values["step"],
        "epochs": values["epoch"],
        "wall_s": values["wall_s"],
        "audio_hours": values["audio_s"] / 3600,
        "audio_hours_per_hour": values["audio_s"] / max(1e-9, values["wall_s"]),
        "padding_share": 1 - values["audio_s"] / max(1e-9, values["padded_s"]),
        "tokens": values["tokens"],
        "skipped_steps": values["skipped_steps"],
    }
