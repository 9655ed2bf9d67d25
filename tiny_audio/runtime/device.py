"""The device that a run and a command use, and how it multiplies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from tiny_audio.config import RunFailed, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def device_of(setting: str) -> torch.device:
    """The device that ``execution.device`` means on this machine.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.device is cuda, and this machine has no CUDA GPU; set it to auto or cpu")
    return torch.device("cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu")


def set_tf32(allowed: bool) -> None:
    """Whether a GPU may multiply fp32 matrices, and convolve, in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def in_parts_that_fit(run: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
    """``run(items)``; where a GPU cannot hold them all, halves of them, as often as it takes.

    Raises:
        RunFailed: a single one is too large.
    """
    try:
        return run(items)
    except torch.OutOfMemoryError as error:
        if len(items) == 1:
            raise RunFailed(
                f"the GPU ran out of memory with a single clip: {str(error).partition(chr(10))[0]} See with nvidia-smi "
                "what else is on it, or take one with more memory."
            ) from error
    # Not within the handler: the error holds what was computed until then.
    torch.cuda.empty_cache()
    middle = len(items) // 2
    return in_parts_that_fit(run, items[:middle]) + in_parts_that_fit(run, items[middle:])
