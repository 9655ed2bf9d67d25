"""Peak speed, power and energy meter of a machine. They are given in the recipe, measured, or from a table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tiny_audio.plan._hardware import GPUS, gpu_reported_as
from tiny_audio.recipe import ExecutionConfig, TrainingConfig
from tiny_audio.training.host import Host, measured_peak, nvml_meter

CPU = torch.device("cpu")
TRAINING = TrainingConfig(steps=1, learning_rate=1.0)


def test_settings_have_priority_over_the_table_and_measurements() -> None:
    execution = ExecutionConfig(peak_tflops=2.0, rated_watts=70.0)
    given = Host.of(CPU, execution, TRAINING, num_processes=3)
    assert (given.peak_flops, given.peak_source) == (6e12, "given")
    assert (given.rated_watts, given.power_source) == (210.0, "given")


def test_a_cpus_peak_is_measured_and_its_power_assumed() -> None:
    threads = torch.get_num_threads()
    found = Host.of(CPU, ExecutionConfig(), TRAINING)
    assert 1e9 < found.peak_flops < 1e13
    assert found.peak_flops == measured_peak(CPU, torch.float32, False, threads)
    assert found.peak_source == "measured with a matrix product"
    assert found.rated_watts == 8.0 * threads
    assert found.power_source == f"assumed for {threads} CPU thread{'s' if threads > 1 else ''}"
    assert found.price_per_hour is None


def test_a_process_reads_the_meter_of_its_own_gpu(nvml: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234"))
    alone, of_four = (Host.of(torch.device("cuda"), ExecutionConfig(), TRAINING, count) for count in (1, 4))
    assert (of_four.rated_watts, of_four.peak_flops) == (4 * alone.rated_watts, 4 * alone.peak_flops)
    assert of_four.joules is not None
    assert of_four.joules() - of_four.joules() == -2.5


def test_gpus_are_found_by_their_names_in_pytorch() -> None:
    names = [name for gpu in GPUS.values() for name in gpu.reported_as]
    assert len(names) == len(set(names)) == len(GPUS)
    assert gpu_reported_as("NVIDIA H100 80GB HBM3") is GPUS["h100"]
    assert gpu_reported_as("NVIDIA H100 PCIe") is None  # slower than the H100 in the table, at half its rated power


class NvmlError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Install a stand-in for NVML with one GPU, whose counter grows by 2500 mJ at every reading."""
    library: Any = ModuleType("pynvml")
    drawn: Iterator[int] = iter(range(0, 10**6, 2500))

    def handle(uuid: str) -> str:
        if uuid != "GPU-1234":
            raise NvmlError("not found")
        return uuid

    library.NVMLError = NvmlError
    library.nvmlInit = lambda: None
    library.nvmlDeviceGetHandleByUUID = handle
    library.nvmlDeviceGetTotalEnergyConsumption = lambda _: next(drawn)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return library


def test_nvml_measures_joules(nvml: ModuleType) -> None:
    meter = nvml_meter("1234")
    assert meter is not None
    assert meter() - meter() == -2.5
    assert nvml_meter("another") is None


def test_without_nvml_there_is_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml_meter("1234") is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_meter_counts_up() -> None:
    pytest.importorskip("pynvml")
    meter = nvml_meter(str(torch.cuda.get_device_properties(0).uuid))
    assert meter is not None
    before = meter()
    measured_peak(torch.device("cuda"), torch.bfloat16, False, 2)
    assert 0 <= meter() - before < 10_000
