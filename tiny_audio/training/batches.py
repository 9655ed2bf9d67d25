"""Load the planned batches of training in advance, and count their clips and tokens over all processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing import active_children
from types import FrameType, TracebackType

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tiny_audio.config import Failure, RunFailed, UserError
from tiny_audio.data.batches import Batch, PlannedBatches
from tiny_audio.data.clips import ClipSet
from tiny_audio.data.contexts import TrainingContexts
from tiny_audio.data.order import EpochPlan
from tiny_audio.data.prefetcher import Prefetcher
from tiny_audio.data.target_encoder import TargetEncoder
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.world import World
from tiny_audio.sources import Dropped
from tiny_audio.training.loop import Counts
from tiny_audio.training.signals import StopAsked, StopSignal

_MOST_EMPTY_EPOCHS = 1000
"""Maximum number of consecutive epochs without a clip. If the weights in ``data.train`` are small, an epoch may have no
clip."""


class LoadingFailed(UserError):  # noqa: N818
    """A batch cannot be loaded, for example because the hub cannot be reached. Its clips may still be usable."""


@dataclass(frozen=True)
class MicroBatch:
    """This process's slice of a global batch.

    A global batch is one batch of the epoch's plan. Its clips are divided among the processes.
    """

    batch: Batch
    """The usable clips of this process. If there are none, this is a placeholder clip, because all processes must run
    the same forward and backward passes."""
    weight: float
    """Weight of the batch's losses: 1, or 0 for a placeholder."""
    counts: Counts
    """Sizes of the global batch."""
    plan: EpochPlan
    epoch: int
    index: int
    """Index of the global batch in the epoch's plan."""


class Batches:
    """Yields batches without end, epoch after epoch. Global batches without a usable clip are skipped.

    Args:
        clips: the training clips.
        target_encoder: turns transcripts into targets.
        note_dropped: called in every process with the list of all unusable clips of a global batch.
        stop: the stop signal. A stop request ends the wait for a batch.
        pin_memory: whether to pin batches for a GPU.
    """

    def __init__(
        self,
        recipe: Recipe,
        clips: ClipSet,
        target_encoder: TargetEncoder,
        world: World,
        note_dropped: Callable[[list[Dropped]], None],
        stop: StopSignal,
        *,
        pin_memory: bool,
    ) -> None:
        self.recipe, self.clips, self.target_encoder, self.world = recipe, clips, target_encoder, world
        self._note_dropped, self._stop = note_dropped, stop
        self._pin_memory = pin_memory
        context = recipe.prompt.context
        self._contexts = None if context is None else TrainingContexts.learn(context, clips, target_encoder.tokenizer)

    def start(self, epoch: int, index: int, plan_hash: str) -> Generator[MicroBatch | None]:
        """Yield batches, beginning with batch ``index`` of ``epoch``.

        If a stop was requested in any process, yield None in all processes and end.

        Args:
            plan_hash: hash of the epoch's plan, from the checkpoint. Empty at the start of training.

        Raises:
            RunFailed: the plan has changed, a whole epoch has no usable clip, or too many consecutive epochs have no
                clip.
            LoadingFailed: a process cannot load its clips.
        """
        num_empty = 0
        while True:
            # After a stop request, threads of the previous epoch's prefetcher may still hold locks. A loader process
            # that is forked now could wait for such a lock forever.
            if self.world.any(self._stop.requested):
                yield None
                return
            recipe, longest_s = self.recipe, self.recipe.data.max_duration_s
            plan = self.clips.clips.plan(recipe.batching, recipe.training.seed, epoch, recipe.augmentation, longest_s)
            if index and plan.hash != plan_hash:
                why = f"epoch {epoch} was planned by another version of the code, so batch {index} now has other clips"
                raise self.world.printed_by_main(RunFailed(f"{why}; continue with that version, or start over"))
            if not len(plan):
                num_empty += 1
                if num_empty > _MOST_EMPTY_EPOCHS:
                    raise self.world.printed_by_main(RunFailed(self._weights_too_small(epoch)))
                epoch += 1
                continue
            num_empty, useful = 0, 0
            ahead_clips = self.recipe.batching.shuffle_clips
            with (
                _Loader(self._data_loader(plan, epoch, index)) as loader,
                Prefetcher(self.clips.clips, plan, index, ahead_clips, self._is_stopping) as prefetcher,
            ):
                for batch_index in range(index, len(plan)):
                    batch = loader.next(self._stop)
                    if batch is not None and self.world.local_rank == 0:
                        prefetcher.reached(batch_index)
                    agreed = self._agree(batch)
                    if agreed is None:
                        loader.give_up()
                        yield None
                        return
                    counts, dropped = agreed
                    self._note_dropped(dropped)
                    if not counts.clips:
                        continue
                    useful += 1
                    if isinstance(batch, Batch) and batch.targets:
                        yield MicroBatch(batch, 1.0, counts, plan, epoch, batch_index)
                    else:
                        yield MicroBatch(self._stand_in(), 0.0, counts, plan, epoch, batch_index)
            if not useful and index == 0:
                why = f"no clip of epoch {epoch} could be used; see dropped.jsonl for the reasons"
                raise self.world.printed_by_main(RunFailed(why))
            epoch, index = epoch + 1, 0

    def _weights_too_small(self, epoch: int) -> str:
        weights = self.clips.clips.weights
        total = len(self.clips.clips) if weights is None else float(weights.sum())
        return (
            f"{_MOST_EMPTY_EPOCHS:,} epochs in a row, up to epoch {epoch}, have no clip, because the weights in "
            f"data.train add up to {total:g} clips per epoch; raise the weights"
        )

    def _is_stopping(self) -> bool:
        return self._stop.requested

    def _data_loader(self, plan: EpochPlan, epoch: int, index: int) -> DataLoader[Batch | Failure]:
        recipe, world = self.recipe, self.world
        planned = PlannedBatches(
            self.clips.clips,
            plan,
            self.target_encoder,
            recipe.augmentation,
            recipe.data.max_duration_s,
            recipe.training.seed,
            epoch,
            world.rank,
            world.size,
            self._contexts,
        )
        return DataLoader(
            _FailuresAsValues(planned),
            batch_size=None,
            sampler=range(index, len(plan)),
            num_workers=recipe.execution.num_workers,
            worker_init_fn=_outlive_the_first_signal,
            pin_memory=self._pin_memory,
            # Without its own generator, each DataLoader draws a seed from torch's global generator. A restarted run
            # creates more DataLoaders. Their draws would change the random numbers of later steps.
            generator=torch.Generator().manual_seed(recipe.training.seed),
        )

    def _agree(self, batch: Batch | Failure | None) -> tuple[Counts, list[Dropped]] | None:
        """Return a global batch's counts and unusable clips. Return None if a stop was requested in any process."""
        values = _values(batch) if isinstance(batch, Batch) else [0.0] * 4
        flags = [float(isinstance(batch, Failure)), float(batch is None)]
        clips, tokens, labels, num_dropped, num_failed, num_stopping = map(int, self.world.sum([*values, *flags]))
        if num_stopping:
            return None
        if num_failed:
            failures = self.world.gather(batch if isinstance(batch, Failure) else None)
            first = next(failure for failure in failures if failure is not None)
            raise self.world.printed_by_main(LoadingFailed(first.message))
        dropped: list[Dropped] = []
        if num_dropped:
            parts = self.world.gather(batch.dropped if isinstance(batch, Batch) else [])
            dropped = [drop for part in parts for drop in part]
        return Counts(clips, tokens, labels), dropped

    def _stand_in(self) -> Batch:
        """Return a placeholder batch of one clip: faint noise of the shortest allowed duration."""
        samples = int(self.recipe.data.min_duration_s * SAMPLE_RATE)
        noise = torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
        return Batch(
            waveforms=0.01 * noise,
            lengths=torch.tensor([samples]),
            targets=[torch.tensor([self.target_encoder.end_id])],
            ctc_targets=None if self.target_encoder.ctc is None else [[1]],
            seeds=[0],
        )


