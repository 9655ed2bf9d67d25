"""Train a model in a run folder. Save checkpoints, write logs, evaluate the model, and record dropped clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tiny_audio.analysis.audio_bits import progress_text
from tiny_audio.config import RunFailed, Stopped, UserError
from tiny_audio.data.clips import ClipSet
from tiny_audio.data.dropped import DroppedClips, DroppedLog, read_dropped, usable_again
from tiny_audio.data.target_encoder import TargetEncoder
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.splicing import TargetScores
from tiny_audio.plan.work import Work
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.world import World
from tiny_audio.sources import Dropped
from tiny_audio.training import checkpoint
from tiny_audio.training.batches import Batches, LoadingFailed, MicroBatch
from tiny_audio.training.compilation import compile_layers, uncompiled
from tiny_audio.training.final_weights import FinalWeights, Selection
from tiny_audio.training.frame_cache import FrameCache
from tiny_audio.training.fused import fused_cross_entropy
from tiny_audio.training.host import Host
from tiny_audio.training.ledger import Amounts, Ledger
from tiny_audio.training.loop import Budget, Diverged, Step, TrainingLoop
from tiny_audio.training.metrics import ClipsLog, MetricsLog
from tiny_audio.training.optimization import build_optimizer, learning_rate
from tiny_audio.training.parallel import gathered, shard
from tiny_audio.training.precision import autocast, place, set_precision
from tiny_audio.training.progress import Progress
from tiny_audio.training.signals import StopSignal
from tiny_audio.training.step import OutOfMemory
from tiny_audio.training.trackers import open_trackers


class Callback(Protocol):
    """Receives the progress of a run, for example to show a progress bar."""

    def step(self, step: int, values: dict[str, Any]) -> None:
        """Called after every logged step, with the values of its line in the log."""

    def note(self, message: str) -> None:
        """Called with a message for the user."""


class Trainer:
    """Trains a model in a run folder, starting from the last checkpoint.

    Every process has a trainer and takes the same steps. Only the main process writes and prints.

    Args:
        model: a newly assembled model, the same in every process.
        clips: the training clips.
        target_encoder: turns transcripts into targets.
        run_dir: the folder where the main process writes ``checkpoints/``, ``metrics.jsonl`` and ``dropped.jsonl``.
        stop: the stop signal, checked between steps.
        callback: receives the progress.
        evaluate: scores the model during training: ``model -> {"set": …, "wer": …, …}``. It is called in the main
            process, or in all processes if the model is sharded.
        work: computes the FLOPs of clips. If None, FLOPs are not counted.
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
        self.device = device_of(recipe.execution.device)
        self.bare_model = model
        self.is_sharded = world.size > 1 and recipe.execution.parallel == "fsdp"
        if self.is_sharded:
            set_precision(model, recipe.training, self.device)
            shard(model, self.device, world)
        else:
            place(model, recipe, self.device)
        self.optimizer = build_optimizer(model, recipe)
        self.model: nn.Module = model
        if world.size > 1 and not self.is_sharded:
            # Buffers need no synchronization: they do not change in training, because batch norms are frozen.
            # The first `alone_steps` steps do not use the decoder's weights, so DDP must search for unused parameters.
            unused = recipe.alone_steps > 0
            self.model = DistributedDataParallel(model, forward_sync_buffers=False, find_unused_parameters=unused)
        if recipe.execution.compile:
            compile_layers(model, self.device)
        self.linear_cross_entropy = fused_cross_entropy(self.device) if recipe.execution.fused_cross_entropy else None
        limit_gb = recipe.execution.cache_frames_gb
        self._frame_cache = FrameCache(model.encoder, int(limit_gb * 1e9), run_dir) if limit_gb else None
        self.progress = Progress()
        self._selection = Selection(recipe)
        self.final: FinalWeights  # set by run()
        self._dropped = DroppedClips(clips.num_inside, recipe.data.max_dropped_share)
        self._host = Host.of(self.device, recipe.execution, self.config, world.size)
        self._work = work

    def run(self) -> Progress:
        """Train to the last step, and load the weights of the final model. :attr:`final` describes their origin.

        Raises:
            Stopped: a process received a signal. All finished steps are saved, except after a second signal.
            RunFailed: training cannot continue, for example because it diverged. Unsaved steps are lost.
            UserError: for example, too many clips are unusable, or the GPU ran out of memory in a run with one process.
                All finished steps have been saved, unless the run folder cannot be written.
        """
        last = checkpoint.load_newest(self.checkpoints, self.bare_model, self.optimizer, self.callback.note, self.world)
        self.progress = last or Progress()
        self._saved_step = self.progress.step
        self._dropped.add(self.world.broadcast_from_main(self._open_dropped))
        if last is None:
            self._note_dropped(self.clips.dropped)
        else:
            self._dropped.forget(self.world.broadcast_from_main(self._usable_again))
            self.world.broadcast_from_main(self._dropped.check)
        self.ledger = Ledger(self.progress, self._host, self._work)
        self.world.broadcast_from_main(self._open_logs)
        try:
            with self.stop.deferred(self._lost):
                self._train()
                if self.world.any(self.stop.requested):
                    raise self.world.printed_by_main(Stopped(f"stopped by a signal; {self._kept()}"))
                self.final = self._selection.choose(
                    self.checkpoints, self.bare_model, self.progress, self.world, self._evaluate
                )
                self.ledger.add_overhead(self.world.sum([self.ledger.joules()])[0])
        finally:
            if self.world.is_main:
                # Closing fails if the disk is full. In that case, an earlier write has already reported the full disk.
                with suppress(OSError):
                    self._metrics.close()
        return self.progress

    def _train(self) -> None:
        """Train until the last step, an early stop, or a stop request in any process. Then save a checkpoint."""
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
        loop = TrainingLoop(
            self.model,
            self.optimizer,
            self.recipe,
            self._score,
            Budget(steps=self.config.steps),
            progress,
            self.callback.note,
            self.world,
        )
        try:
            if self._selection.best and self._selection.is_due(progress):
                self._monitor()  # an earlier process saved this step, but ended before the evaluation
            steps = loop.steps(batches)
            while not self._selection.stops_early(progress) and (step := next(steps, None)):
                self._after_step(step)
                step.batches.clear()  # frees the batches, so that saving has more memory
                if self.world.any(self.stop.requested):
                    break
                if progress.step % self.recipe.execution.checkpoint_every == 0 or progress.step == progress.best_step:
                    self._save()
            if progress.step == self.config.steps == progress.skipped_steps:
                message = (
                    f"none of the {progress.step} steps had a finite loss and gradient, so nothing was trained; lower "
                    "training.learning_rate, and check the data and the checkpoints with `tiny-audio doctor`"
                )
                raise self.world.printed_by_main(RunFailed(message))
            self._save()
        except Diverged as error:
            last = self.world.broadcast_from_main(lambda: checkpoint.latest(self.checkpoints))
            message = f"{error}; {f'the last good checkpoint is {last}' if last else 'there is no good checkpoint'}"
            raise self.world.printed_by_main(RunFailed(message)) from error
        except OutOfMemory as error:
            raise self._out_of_memory(error) from error
        except UserError as error:
            # All processes raise this error between steps, so a checkpoint can be saved.
            self._save()
            if isinstance(error, LoadingFailed):
                raise self.world.printed_by_main(LoadingFailed(f"{error}\n{self._kept()}")) from error
            raise
        finally:
            batches.close()  # ends the loader processes

    def _score(self, micro_batch: MicroBatch) -> TargetScores:
        batch = micro_batch.batch.to(self.device)
        with autocast(self.config.precision, self.device):
            frames = None
            if self._frame_cache is not None:
                frames = self._frame_cache.frames(micro_batch.batch.waveforms, micro_batch.batch.lengths)
            scores: TargetScores = self.model(
                batch.waveforms,
                batch.lengths,
                batch.targets,
                batch.ctc_targets,
                transform=self.recipe.augmentation.of_features(batch.seeds),
                label_smoothing=self.config.label_smoothing,
                linear_cross_entropy=self.linear_cross_entropy,
                frames=frames,
                contexts=batch.contexts,
                skip_decoder=self.progress.step < self.recipe.alone_steps,
            )
        return scores.weighted(micro_batch.weight)

    def _after_step(self, step: Step[MicroBatch]) -> None:
        """Update the counts. When due, write a line of the log, and evaluate the model."""
        execution, progress = self.recipe.execution, self.progress
        last = step.batches[-1]
        progress.epoch, progress.batch, progress.plan = last.epoch, last.index + 1, last.plan.hash
        used = [micro_batch.batch for micro_batch in step.batches if micro_batch.weight]
        own = self.ledger.amounts(used, skip_decoder=progress.step <= self.recipe.alone_steps)
        sums = self.world.sum([own.audio_s, own.padded_s, own.tokens, own.flops, own.joules])
        audio_s, padded_s, tokens, flops, joules = sums
        self.ledger.add_step(Amounts(audio_s, padded_s, int(tokens), flops, joules), step.wall_s)
        if execution.log_clips:
            self._write(lambda: self._log_clips(step.batches))
        if progress.step % execution.log_every == 0 or progress.step in (self.recipe.alone_steps, self.config.steps):
            self._write(lambda: self._log(step.result.gradient_norm))
            progress.start_window()
        if self._selection.is_due(progress):
            self._monitor()
            if self._selection.stops_early(progress) and progress.window_tokens:  # the log lacks the last steps
                self._write(lambda: self._log(step.result.gradient_norm))

    # --- dropped clips

    def _open_dropped(self) -> list[Dropped]:
        """Return the clips that this run has dropped. At step 0, first delete the file of an earlier attempt."""
        path, own = self.run_dir / "dropped.jsonl", self.recipe.data.train
        if self.progress.step == 0:
            path.unlink(missing_ok=True)
        self._dropped_log = DroppedLog(path)
        return [drop for drop in read_dropped(path) if drop.id.split("/")[0] in own]

    def _usable_again(self) -> list[str]:
        """If too many clips were dropped, read these clips again. Return the ids of those that are usable now."""
        ids = self._dropped.over_ceiling()
        if not ids:
            return []
        self.callback.note(f"{len(ids)} clips could not be used, which is too many; reading them again")
        usable = usable_again(self.clips, ids, self.target_encoder)
        if usable:
            self._dropped_log.remove(set(usable))
        self.callback.note(f"{len(usable)} of them can be used now")
        return usable

    def _note_dropped(self, dropped: Sequence[Dropped]) -> None:
        fresh = self._dropped.add(dropped)
        if fresh:
            self._write(lambda: self._dropped_log.add(fresh))
            self.world.broadcast_from_main(self._dropped.check)

    # --- logs

    def _open_logs(self) -> None:
        trackers = open_trackers(self.recipe, self.run_dir, self.progress.step, self.callback.note)
        self._metrics = MetricsLog(self.run_dir, self.progress.step, trackers)
        log_clips = self.recipe.execution.log_clips
        self._clips_log = ClipsLog(self.run_dir / "clips.jsonl", self.progress.step) if log_clips else None

    def _write(self, work: Callable[[], None]) -> None:
        """Call ``work`` in the main process. ``work`` writes to the run folder."""

        def write() -> None:
            try:
                work()
            except OSError as error:
                raise UserError(
                    f"{self.run_dir} cannot be written: {error}. Make room, or allow writing there. Then the same "
                    "command continues."
                ) from error

        self.world.broadcast_from_main(write)

    def _log_clips(self, micro_batches: list[MicroBatch]) -> None:
        assert self._clips_log is not None
        for micro_batch in micro_batches:
            clips = [self.clips.clips[index].id for index in micro_batch.plan[micro_batch.index].tolist()]
            self._clips_log.write(self.progress.step, epoch=micro_batch.epoch, batch=micro_batch.index, clips=clips)

    def _log(self, gradient_norm: float) -> None:
        progress, ctc, alignment = self.progress, self.recipe.ctc, self.recipe.alignment
        decoder_loss = progress.window_decoder_loss / progress.window_tokens if progress.window_tokens else math.nan
        ctc_loss = progress.window_ctc_loss / max(1, progress.window_labels) if ctc else None
        loss = decoder_loss + (ctc.weight * ctc_loss if ctc and ctc_loss is not None else 0.0)
        aligned: dict[str, Any] = {}
        if alignment is not None:
            alignment_loss = progress.window_alignment_loss / max(1, progress.window_tokens)
            loss += alignment.weight_at(progress.step - 1) * alignment_loss
            aligned = {"alignment_loss": alignment_loss, "unaligned_clips": progress.unaligned_clips}
        values = {
            "epoch": progress.epoch,
            "loss": loss,
            "decoder_loss": None if progress.step <= self.recipe.alone_steps else decoder_loss,
            "ctc_loss": ctc_loss,
            **aligned,
            "learning_rate": learning_rate(self.config, progress.step - 1),
            "gradient_norm": gradient_norm,
            "skipped_steps": progress.skipped_steps,
            "dropped_clips": len(self._dropped),
            **self.ledger.row(),
        }
        self._metrics.write("train", progress.step, **values)
        self.callback.step(progress.step, values)

    # --- evaluation

    def _monitor(self) -> None:
        """Evaluate the model during training."""
        progress, scores = self.progress, self._evaluate()
        found = self._selection.add(progress, scores)
        self._write(lambda: self._metrics.write("evaluation", progress.step, **scores, **found))
        text = f"{scores['set']} {self._selection.text(progress, scores)}{progress_text(scores)}"
        self.callback.note(f"step {progress.step}: {text}")

    def _evaluate(self) -> dict[str, Any]:
        """Score the model. Return the main process's scores in all processes."""
        self.bare_model.eval()
        if self.is_sharded:
            # All processes must run the same passes, because each pass of a sharded model is a collective.
            with gathered(self.bare_model):
                own = self.world.collective(self._scores)
            scores = self.world.broadcast_from_main(lambda: own)
        else:
            scores = self.world.broadcast_from_main(self._scores)
        self.model.train()
        return scores

    def _scores(self) -> dict[str, Any]:
        assert self.evaluate is not None
        compiled = self.recipe.execution.compile
        # Autocast is needed, because frozen parts may be in bf16 and trainable parts in fp32.
        with autocast(self.config.precision, self.device), uncompiled() if compiled else nullcontext():
            return self.evaluate(self.bare_model)

    # --- checkpoints

    def _save(self) -> None:
        """Write a checkpoint, unless this step already has one."""
        if self.progress.step > self._saved_step:
            checkpoint.save(
                self.checkpoints,
                self.bare_model,
                self.optimizer,
                self.progress,
                self.recipe.execution.keep_checkpoints,
                self.world,
                needed=self._selection.needed(self.progress),
            )
            self._saved_step = self.progress.step

    def _kept(self) -> str:
        """Return the end of a message: which work is kept, and how to continue."""
        step = self.progress.step
        return f"{f'step {step} is saved' if step else 'nothing is trained yet'}; the same command continues"

    def _lost(self) -> str:
        """Return the end of a message: which work is lost if the process exits during a step or while saving."""
        if self._saved_step:
            return f"everything after step {self._saved_step} is lost; the same command continues from there"
        return "no step is saved; the same command starts from the beginning"

    def _out_of_memory(self, error: OutOfMemory) -> Exception:
        """Return the error to raise. First save, if this is the only process and the failed step changed no weights."""
        is_whole = self.world.size == 1 and not error.in_update
        if is_whole:
            self._save()
        largest = max((micro_batch.batch for micro_batch in error.batches), key=lambda batch: batch.padded_s)
        clips = len(largest.lengths)
        message = (
            f"the GPU ran out of memory in step {self.progress.step + 1}, with a batch of {clips} clips, "
            f"{largest.padded_s:.1f} s including padding (longest clip: {largest.padded_s / clips:.1f} s): "
            f"{error.detail}\n{self._kept() if is_whole else self._lost()}. Use a GPU with more memory. Or find out "
            "with `tiny-audio probe` which batches fit, and set batching.max_padded_s in a new run."
        )
        return UserError(message) if is_whole else RunFailed(message)
