"""One optimizer step: the only place where gradients come from, for runs and for benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tiny_audio.config import RunFailed
from tiny_audio.model.model import TargetScores
from tiny_audio.training.parallel import plain, synchronizing
from tiny_audio.training.world import World


@dataclass(frozen=True)
class StepResult:
    """What a step says about itself, the same in every process."""

    decoder_loss: float
    """Nats, summed over the step's tokens."""
    ctc_loss: float
    """Nats, summed over the step's labels."""
    gradient_norm: float
    """Before clipping."""

    @property
    def is_finite(self) -> bool:
        """Whether the weights moved."""
        return all(map(math.isfinite, (self.decoder_loss, self.ctc_loss, self.gradient_norm)))


class OutOfMemory(RunFailed):  # what it says, not what it is
    """The GPU has no room for a step.

    Args:
        in_update: whether the weights may be partly updated.
        detail: PyTorch's message.
    """

    batches: Sequence[Any] = ()
    """The batches of the step."""

    def __init__(self, in_update: bool, detail: str) -> None:
        super().__init__(f"the GPU ran out of memory: {detail}")
        self.in_update, self.detail = in_update, detail


@contextmanager
def _needing_memory(in_update: bool) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(in_update, str(error).split("\n")[0]) from error


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    forwards: Sequence[Callable[[], TargetScores]],
    *,
    num_tokens: int,
    num_labels: int,
    ctc_weight: float,
    max_gradient_norm: float,
    world: World,
) -> StepResult:
    """Move the weights by the gradient of a mean over all tokens, however they are cut into batches and processes.

    A loss or gradient that is not finite, in whichever process, leaves the weights as they are in all.

    Args:
        model: as it is wrapped for several processes.
        forwards: score this process's part of each batch.
        num_tokens, num_labels: of all the step's batches, over all processes.
        ctc_weight: of the CTC part, where scores have one.
        max_gradient_norm: gradients are scaled down to it.

    Raises:
        OutOfMemory: of a GPU.
    """
    with _needing_memory(in_update=False):
        result = _differentiated(model, forwards, num_tokens, num_labels, ctc_weight, max_gradient_norm, world)
    if result.is_finite:
        with _needing_memory(in_update=True):
            optimizer.step()
    optimizer.zero_grad()
    return result


def _differentiated(
    model: nn.Module,
    forwards: Sequence[Callable[[], TargetScores]],
    num_tokens: int,
    num_labels: int,
    ctc_weight: float,
    max_gradient_norm: float,
    world: World,
) -> StepResult:
    """Leaves gradients, scaled down, in the model."""
    decoder_losses, ctc_losses = [], []
    for number, forward in enumerate(forwards, start=1):
        with synchronizing(model, number == len(forwards)):
            scores = forward()
            decoder_loss = scores.decoder_loss.sum()
            decoder_losses.append(decoder_loss.detach())
            loss = decoder_loss / num_tokens
            if scores.ctc_loss is not None:
                ctc_loss = scores.ctc_loss.sum()
                ctc_losses.append(ctc_loss.detach())
                loss = loss + ctc_weight * ctc_loss / max(1, num_labels)
            # Processes average their gradients, and each has a share of the sum.
            (loss * world.size).backward()  # type: ignore[no-untyped-call]
    gradient_norm = float(plain(nn.utils.clip_grad_norm_(model.parameters(), max_gradient_norm)))
    totals = world.sum([_total(decoder_losses), _total(ctc_losses)])
    return StepResult(totals[0], totals[1], gradient_norm)


def _total(losses: Sequence[torch.Tensor]) -> float:
    """Read from the device once."""
    return sum(torch.stack(list(losses)).tolist()) if losses else 0.0
