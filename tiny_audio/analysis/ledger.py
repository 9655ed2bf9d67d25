"""Compute the time, cost and energy of a run from the totals that :mod:`tiny_audio.training.ledger` collects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JOULES_PER_KWH = 3.6e6
_MACHINE = (
    *("num_processes", "peak_source", "peak_memory_bytes", "memory_of"),
    *("power_watts", "power_source"),
)
Row = tuple[str, str, str]

_UNKNOWN = "not known"


def account(totals: Mapping[str, Any], price_per_hour: float | None, grid_gco2_per_kwh: float) -> dict[str, Any]:
    """Compute the resource usage of a run for its report. Unknown values are None.

    Args:
        totals: the result of :meth:`tiny_audio.training.ledger.Ledger.totals`.
        price_per_hour: US dollars per hour for all devices of the run. If None, the estimate in ``totals`` is used.
        grid_gco2_per_kwh: grams of CO2 per kWh of electricity.
    """
    occupied_h = (totals["wall_s"] + totals["beside_s"]) / 3600
    given = price_per_hour is not None
    price = price_per_hour if given else totals["price_per_hour"]
    joules = totals["measured_j"] + totals["rated_j"]
    kwh = joules / JOULES_PER_KWH if joules else None
    return {
        "audio_hours": totals["audio_s"] / 3600,
        **rates(totals),
        "tokens": totals["tokens"],
        "flops": totals["flops"] or None,
        # A run can continue on another machine with another peak. Therefore, use the time-weighted mean over all steps.
        "peak_tflops": totals["possible_flops"] / totals["wall_s"] / 1e12 if totals["possible_flops"] else None,
        "step_hours": totals["wall_s"] / 3600,
        "occupied_hours": occupied_h,
        **{key: totals[key] for key in _MACHINE},
        "price_per_hour": price,
        "price_source": "given" if given else None if price is None else "rough, from the table",
        "cost_usd": None if price is None else price * occupied_h,
        "energy_kwh": kwh,
        "energy_measured_share": totals["measured_j"] / joules if joules else None,
        "grid_gco2_per_kwh": grid_gco2_per_kwh,
        "co2_kg": None if kwh is None else kwh * grid_gco2_per_kwh / 1000,
    }


def rates(sums: Mapping[str, float]) -> dict[str, float | None]:
    """Compute rates of training steps: throughput, share of padding, share of time waiting for data, and FLOPs as a
    share of the peak."""
    step_s = max(1e-9, sums["wall_s"])
    return {
        "audio_hours_per_hour": sums["audio_s"] / step_s,
        "padding_share": 1 - sums["audio_s"] / max(1e-9, sums["padded_s"]),
        "tokens_per_s": sums["tokens"] / step_s,
        "data_wait_share": sums["waited_s"] / step_s,
        "utilization": sums["flops"] / sums["possible_flops"] if sums["possible_flops"] else None,
    }


def ledger_rows(ledger: Mapping[str, Any]) -> list[Row]:
    """Return table rows (quantity, value, how the value was obtained) from the result of :func:`account`."""
    return [
        ("throughput", f"{ledger['audio_hours_per_hour']:,.1f} hours of audio/h", "during training steps"),
        ("text", f"{ledger['tokens_per_s']:,.1f} tokens/s", f"{ledger['tokens']:,} target tokens"),
        ("padding", f"{ledger['padding_share']:.1%}", "of the audio in batches"),
        ("waiting for data", f"{ledger['data_wait_share']:.1%}", "of the time for training steps"),
        _work(ledger),
        _utilization(ledger),
        ("peak memory", f"{ledger['peak_memory_bytes'] / 2**30:.2f} GiB", _memory_source(ledger)),
        _time(ledger),
        _cost(ledger),
        *_energy(ledger),
    ]


def _work(ledger: Mapping[str, Any]) -> Row:
    if ledger["flops"] is None:
        return "work", _UNKNOWN, "the dry run of the model failed"
    return "work", _scaled(ledger["flops"], "FLOPs"), "counted as tiny-audio plan does, without padding"


def _utilization(ledger: Mapping[str, Any]) -> Row:
    if ledger["utilization"] is None:
        return "utilization", _UNKNOWN, "needs the FLOPs"
    peak = f"{_scaled(1e12 * ledger['peak_tflops'], 'FLOPS')} ({ledger['peak_source']})"
    return "utilization", f"{ledger['utilization']:.1%}", f"of the peak, {peak}"


def _memory_source(ledger: Mapping[str, Any]) -> str:
    if ledger["memory_of"] == "GPU":
        return "of the GPU, by PyTorch's allocator"
    return "resident, of the training process"


def _time(ledger: Mapping[str, Any]) -> Row:
    overhead = ledger["occupied_hours"] - ledger["step_hours"]
    share = overhead / ledger["occupied_hours"] if ledger["occupied_hours"] else 0.0
    how = (
        f"{share:.1%} for evaluation, checkpoints and export; startup, steps lost when the process was killed, and "
        "this report are not counted"
    )
    return "time", _duration(ledger["occupied_hours"]), how


def _cost(ledger: Mapping[str, Any]) -> Row:
    if ledger["cost_usd"] is None:
        return "cost", _UNKNOWN, "set execution.price_per_hour"
    return "cost", f"${ledger['cost_usd']:,.2f}", f"${ledger['price_per_hour']:,.2f} an hour ({ledger['price_source']})"


def _energy(ledger: Mapping[str, Any]) -> list[Row]:
    share, watts, source = ledger["energy_measured_share"], ledger["power_watts"], ledger["power_source"]
    if share is None:
        return [("energy", _UNKNOWN, source), ("CO2", _UNKNOWN, "needs the energy")]
    rated = f"from the rated power, {watts:,.0f} W ({source})" if watts else "from the rated power"
    if share == 1:
        how = "measured by NVML, GPUs only" if ledger["num_processes"] > 1 else "measured by NVML, GPU only"
    elif share == 0:
        how = f"not measured: {rated}, assumed constant"
    else:
        how = f"{share:.0%} measured by NVML, otherwise {rated}"
    co2 = (
        _scaled(1000 * ledger["co2_kg"], "g"),
        f"{ledger['grid_gco2_per_kwh']:,.0f} g/kWh (execution.grid_gco2_per_kwh)",
    )
    return [("energy", _scaled(1000 * ledger["energy_kwh"], "Wh"), how), ("CO2", *co2)]


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} min"
    return f"{hours:.1f} h"


def _scaled(count: float, unit: str) -> str:
    prefixes = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"))
    size, prefix = next((pair for pair in prefixes if count >= pair[0]), prefixes[-1])
    return f"{three_digits(count / size)} {prefix}{unit}"


def three_digits(value: float) -> str:
    """Format a number below a million with three significant digits, never with an exponent: 1234.5 -> 1230."""
    return f"{float(f'{value:.3g}'):g}"
