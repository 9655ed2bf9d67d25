"""Choose a device (CUDA, Apple's MPS or the CPU), and handle its memory and settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch

from tiny_audio.config import RunFailed, UserError
from tiny_audio.runtime.memory import machine_bytes

Item = TypeVar("Item")
Result = TypeVar("Result")

DEVICES = ("auto", "cpu", "cuda", "mps")
"""Allowed values of ``execution.device`` and ``--device``."""


def device_of(setting: str) -> torch.device:
    """Return the device for one of :data:`DEVICES`; ``auto`` is the first available of CUDA, MPS and CPU.

    Raises:
        UserError: the setting names a GPU that this machine does not have.
    """
    if setting in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if setting in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if setting in ("cuda", "mps"):
        kind = "CUDA" if setting == "cuda" else "Apple"
        raise UserError(f"execution.device is {setting}, but this machine has no {kind} GPU; use auto or cpu")
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or ``cpu``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else "cpu"


def device_bytes(device: torch.device) -> int:
    """Return the size of the device's memory in bytes. An Apple GPU shares the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return machine_bytes()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def empty_cache() -> None:
    """Release GPU memory that PyTorch has reserved but does not use."""
    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def set_tf32(allowed: bool) -> None:
    """Set whether CUDA GPUs may use TF32 for fp32 matrix products and convolutions. Other devices have no TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error means that a GPU ran out of memory.

    For MPS, PyTorch has no separate exception class, so the message is searched.
    """
    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)


def in_parts_that_fit(run: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
    """Return ``run(items)``. If the GPU runs out of memory, split the items into halves until they fit.

    Raises:
        RunFailed: a single item does not fit.
    """
    try:
        return run(items)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(items) == 1:
            raise RunFailed(
                f"the GPU ran out of memory with a single clip: {str(error).partition(chr(10))[0]} Check with "
                "nvidia-smi which other processes use the GPU, or use a GPU with more memory."
            ) from error
    # Retry outside the except block, because the error holds references to the tensors computed so far.
    empty_cache()
    middle = len(items) // 2
    return in_parts_that_fit(run, items[:middle]) + in_parts_that_fit(run, items[middle:])


def frozen_type(precision: Literal["fp32", "bf16"], device: str) -> torch.dtype:
    """Return the data type of frozen weights.

    It is bf16 if the precision is bf16 and the device is a CUDA GPU or a CPU, because autocast would cast fp32 weights
    to bf16 in every step. In all other cases, it is fp32.
    """
    return torch.bfloat16 if precision == "bf16" and device in ("cuda", "cpu") else torch.float32
