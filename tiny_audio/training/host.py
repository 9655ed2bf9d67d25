"""Peak FLOPs per second, power and price of the machine."""

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
    """The devices of all processes of a run. They are assumed to be of the same type."""

    device: torch.device
    """Device of this process."""
    num_processes: int
    peak_flops: float
    """Peak FLOPs per second of the devices of all processes together."""
    peak_source: str
    """Origin of ``peak_flops``, for a report."""
    rated_watts: float
    """Maximum power of the devices of all processes together. 0 if unknown."""
    power_source: str
    """Origin of ``rated_watts``, for a report."""
    price_per_hour: float | None
    """US dollars per hour for the devices of all processes, from the table of GPUs. None if unknown."""
    joules: Callable[[], float] | None
    """Reads the energy meter of this process's device. Only differences between values are meaningful. None if there is
    no meter."""

    @classmethod
    def of(
        cls, device: torch.device, execution: ExecutionConfig, training: TrainingConfig, num_processes: int = 1
    ) -> Host:
        """Return the figures of this machine.

        Peak FLOPs and power come from the settings, or else from the table of GPUs. If neither contains the peak FLOPs,
        they are measured. If neither contains the power, it is assumed for a CPU and unknown for other devices. The
        price comes only from the table.
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
        """Return the peak memory of PyTorch's allocator on a CUDA GPU, or of this process on other devices."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident_bytes()


@cache
def measured_peak(device: torch.device, dtype: torch.dtype, tf32: bool, threads: int) -> float:
    """Measure FLOPs per second as the fastest of several large matrix products.

    Args:
        dtype: type of the factors.
        tf32, threads: the current settings of PyTorch. They affect the speed, so they must be part of the cache key.
            This function does not change them.
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
    """Return a function that reads the energy meter of a GPU, in joules.

    Returns None if ``nvidia-ml-py`` is not installed, or if the GPU has no meter.

    Args:
        uuid: identifies the GPU. An index would be ambiguous, because NVML also counts GPUs that this process cannot
            use.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle: Any = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:  # no driver, a GPU older than Volta, or a MIG slice of a GPU
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
