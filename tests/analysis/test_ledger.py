"""Tables of resource usage: values and how they were obtained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.analysis.report_data import REPORT
from tiny_audio.analysis.ledger import account, ledger_rows
from tiny_audio.training.host import Host
from tiny_audio.training.ledger import Ledger
from tiny_audio.training.progress import Progress

LEDGER = REPORT["ledger"]


def in_words(**changes: Any) -> dict[str, tuple[str, str]]:
    return {what: (value, how) for what, value, how in ledger_rows({**LEDGER, **changes})}


def test_every_value_says_how_it_was_obtained() -> None:
    assert in_words() == {
        "throughput": ("1,100.0 hours of audio/h", "during training steps"),
        "text": ("3,300.5 tokens/s", "18,000,000 target tokens"),
        "padding": ("3.0%", "of the audio in batches"),
        "waiting for data": ("0.4%", "of the time for training steps"),
        "work": ("2.25 EFLOPs", "counted as tiny-audio plan does, without padding"),
        "utilization": ("41.2%", "of the peak, 150 TFLOPS (table, a40)"),
        "peak memory": ("26.00 GiB", "of the GPU, by PyTorch's allocator"),
        "time": (
            "10.0 h",
            "10.0% for evaluation, checkpoints and export; startup, steps lost when the process was killed, and this "
            "report are not counted",
        ),
        "cost": ("$4.40", "$0.44 an hour (rough, from the table)"),
        "energy": ("2.5 kWh", "measured by NVML, GPU only"),
        "CO2": ("1.11 kg", "445 g/kWh (execution.grid_gco2_per_kwh)"),
    }


@pytest.mark.parametrize(
    ("changes", "what", "expected"),
    [
        ({"flops": None}, "work", ("not known", "the dry run of the model failed")),
        ({"utilization": None}, "utilization", ("not known", "needs the FLOPs")),
        ({"memory_of": "process"}, "peak memory", ("26.00 GiB", "resident, of the training process")),
        (
            {"occupied_hours": 0.05, "step_hours": 0.05},
            "time",
            ("3.0 min", "0.0% for evaluation, checkpoints and export"),
        ),
        ({"cost_usd": None}, "cost", ("not known", "set execution.price_per_hour")),
        (
            {"energy_measured_share": 0.0},
            "energy",
            ("2.5 kWh", "not measured: from the rated power, 300 W (table, a40), assumed constant"),
        ),
        (
            {"energy_measured_share": 0.25},
            "energy",
            ("2.5 kWh", "25% measured by NVML, otherwise from the rated power, 300 W (table, a40)"),
        ),
        (
            {"energy_measured_share": None, "power_source": "unknown for X: set execution.rated_watts"},
            "energy",
            ("not known", "unknown for X: set execution.rated_watts"),
        ),
        ({"num_processes": 2}, "energy", ("2.5 kWh", "measured by NVML, GPUs only")),
        ({"energy_measured_share": None}, "CO2", ("not known", "needs the energy")),
        ({"co2_kg": 8.9e-6}, "CO2", ("8.9 mg", "445 g/kWh")),
        ({"flops": 999.7e12}, "work", ("1000 TFLOPs", "counted")),
    ],
)
def test_unknown_and_estimated_values_are_marked(changes: dict[str, Any], what: str, expected: tuple[str, str]) -> None:
    value, how = in_words(**changes)[what]
    assert value == expected[0]
    assert how.startswith(expected[1])


def test_cost_and_energy_are_computed_from_the_sums() -> None:
    progress = Progress(wall_s=3000, beside_s=600, waited_s=30, audio_s=7200, padded_s=8000, rated_j=7.2e6)
    host = Host(torch.device("cpu"), 1, 1e9, "given", 50.0, "given", 0.5, None)
    totals = Ledger(progress, host, None).totals()
    known = account(totals, None, 100.0)
    assert (known["cost_usd"], known["price_source"]) == (0.5, "rough, from the table")
    assert (known["energy_kwh"], known["co2_kg"]) == (2.0, 0.2)
    assert (known["flops"], known["peak_tflops"], known["utilization"]) == (None, None, None)
    given = account(totals, 3.0, 0.0)
    assert (given["cost_usd"], given["price_source"], given["co2_kg"]) == (3.0, "given", 0.0)
    free = account({**totals, "price_per_hour": None, "rated_j": 0.0}, None, 100.0)
    assert (free["cost_usd"], free["price_source"], free["energy_kwh"], free["co2_kg"]) == (None, None, None, None)
