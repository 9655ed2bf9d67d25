"""Table of machines: memory, peak speed and price per hour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from tiny_audio.config import UserError
from tiny_audio.recipe import TrainingConfig
from tiny_audio.registry import did_you_mean
from tiny_audio.runtime.memory import machine_bytes

GIB = 2**30
PRICES = (
    "rough, for one GPU rented by the hour without a commitment; prices fall over time, and providers differ by a "
    "factor of two"
)
"""Description of the prices in the table."""

CONTEXT_BYTES = int(0.6 * GIB)
"""Allowance for CUDA's context and the permanent workspaces of cuBLAS and cuDNN."""
PROCESS_BYTES = int(0.7 * GIB)
"""Allowance on a CPU for the Python interpreter and its libraries."""
FRAGMENTATION = 0.06
"""Allowance for fragmentation, as a share of the peak memory of tensors. Blocks that one batch frees rarely fit the
tensors of the next batch."""


@dataclass(frozen=True)
class Machine:
    """A GPU, or a CPU."""

    name: str
    memory_bytes: int
    """Memory reported by PyTorch. It is less than the nominal size, because error correction and the driver use
    memory."""
    bf16_tflops: float
    """Peak speed of dense matrix products with fp32 accumulation, in TFLOPs per second. Datasheets also have larger
    numbers for sparse matrices."""
    tf32_tflops: float
    fp32_tflops: float
    price_per_hour: float | None
    """US dollars. None for a CPU."""
    rated_watts: float
    """Maximum sustained power of the chip or card."""
    reported_as: tuple[str, ...] = ()
    """Names of the GPU in PyTorch. Variants of the GPU with other peak speeds are not included."""
    device: Literal["cuda", "cpu"] = "cuda"

    def peak_flops(self, training: TrainingConfig) -> float:
        """Return the peak FLOPs per second at the recipe's precision."""
        if self.device == "cuda" and training.precision == "bf16":
            return self.bf16_tflops * 1e12
        return (self.tf32_tflops if training.tf32 else self.fp32_tflops) * 1e12

    def needed_bytes(self, peak_bytes: int) -> int:
        """Return the bytes that a step needs, given the peak memory of its tensors. The allowances are included."""
        share, constant = self._allowances()
        return int(peak_bytes * (1 + share)) + constant

    def peak_that_fits(self) -> int:
        """Return the largest ``peak_bytes`` for which :meth:`needed_bytes` is at most the machine's memory."""
        share, constant = self._allowances()
        return max(0, int((self.memory_bytes - constant) / (1 + share)))

    def _allowances(self) -> tuple[float, int]:
        return (FRAGMENTATION, CONTEXT_BYTES) if self.device == "cuda" else (FRAGMENTATION, PROCESS_BYTES)


def _gpu(
    name: str, memory_gib: float, bf16: float, tf32: float, fp32: float, price: float, watts: float, *reported: str
) -> Machine:
    names = tuple(f"NVIDIA {name}" for name in reported)
    return Machine(name, int(memory_gib * GIB), bf16, tf32, fp32, price, watts, names)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("l4", 22.0, 121, 60, 30.3, 0.44, 72, "L4"),
        _gpu("rtx3090", 23.6, 71, 35.6, 35.6, 0.46, 350, "GeForce RTX 3090"),
        _gpu("rtx4090", 23.6, 165, 82.6, 82.6, 0.69, 450, "GeForce RTX 4090"),
        _gpu("a100-40g", 39.4, 312, 156, 19.5, 1.29, 400, "A100-SXM4-40GB"),
        _gpu("a40", 44.3, 149.7, 74.8, 37.4, 0.44, 300, "A40"),
        _gpu("l40s", 44.4, 362, 183, 91.6, 0.86, 350, "L40S"),
        _gpu("rtx6000-ada", 47.4, 364, 182, 91.1, 0.77, 300, "RTX 6000 Ada Generation"),
        _gpu("a100-80g", 79.1, 312, 156, 19.5, 1.64, 400, "A100-SXM4-80GB"),
        _gpu("h100", 79.1, 989, 494, 67, 2.99, 700, "H100 80GB HBM3"),
        _gpu("h200", 139.7, 989, 494, 67, 3.99, 700, "H200"),
    )
}
"""GPUs, sorted by memory. Peak speeds and rated powers are from NVIDIA's datasheets. For H100 and H200, the numbers
are those of the SXM variants. For the RTX cards, the peak speeds are those with fp32 accumulation."""

_CPU_TFLOPS_PER_CORE = 0.05
"""Assumed speed of one core in fp32, about half of the peak of AVX2 at 3 GHz."""
CPU_WATTS_PER_CORE = 8.0
"""Assumed power per core. Server CPUs are rated at 3 to 6 W per core, and desktop CPUs at 6 to 16 W."""


def this_cpu() -> Machine:
    """Return this machine, with its CPU and memory."""
    tflops = _CPU_TFLOPS_PER_CORE * torch.get_num_threads()
    watts = CPU_WATTS_PER_CORE * torch.get_num_threads()
    return Machine("cpu", machine_bytes(), tflops, tflops, tflops, None, watts, device="cpu")


def gpu_reported_as(name: str) -> Machine | None:
    """Return the GPU in the table that has this name in PyTorch, or None if the table has no such GPU."""
    return next((gpu for gpu in GPUS.values() if name in gpu.reported_as), None)


def machine(name: str) -> Machine:
    """Return the machine with this name in the table. ``cpu`` is this machine.

    Raises:
        UserError: the table has no such name.
    """
    if name == "cpu":
        return this_cpu()
    if name not in GPUS:
        raise UserError(f"--gpu: there is no {name!r} in the table; {did_you_mean(name, [*GPUS, 'cpu'])}")
    return GPUS[name]