def _values(batch: Batch) -> list[float]:
    tokens, labels = sum(map(len, batch.targets)), sum(map(len, batch.ctc_targets or []))
    return [len(batch.targets), tokens, labels, len(batch.dropped)]


class _Loader:
    """Reads batches from a DataLoader. The loader processes end when the context exits."""

    def __init__(self, loader: DataLoader[Batch | Failure]) -> None:
        before = set(active_children())
        self._batches: Iterator[Batch | Failure] | None = iter(loader)
        self._processes = set(active_children()) - before

    def __enter__(self) -> _Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._batches = None  # ends the loader processes

    def next(self, stop: StopSignal) -> Batch | Failure | None:
        """Return the next batch, or None if a stop was requested."""
        assert self._batches is not None
        try:
            with stop.waiting():
                return next(self._batches)
        except StopAsked:
            return None

    def give_up(self) -> None:
        """Make the loader processes stop loading their current batches."""
        for process in self._processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGINT)


_STOP = StopSignal()
"""The stop signal of a loader process."""


class _FailuresAsValues(Dataset[Batch | Failure]):
    """Returns a :class:`Failure` if a batch cannot be loaded. A DataLoader would change the type of a UserError."""

    def __init__(self, batches: PlannedBatches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, k: int) -> Batch | Failure:
        try:
            with _STOP.waiting():
                return self._batches[k]
        except UserError as error:
            return Failure.of(error, "a process that loads clips")
        except StopAsked:
            if get_worker_info() is None:
                raise
            return Failure(UserError, "a process that loads clips received a signal", "a process that loads clips")


def _outlive_the_first_signal(worker: int) -> None:
    """Handle signals in a loader process. The first signal ends the loading of a batch, but not the process.

    Ctrl-C and many schedulers signal every process, but a loader process must not end before the training process has
    saved a checkpoint. After saving, the training process may send a second SIGTERM, which ends a loader process.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _STOP.ask()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
