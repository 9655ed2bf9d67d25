"""Take one optimizer step, with its forward and backward passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tiny_audio.config import RunFailed, first_line
from tiny_audio.model.splicing import TargetScores
from tiny_audio.runtime.device import is_out_of_memory
from tiny_audio.runtime.world import World
from tiny_audio.training.parallel import plain, synchronizing


@dataclass(frozen=True)
class StepResult:
    """Losses and gradient norm of a step, the same in every process."""

    decoder_loss: float
    """The decoder's loss in nats, summed over the step's tokens."""
    ctc_loss: float
    """The CTC loss in nats, summed over the step's labels."""
    alignment_loss: float
    """The alignment loss in nats, summed over the step's tokens without the end tokens."""
    num_unaligned: int
    """Number of clips with too few audio embeddings for their tokens. Their alignment loss is 0."""
    gradient_norm: float
    """Norm before clipping."""

    @property
    def is_finite(self) -> bool:
        """Whether losses and gradient norm are finite. If not, the weights were not updated."""
        return all(map(math.isfinite, (self.decoder_loss, self.ctc_loss, self.alignment_loss, self.gradient_norm)))


class OutOfMemory(RunFailed):
    """The GPU ran out of memory in a step.

    Args:
        in_update: whether the memory ran out during the update. If so, some weights may already be updated.
        detail: PyTorch's message.
        batches: the batches of the step.
    """

    def __init__(self, in_update: bool, detail: str, batches: Sequence[Any] = ()) -> None:
        super().__init__(f"the GPU ran out of memory: {detail}")
        self.in_update, self.detail, self.batches = in_update, detail, batches


@contextmanager
def _needing_memory(in_update: bool) -> Iterator[None]:
    """Raise :class:`OutOfMemory` if the GPU runs out of memory inside the context."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(in_update, first_line(error)) from error


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    forwards: Sequence[Callable[[], TargetScores]],
    *,
    num_tokens: int,
    num_labels: int,
    ctc_weight: float,
    alignment_weight: float = 0.0,
    max_gradient_norm: float,
    world: World,
) -> StepResult:
    """Update the weights with the gradient of the step's loss over all batches and processes.

    The step's loss is ``decoder_loss / num_tokens + ctc_weight * ctc_loss / num_labels + alignment_weight *
    alignment_loss / num_tokens``. Each of the three losses is a sum over all batches and processes. If a loss or
    gradient is not finite in any process, no process updates its weights.

    Args:
        model: the model. With several processes, it is wrapped or sharded.
        forwards: for each batch, a function that scores this process's clips of the batch.
        num_tokens, num_labels: totals over the step's batches and all processes.
        max_gradient_norm: larger gradients are scaled down to this norm.

    Raises:
        OutOfMemory: the GPU ran out of memory.
    """

    def differentiate() -> StepResult:
        # This is a function, so that the scores and their autograd graphs are freed before the update.
        decoder_losses, ctc_losses, alignment_losses, unaligned = [], [], [], []
        for index, forward in enumerate(forwards):
            with synchronizing(model, index == len(forwards) - 1):
                scores = forward()
                decoder_loss = scores.decoder_loss.sum()
                decoder_losses.append(decoder_loss.detach())
                loss = decoder_loss / num_tokens
                if scores.ctc_loss is not None:
                    ctc_loss = scores.ctc_loss.sum()
                    ctc_losses.append(ctc_loss.detach())
                    loss = loss + ctc_weight * ctc_loss / max(1, num_labels)
                if scores.alignment_loss is not None and scores.aligned is not None:
                    alignment_loss = scores.alignment_loss.sum()
                    alignment_losses.append(alignment_loss.detach())
                    unaligned.append((~scores.aligned).sum())
                    loss = loss + alignment_weight * alignment_loss / num_tokens
                # Processes average their gradients. The factor world.size turns the average into a sum.
                (loss * world.size).backward()  # type: ignore[no-untyped-call]
        gradient_norm = float(plain(nn.utils.clip_grad_norm_(model.parameters(), max_gradient_norm)))
        sums = world.sum(list(map(_total, (decoder_losses, ctc_losses, alignment_losses, unaligned))))
        return StepResult(sums[0], sums[1], sums[2], int(sums[3]), gradient_norm)

    with _needing_memory(in_update=False):
        result = differentiate()
    if result.is_finite:
        with _needing_memory(in_update=True):
            optimizer.step()
    optimizer.zero_grad()
    return result


def _total(losses: Sequence[torch.Tensor]) -> float:
    """Sum the losses with one transfer from the device."""
    return sum(torch.stack(list(losses)).tolist()) if losses else 0.0
