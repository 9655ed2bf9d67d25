"""The training loop: short enough to read in one sitting."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tiny_audio.config import RunFailed, Stopped, UserError
from tiny_audio.data.augmentation import SpecAugment
from tiny_audio.data.clips import ClipSet
from tiny_audio.data.dropped import DroppedClips, DroppedLog, read_dropped, usable_again
from tiny_audio.data.target_encoder import TargetEncoder
from tiny_audio.model.model import TargetScores, TinyAudioModel
from tiny_audio.plan.work import Work
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.device import device_of, set_tf32
from tiny_audio.sources import Dropped
from tiny_audio.training import checkpoint
from tiny_audio.training.batches import Batches, LoadingFailed, MicroBatch
from tiny_audio.training.clips_log import ClipsLog
from tiny_audio.training.compilation import compile_layers, uncompiled
from tiny_audio.training.fused import fused_cross_entropy
from tiny_audio.training.host import Host
from tiny_audio.training.ledger import Amounts, Ledger
from tiny_audio.training.metrics import MetricsLog
from tiny_audio.training.optimization import build_optimizer, learning_rate
from tiny_audio.training.parallel import gathered, shard
from tiny_audio.training.precision import autocast, set_types
from tiny_audio.training.random_state import rng_state, seed_all, set_rng_state
from tiny_audio.training.signals import StopSignal
from tiny_audio.training.step import OutOfMemory, StepResult, take_step
from tiny_audio.training.world import World


class Callback(Protocol):
    """Who is told how training goes, such as a progress bar."""

    def step(self, step: int, values: dict[str, Any]) -> None:
        """After every logged step."""

    def note(self, message: str) -> None:
        """Something happened that a person wants to know."""


class Trainer:
    """Trains one model by one recipe, in one run folder, from wherever the last checkpoint stands.

    Of several processes each has one; they go through the same steps, and the first alone writes and speaks.

    Args:
        recipe: what to do.
        model: freshly assembled, the same in every process; a checkpoint's weights go over it.
        clips: the training clips.
        target_encoder: turns transcripts into targets.
        run_dir: ``checkpoints/``, ``metrics.jsonl`` and ``dropped.jsonl`` live here; the first process's.
        stop: asked between steps.
        callback: told about progress.
        evaluate: scores the model while training: ``model -> {"set": …, "wer": …, …}``. Called in the first process,
            and in all where the model is sharded.
        work: what a clip takes, for the ledger; None where it is not known.
        world: the processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: TinyAudioModel,
        clips: ClipSet,
        target_encoder: TargetEncoder,
        run_dir: Path,
        stop: StopSignal,
        callback: Callback,
        evaluate: Callable[[TinyAudioModel], dict[str, Any]] | None = None,
        work: Work | None = None,
        world: World = World(),  # noqa: B008  # frozen
    ) -> None:
        self.recipe, self.config = recipe, recipe.training
        self.clips, self.target_encoder = clips, target_encoder
        self.run_dir, self.checkpoints = run_dir, run_dir / "checkpoints"
        self.stop, self.callback, self.evaluate, self.world = stop, callback, evaluate, world
        set_tf32(self.config.tf32)
        self._dropped = DroppedClips(clips.num_inside, recipe.data.max_dropped_share)
        self.device = device = device_of(recipe.execution.device)
        set_types(model, self.config.precision, device)
        self.bare_model = model
        self.is_sharded = world.size > 1 and recipe.execution.parallel == "fsdp"
        if self.is_sharded:
            shard(model, device, world)
        else:
            model.to(device)
        self.optimizer = build_optimizer(model, recipe)
        self.model: nn.Module = model
        if world.size > 1 and not self.is_sharded:
            # No buffer changes in training: norms over batches are frozen.
            self.model = DistributedDataParallel(model, broadcast_buffers=False)
        execution = recipe.execution
        if execution.compile:
            compile_layers(model, device)
        self.linear_cross_entropy = fused_cross_entropy(device) if execution.fused_cross_entropy else None
        self.progress = checkpoint.Progress()
        self._host = Host.of(device, recipe.execution, self.config, world.size)
        self._work = work

    def run(self) -> checkpoint.Progress:
        """Train to the last step.

        Raises:
            Stopped: a signal came, in whichever process; a checkpoint is written.
            RunFailed: too many steps in a row were not finite.
            UserError: too many clips turned out unusable, or clips cannot be had; a checkpoint is written.
        """
        last = checkpoint.load_newest(self.checkpoints, self.bare_model, self.optimizer, self.callback.note, self.world)
        self.progress = last or checkpoint.Progress()
        self._saved_step = self.progress.step
        self._dropped.add(self.world.broadcast_from_main(self._open_dropped))
        if last is None:
            self._note_dropped(self.clips.dropped)
        else:
            self._dropped.forget(self.world.broadcast_from_main(self._mended))
            self.world.broadcast_from_main(self._dropped.check)
        self.ledger = Ledger(self.progress, self._host, self._work)
        self.world.broadcast_from_main(self._open_logs)
        try:
            with self.stop.deferred(self._lost):
                self._train()
                if self.world.any(self.stop.requested):
                    raise self._stopped()
                self.ledger.rest(self.world.sum([self.ledger.joules()])[0])
        finally:
            if self.world.is_main:
                # What a full disk does not take now, it did not take before, and that was said.
                with suppress(OSError):
                    self._metrics.close()
        return self.progress

    def _open_dropped(self) -> list[Dropped]:
        """What is known already of this run's clips; another attempt's list is removed."""
        path, own = self.run_dir / "dropped.jsonl", self.recipe.data.train
        if self.progress.step == 0:
            path.unlink(missing_ok=True)
        self._dropped_log = DroppedLog(path)
        return [drop for drop in read_dropped(path) if drop.id.split("/")[0] in own]

    def _mended(self) -> list[str]:
        """Which of the clips that stopped an earlier start can be used now; none of them is read where none did."""
        ids = self._dropped.over_ceiling()
        if not ids:
            return []
        self.callback.note(f"{len(ids)} clips could not be used, which is too many: reading them again")
        usable = usable_again(self.clips, ids, self.target_encoder)
        if usable:
            self._dropped_log.remove(set(usable))
        self.callback.note(f"{len(usable)} of them can be used now")
        return usable

    def _open_logs(self) -> None:
        self._metrics = MetricsLog(self.run_dir, self.progress.step)
        log_clips = self.recipe.execution.log_clips
        self._clips_log = ClipsLog(self.run_dir / "clips.jsonl", self.progress.step) if log_clips else None

    def _train(self) -> None:
        progress = self.progress
        self.model.train()
        planned = Batches(
            self.recipe,
            self.clips,
            self.target_encoder,
            self.world,
            self._note_dropped,
            self.stop,
            pin_memory=self.device.type == "cuda",
        )
        batches = planned.start(progress.epoch, progress.batch, progress.plan)
        try:
            while progress.step < self.config.steps:
                micro_batches = self._wait_for(batches)
                if micro_batches is not None:
                    self._one_step(micro_batches)
                stopping = micro_batches is None or self.world.any(self.stop.requested)
                del micro_batches  # a loader fills their memory again
                finished = progress.step == self.config.steps
                due = finished or stopping or progress.step % self.recipe.execution.checkpoint_every == 0
                if due and progress.step > self._saved_step:
                    self._save()
                if stopping:
                    raise self._stopped()
        except UserError as error:
            # All processes raise it, between steps.
            if progress.step > self._saved_step:
                self._save()
            if isinstance(error, LoadingFailed):
                raise self.world.printed_by_main(LoadingFailed(f"{error}\n{self._where()}")) from error
            raise
        finally:
            batches.close()  # and with it the loader's processes

    def _wait_for(self, batches: Iterator[MicroBatch | None]) -> list[MicroBatch] | None:
        """The batches of a step; None, in all processes, where one was asked to stop before they were there."""
        waited_s, found = self.progress.waited_s, []
        with self.ledger.waiting():
            for _ in range(self.config.accumulation):
                micro_batch = next(batches)
                if micro_batch is None:
                    break
                found.append(micro_batch)
        if len(found) == self.config.accumulation:
            return found
        self.progress.waited_s = waited_s  # of a step that there is not
        return None

    def _one_step(self, micro_batches: list[MicroBatch]) -> None:
        """A step, and what is written after it."""
        execution, progress = self.recipe.execution, self.progress
        result = self._step(micro_batches)
        progress.step += 1
        last = micro_batches[-1]
        progress.epoch, progress.batch, progress.plan = last.epoch, last.index + 1, last.plan.hash
        own = self.ledger.amounts([micro_batch.batch for micro_batch in micro_batches if micro_batch.weight])
        sums = self.world.sum([own.audio_s, own.padded_s, own.tokens, own.flops, own.joules])
        audio_s, padded_s, tokens, flops, joules = sums
        self.ledger.step_done(Amounts(audio_s, padded_s, int(tokens), flops, joules))
        if execution.log_clips:
            self._write(lambda: self._log_clips(micro_batches))
        if progress.step % execution.log_every == 0 or progress.step == self.config.steps:
            self._write(lambda: self._log(result.gradient_norm))
            progress.window_decoder_loss = progress.window_ctc_loss = 0.0
            progress.window_tokens = progress.window_labels = 0
        if execution.evaluate_every and progress.step % execution.evaluate_every == 0:
            self._evaluate()

    def _note_dropped(self, dropped: Sequence[Dropped]) -> None:
        fresh = self._dropped.add(dropped)
        if fresh:
            self._write(lambda: self._dropped_log.add(fresh))
            self.world.broadcast_from_main(self._dropped.check)

    def _step(self, micro_batches: list[MicroBatch]) -> StepResult:
        progress, ctc = self.progress, self.recipe.ctc
        num_tokens = sum(micro_batch.counts.tokens for micro_batch in micro_batches)
        num_labels = sum(micro_batch.counts.labels for micro_batch in micro_batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, progress.step, group["peak"])
        if self.world.size > 1:
            # How much a process has drawn before depends on the number of processes; a checkpoint fits any number.
            seed_all(_step_seed(self.config.seed, progress.step, self.world.rank))
        before = rng_state()
        try:
            result = take_step(
                self.model,
                self.optimizer,
                [lambda part=micro_batch: self._score(part) for micro_batch in micro_batches],  # type: ignore[misc]
                num_tokens=num_tokens,
                num_labels=num_labels,
                ctc_weight=ctc.weight if ctc else 0.0,
                max_gradient_norm=self.config.max_gradient_norm,
                world=self.world,
            )
        except OutOfMemory as error:
            set_rng_state(before)  # so that the step can be taken as if it never was
            raise self._out_of_memory(micro_batches, error) from error
        if result.is_finite:
            progress.skipped_in_a_row = 0
            progress.window_decoder_loss += result.decoder_loss
            progress.window_ctc_loss += result.ctc_loss
            progress.window_tokens += num_tokens
            progress.window_labels += num_labels
        else:
            self._skip()
        return result

    def _score(self, micro_batch: MicroBatch) -> TargetScores:
        batch, spec_augment = micro_batch.batch.to(self.device), self.recipe.augmentation.spec_augment
        with autocast(self.config.precision, self.device):
            scores: TargetScores = self.model(
                batch.waveforms,
                batch.lengths,
                batch.targets,
                batch.ctc_targets,
                transform=SpecAugment(spec_augment, batch.seeds) if spec_augment else None,
                label_smoothing=self.config.label_smoothing,
                linear_cross_entropy=self.linear_cross_entropy,
            )
        if micro_batch.weight == 1.0:
            return scores
        ctc_loss = None if scores.ctc_loss is None else scores.ctc_loss * micro_batch.weight
        return replace(scores, decoder_loss=scores.decoder_loss * micro_batch.weight, ctc_loss=ctc_loss)

    def _skip(self) -> None:
        progress = self.progress
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        self.callback.note(f"step {progress.step + 1} skipped: its loss or gradient is not finite")
        if progress.skipped_in_a_row > self.config.max_skipped_steps:
            last = self.world.broadcast_from_main(lambda: checkpoint.latest(self.checkpoints))
            raise self.world.printed_by_main(
                RunFailed(
                    f"{progress.skipped_in_a_row} steps in a row had a loss or gradient that is not finite; the last "
                    f"good checkpoint is {last or '(none)'}. Lower training.learning_rate, or lengthen "
                    "training.warmup_steps."
                )
            )

    def _out_of_memory(self, micro_batches: list[MicroBatch], error: OutOfMemory) -> Exception:
        """One that lets what is done be saved, or, where the weights or the other processes do not allow it, not."""
        self.optimizer.zero_grad()
        largest = max((micro_batch.batch for micro_batch in micro_batches), key=lambda batch: batch.padded_s)
        clips = len(largest.lengths)
        is_whole = self.world.size == 1 and not error.in_update
        kept = self._where() if is_whole else self._lost()
        longest_s = largest.padded_s / clips
        message = (
            f"the GPU ran out of memory in step {self.progress.step + 1}, with a batch of {clips} clips and "
            f"{largest.padded_s:.1f} s, padding included ({longest_s:.1f} s the longest): {error}\n{kept}, "
            "where there is more memory. For this GPU, find with tiny-audio probe what fits, and set "
            "batching.max_padded_s in a new run."
        )
        return UserError(message) if is_whole else RunFailed(message)

    def _stopped(self) -> Exception:
        return self.world.printed_by_main(Stopped(f"stopped by a signal; {self._where()}"))

    def _where(self) -> str:
        """What there is, between steps."""
        step = self.progress.step
        return f"{f'step {step} is saved' if step else 'nothing is trained yet'}, the same command continues"

    def _lost(self) -> str:
        """What leaving in the middle of a step, or of saving, loses."""
        if self._saved_step:
            return f"all after step {self._saved_step} is lost, the same command continues from there"
        return "no step is saved, the same command starts from the beginning"

    def _write(self, work: Callable[[], None]) -> None:
        """In the first process, to the run's folder."""

        def write() -> None:
            try:
                work()
            except OSError as error:
                raise UserError(
                    f"{self.run_dir} cannot be written: {error}. Make room, or allow writing there: the same command "
                    "continues"
                ) from error

        self.world.broadcast_from_main(write)

    def _log_clips(self, micro_batches: list[MicroBatch]) -> None:
        assert self._clips_log is not None
        for micro_batch in micro_batches:
            place = {"epoch": micro_batch.epoch, "batch": micro_batch.index}
            clips = micro_batch.plan[micro_batch.index].tolist()
            self._clips_log.write(self.progress.step, **place, clips=[self.clips.clips[clip].id for clip in clips])

    def _log(self, gradient_norm: float) -> None:
        progress, ctc = self.progress, self.recipe.ctc
        decoder_loss = progress.window_decoder_loss / progress.window_tokens if progress.window_tokens else math.nan
        ctc_loss = progress.window_ctc_loss / max(1, progress.window_labels) if ctc else None
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
        self.callback.step(progress.step, values)

    def _evaluate(self) -> None:
        self.bare_model.eval()
        if self.is_sharded:
            # A sharded model counts its passes, to know what to gather when, so all processes make the same ones.
            with gathered(self.model):
                scores = self.world.collective(self._scores)
        else:
            scores = self.world.broadcast_from_main(self._scores)
        self.model.train()
        self._write(lambda: self._metrics.write("evaluation", self.progress.step, **scores))
        self.callback.note(f"step {self.progress.step}: {scores['set']} WER {scores['wer']:.1%}")

    def _scores(self) -> dict[str, Any]:
        assert self.evaluate is not None
        # As in a training step: a frozen part in half precision and a trained one in full meet under autocast only.
        with (
            autocast(self.config.precision, self.device),
            uncompiled() if self.recipe.execution.compile else nullcontext(),
        ):
            return self.evaluate(self.bare_model)

    def _save(self) -> None:
        keep = self.recipe.execution.keep_checkpoints
        checkpoint.save(self.checkpoints, self.bare_model, self.optimizer, self.progress, keep, self.world)
        self._saved_step = self.progress.step


def _step_seed(seed: int, step: int, rank: int) -> int:
    """For dropout in one of several processes."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:4], "big")


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
