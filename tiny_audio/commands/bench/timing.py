"""Projectors alone: time, memory, parameters, FLOPs and rate, over clip lengths and batch sizes.

Timed by pytest-benchmark in a process of its own, which calibrates, warms up and counts the rounds; see ``_cases.py``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tiny_audio.commands.bench.variants import Variant
from tiny_audio.config import RunFailed, UserError
from tiny_audio.projectors import PROJECTORS, ProjectorContext
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.device import device_bytes, device_name, device_of

PASSES = ("forward", "forward_backward")
CASES_VARIABLE = "TINY_AUDIO_BENCH_CASES"
_CASES = Path(__file__).with_name("_cases.py")


@dataclass(frozen=True)
class Neighbors:
    """What the projectors stand between."""

    in_dim: int = 1280
    """Channels of the encoder's frames; HuBERT XL has 1280."""
    out_dim: int = 2048
    """Channels of the decoder's embeddings; SmolLM3 3B has 2048."""
    frame_rate: float = 50.0
    """Encoder frames per second."""
    precision: Literal["fp32", "bf16"] = "fp32"

    @classmethod
    def of(cls, recipe: Recipe) -> Neighbors:
        """Those of a recipe, from its model on the meta device.

        Raises:
            UserError: a part cannot be built, or its checkpoint's config cannot be read.
        """
        from tiny_audio.plan.meta import build_on_meta

        model = build_on_meta(recipe).model
        return cls(model.encoder.dim, model.decoder.dim, model.encoder.frame_rate, recipe.training.precision)


@dataclass(frozen=True)
class Effort:
    """What is measured, and for how long."""

    durations_s: tuple[float, ...] = (5.0, 20.0)
    batch_sizes: tuple[int, ...] = (1, 4)
    max_time_s: float = 1.0
    """Seconds of rounds for each case, after calibration; at least ``min_rounds`` are run however long they take."""
    min_rounds: int = 3


def time_projectors(
    variants: Sequence[Variant], neighbors: Neighbors, effort: Effort, device: str = "auto"
) -> dict[str, Any]:
    """Measure every variant at every length and batch size, without and with a backward pass.

    Frames and weights are random. Frames of one CTC label, where a projector reads them, come in runs of 2 on average.

    Returns:
        what was measured on, and ``cases``: a row for each with times in seconds, ``flops`` (a multiply-add is two),
        ``peak_bytes`` beyond weights and frames, ``parameters`` and ``embeddings_per_s`` of audio.

    Raises:
        UserError: pytest-benchmark is missing, a variant is not valid, or a length is too short for it.
        RunFailed: a projector failed; its traceback is printed.
    """
    missing = [name for name in ("pytest", "pytest_benchmark") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"bench needs {' and '.join(missing)}; pip install 'tiny-audio[bench]'")
    chosen = device_of(device)
    _check(variants, neighbors, effort, chosen)
    cases = [
        {
            **asdict(neighbors),
            "label": variant.label,
            "section": dict(variant.section),
            "duration_s": duration_s,
            "batch_size": batch_size,
            "which": which,
            "device": str(chosen),
        }
        for variant in variants
        for duration_s in effort.durations_s
        for batch_size in effort.batch_sizes
        for which in PASSES
    ]
    with tempfile.TemporaryDirectory() as folder:
        measured = _run(cases, effort, Path(folder))
    return {
        "neighbours": asdict(neighbors),
        "effort": asdict(effort),
        "device": device_name(chosen),
        "threads": torch.get_num_threads(),
        "machine": measured["machine_info"],
        "versions": {"torch": torch.__version__, "pytest-benchmark": measured["version"]},
        "date": measured["datetime"],
        "cases": [_row(entry) for entry in measured["benchmarks"]],
    }


def _check(variants: Sequence[Variant], neighbors: Neighbors, effort: Effort, device: torch.device) -> None:
    _check_sizes(variants, neighbors, device)
    shortest = int(min(effort.durations_s) * neighbors.frame_rate)
    for variant in variants:
        needed = variant.config().min_frames()
        if shortest < needed:
            raise UserError(
                f"--durations: {min(effort.durations_s):g} s are {shortest} frames, and {variant.label} needs "
                f"{needed}; give longer ones"
            )


def _check_sizes(variants: Sequence[Variant], neighbors: Neighbors, device: torch.device) -> None:
    """Refuse what no memory holds: weights and their gradients, in fp32."""
    memory = device_bytes(device)
    context = ProjectorContext(neighbors.in_dim, neighbors.out_dim, neighbors.frame_rate, 1.0)
    for variant in variants:
        try:
            with torch.device("meta"):
                projector = PROJECTORS.build(variant.config(), context)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--variants: {variant.label} cannot be built: {reason}; shrink its sizes") from error
        needed = 2 * 4 * sum(tensor.numel() for tensor in projector.parameters())
        if needed > memory:
            raise UserError(
                f"--variants: {variant.label} needs {needed / 2**30:,.0f} GiB for its weights and their gradients, and "
                f"there are {memory / 2**30:.0f}; shrink its sizes"
            )


def _run(cases: Sequence[dict[str, Any]], effort: Effort, folder: Path) -> dict[str, Any]:
    given, result = folder / "cases.json", folder / "result.json"
    given.write_text(json.dumps(cases))
    # Nothing of the user's own pytest may change the measurement: no configuration, no options, no other plugins.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV_CORE_"))}
    environment |= {CASES_VARIABLE: str(given), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", str(_CASES), "-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "--rootdir", str(folder), "--confcutdir", str(folder), "--no-header", "-v", "-x"]
    command += [f"--benchmark-json={result}", "--benchmark-disable-gc", "--benchmark-warmup=on"]
    command += [f"--benchmark-max-time={effort.max_time_s:g}", f"--benchmark-min-rounds={effort.min_rounds}"]
    command += ["--benchmark-warmup-iterations=1", "--benchmark-quiet"]
    # Progress is for a person: standard output may be read by a script.
    done = subprocess.run(command, env=environment, stdout=sys.stderr.fileno(), check=False)
    if done.returncode != 0:
        raise RunFailed(f"a projector could not be measured (pytest left with code {done.returncode}); see above")
    measured: dict[str, Any] = json.loads(result.read_text())
    return measured


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    stats = entry["stats"]
    times = {f"{name}_s": stats[name] for name in ("median", "min", "mean", "stddev")}
    return {**entry["extra_info"], **times, "rounds": stats["rounds"], "iterations": stats["iterations"]}
