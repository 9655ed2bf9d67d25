"""The training loop of runs and benchmarks. It takes optimizer steps until a budget is spent."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn

from tiny_audio.config import RunFailed
from tiny_audio.model.splicing import TargetScores
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.world import World
from tiny_audio.training.optimization import learning_rate
from tiny_audio.training.progress import Progress
from tiny_audio.training.random_state import rng_state, seed_all, set_rng_state
from tiny_audio.training.step import OutOfMemory, StepResult, take_step


@dataclass(frozen=True)
class Counts:
    """Sizes of one global batch, over all processes."""

    clips: int
    tokens: int
    labels: int
    """Number of labels of the CTC head's targets."""


class CountedBatch(Protocol):
    """The attributes of a batch that the loop uses."""

    @property
    def counts(self) -> Counts:
        """The sizes of the batch."""


BatchT = TypeVar("BatchT", bound=CountedBatch)


@dataclass(frozen=True)
class Budget:
    """The length of a training run: a number of steps, or a number of seconds. Only the time spent in steps counts."""

    steps: int | None = None
    seconds: float | None = None

    def is_spent(self, progress: Progress) -> bool:
        """Whether training is over."""
        if self.seconds is not None:
            return progress.wall_s >= self.seconds
        assert self.steps is not None, "a budget has steps or seconds"
        return progress.step >= self.steps

    def scheduled_step(self, progress: Progress, num_steps: int) -> int:
        """Return the current step of the learning rate schedule, which has ``num_steps`` steps.

        If the budget is in seconds, the result is proportional to the time spent in steps. For example, it is
        ``num_steps / 2`` after half of the budget.
        """
        if self.seconds is not None:
            return int(progress.wall_s / self.seconds * num_steps)
        return progress.step


@dataclass(frozen=True)
class Step(Generic[BatchT]):
    """A finished step."""

    batches: list[BatchT]
    result: StepResult
    wall_s: float
    """Seconds from the start of the wait for the batches to the end of the update."""


class Diverged(RunFailed):
    """Too many consecutive steps had a loss or gradient that is not finite."""


class TrainingLoop(Generic[BatchT]):
    """Takes the steps of one process and counts them in ``progress``.

    Args:
        model: the model. With several processes, it is wrapped (DDP) or sharded (FSDP).
        score: computes the losses of one batch.
        budget: the length of the training run.
        progress: the state to continue from.
        note: receives a message for each skipped step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        score: Callable[[BatchT], TargetScores],
        budget: Budget,
        progress: Progress,
        note: Callable[[str], None] = lambda message: None,
        world: World = World(),  # noqa: B008  # frozen
    ) -> None:
        self.model, self.optimizer, self.score = model, optimizer, score
        self.config, self.ctc, self.alignment = recipe.training, recipe.ctc, recipe.alignment
        self.budget, self.progress, self.note, self.world = budget, progress, note, world

    def steps(self, batches: Iterator[BatchT | None]) -> Iterator[Step[BatchT]]:
        """Train, and yield each finished step.

        Training ends when the budget is spent or a batch is None. The batches of a step are freed when the next step
        begins.

        Raises:
            Diverged: too many consecutive steps were skipped.
            OutOfMemory: a step does not fit into the memory of a GPU.
        """
        while not self.budget.is_spent(self.progress):
            started = time.monotonic()
            group = self._next_group(batches)
            if len(group) < self.config.accumulation:
                return
            waited_s = time.monotonic() - started
            result = self._take_step(group)
            wall_s = time.monotonic() - started
            self.progress.step += 1
            self.progress.waited_s += waited_s
            self.progress.wall_s += wall_s
            yield Step(group, result, wall_s)
            group.clear()  # frees the batches, so that the loader can reuse their memory

    def _next_group(self, batches: Iterator[BatchT | None]) -> list[BatchT]:
        """Return the batches of a step. If a batch is None, return only the batches before it."""
        group: list[BatchT] = []
        while len(group) < self.config.accumulation and (batch := next(batches)) is not None:
            group.append(batch)
        return group

    def _take_step(self, group: list[BatchT]) -> StepResult:
        progress, config = self.progress, self.config
        num_tokens = sum(batch.counts.tokens for batch in group)
        num_labels = sum(batch.counts.labels for batch in group)
        scheduled_step = self.budget.scheduled_step(progress, config.steps)
        for settings in self.optimizer.param_groups:
            settings["lr"] = learning_rate(config, scheduled_step, settings["peak"])
        if self.world.size > 1:
            # Seed each process in every step. A checkpoint has only the main process's random state, and the run may
            # continue with another number of processes.
            seed_all(_step_seed(config.seed, progress.step, self.world.rank))
        before = rng_state()
        try:
            result = take_step(
                self.model,
                self.optimizer,
                [lambda batch=batch: self.score(batch) for batch in group],  # type: ignore[misc]
                num_tokens=num_tokens,
                num_labels=num_labels,
                ctc_weight=self.ctc.weight if self.ctc else 0.0,
                alignment_weight=self.alignment.weight_at(progress.step) if self.alignment else 0.0,
                max_gradient_norm=config.max_gradient_norm,
                world=self.world,
            )
        except OutOfMemory as error:
            self.optimizer.zero_grad()
            set_rng_state(before)  # a checkpoint that is saved now needs the random state before this step
            raise OutOfMemory(error.in_update, error.detail, group) from error
        if result.is_finite:
            progress.skipped_in_a_row = 0
            progress.window_decoder_loss += result.decoder_loss
            progress.window_ctc_loss += result.ctc_loss
            progress.window_alignment_loss += result.alignment_loss
            progress.unaligned_clips += result.num_unaligned
            progress.window_tokens += num_tokens
            progress.window_labels += num_labels
        else:
            self._skip()
        return result

    def _skip(self) -> None:
        progress, step = self.progress, self.progress.step + 1
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        self.note(f"step {step} skipped: its loss or gradient is not finite")
        if progress.skipped_in_a_row > self.config.max_skipped_steps:
            message = (
                f"{progress.skipped_in_a_row} steps in a row, up to step {step}, had a loss or gradient that is not "
                "finite; lower training.learning_rate, or lengthen training.warmup_steps"
            )
            raise self.world.printed_by_main(Diverged(message))


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:4], "big")
