"""What the machine of a run can do and draws, and how each figure is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from tiny_audio.plan import gpu_reported_as, this_cpu
from tiny_audio.recipe import ExecutionConfig, TrainingConfig
from tiny_audio.runtime.device import device_name, synchronize
from tiny_audio.runtime.memory import peak_resident_bytes

_PEAK_SIDE = {"cpu": 1024, "cuda": 8192, "mps": 4096}
_PEAK_S = 0.2


@dataclass(frozen=True)
class Host:
    """The devices of all processes of a run together, which are alike."""

    device: torch.device
    """Of this process."""
    num_processes: int
    peak_flops: float
    """A second."""
    peak_source: str
    rated_watts: float
    power_source: str
    price_per_hour: float | None
    """US dollars, of the table."""
    joules: Callable[[], float] | None
    """A meter: what the device of this process alone has drawn since it began to count. None where nothing measures."""

    @classmethod
    def of(
        cls, device: torch.device, execution: ExecutionConfig, training: TrainingConfig, num_processes: int = 1
    ) -> Host:
        """Settings go before the table, and the table before measurements.

        The peak of a GPU that the table does not know, or of a CPU, is measured, which takes a fraction of a second.
        """
        on_gpu = device.type == "cuda"
        name = device_name(device)
        known = gpu_reported_as(name) if on_gpu else None
        threads = torch.get_num_threads()
        if execution.peak_tflops is not None:
            peak, peak_source = execution.peak_tflops * 1e12, "given"
        elif known is not None:
            peak, peak_source = known.peak_flops(training), f"table, {known.name}"
        else:
            dtype = torch.bfloat16 if on_gpu and training.precision == "bf16" else torch.float32
            peak = measured_peak(device, dtype, training.tf32, threads)
            peak_source = "measured with a matrix product"
        if execution.rated_watts is not None:
            watts, power_source = execution.rated_watts, "given"
        elif known is not None:
            watts, power_source = known.rated_watts, f"table, {known.name}"
        elif device.type != "cpu":
            watts, power_source = 0.0, f"unknown for {name}: set execution.rated_watts"
        else:
            watts, power_source = this_cpu().rated_watts, f"assumed for {threads} CPU thread{'s' * (threads > 1)}"
        price = None if known is None or known.price_per_hour is None else known.price_per_hour * num_processes
        meter = nvml_meter(str(torch.cuda.get_device_properties(device).uuid)) if on_gpu else None
        return cls(
            device,
            num_processes,
            peak * num_processes,
            peak_source,
            watts * num_processes,
            power_source,
            price,
            meter,
        )

    def peak_memory_bytes(self) -> int:
        """Most that was in use at once so far: of the GPU, as PyTorch's allocator counts, or of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident_bytes()


@cache
def measured_peak(device: torch.device, dtype: torch.dtype, tf32: bool, threads: int) -> float:
    """FLOPs a second of the fastest of some large matrix products.

    Args:
        device: where.
        dtype: of the factors.
        tf32: whether a GPU may multiply in TF32; as set before, and here to tell measurements apart.
        threads: of a CPU; likewise.
    """
    side = _PEAK_SIDE[device.type]
    factor = torch.ones(side, side, dtype=dtype, device=device)
    best, until = float("inf"), time.perf_counter() + _PEAK_S
    while time.perf_counter() < until or best == float("inf"):
        started = time.perf_counter()
        factor @ factor
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def nvml_meter(uuid: str) -> Callable[[], float] | None:
    """Joules that a GPU has drawn since its driver was loaded; None without ``nvidia-ml-py``, or where it cannot say.

    Args:
        uuid: of the GPU, since NVML counts GPUs that this process may not see.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle: Any = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:  # no driver, a GPU before Volta, or a slice of one
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
