"""The device that a run and a command use, and how it multiplies."""

from __future__ import annotations

import torch

from tiny_audio.config import UserError


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
