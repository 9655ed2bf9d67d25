"""Measure the cost of projectors: time, memory, parameters, FLOPs and embedding rate.

A case is a combination of a projector, a clip duration and a batch size, without or with a backward pass. pytest runs
``_cases.py`` in a separate process.
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
from tiny_audio.config import RunFailed, UserError, first_line
from tiny_audio.projectors import PROJECTORS, ProjectorContext
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.device import device_bytes, device_name, device_of

PASSES = ("forward", "forward_backward")
CASES_VARIABLE = "TINY_AUDIO_BENCH_CASES"
_CASES = Path(__file__).with_name("_cases.py")


@dataclass(frozen=True)
class ProjectorShape:
    """The sizes, the frame rate and the precision with which all projectors are measured."""

    in_dim: int = 1280
    """Channels of the encoder's frames. HuBERT XL has 1280."""
    out_dim: int = 2048
    """Channels of the decoder's embeddings. SmolLM3 3B has 2048."""
    frame_rate: float = 50.0
    """Encoder frames per second."""
    precision: Literal["fp32", "bf16"] = "fp32"

    @classmethod
    def of(cls, recipe: Recipe) -> ProjectorShape:
        """Return the sizes, the frame rate and the precision that a recipe's projector would have.

        Raises:
            UserError: a part cannot be built, or its checkpoint's config cannot be read.
        """
        from tiny_audio.plan.meta import build_on_meta

        model = build_on_meta(recipe).model
        return cls(model.encoder.dim, model.decoder.dim, model.encoder.frame_rate, recipe.training.precision)


@dataclass(frozen=True)
class Effort:
    """The clip durations and batch sizes to measure, and the time for each case."""

    durations_s: tuple[float, ...] = (5.0, 20.0)
    batch_sizes: tuple[int, ...] = (1, 4)
    max_time_s: float = 1.0
    """Seconds for each case, after warm-up and calibration. If ``min_rounds`` rounds take longer, they are still
    completed."""
    min_rounds: int = 3


def time_projectors(
    variants: Sequence[Variant], shape: ProjectorShape, effort: Effort, device: str = "auto"
) -> dict[str, Any]:
    """Measure every variant with every clip duration and batch size, both without and with a backward pass.

    Frames and weights are random. The CTC labels, which some projectors read, change every second frame on average.

    Returns:
        the settings, the machine, the versions, the date and ``cases``. The times of a case are in seconds. In
        ``flops``, a multiply-add counts as two. ``peak_bytes`` excludes weights and frames. ``embeddings_per_s`` is per
        second of audio.

    Raises:
        UserError: pytest-benchmark is missing, a variant is not valid or does not fit into memory, or a duration is too
            short for a variant.
        RunFailed: a projector failed. Its traceback is printed.
    """
    missing = [name for name in ("pytest", "pytest_benchmark") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"bench needs {' and '.join(missing)}; install with: pip install 'tiny-audio[bench]'")
    chosen = device_of(device)
    _check(variants, shape, effort, chosen)
    cases = [
        {
            **asdict(shape),
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
        "shape": asdict(shape),
        "effort": asdict(effort),
        "device": device_name(chosen),
        "threads": torch.get_num_threads(),
        "machine": measured["machine_info"],
        "versions": {"torch": torch.__version__, "pytest-benchmark": measured["version"]},
        "date": measured["datetime"],
        "cases": [_row(entry) for entry in measured["benchmarks"]],
    }


def _check(variants: Sequence[Variant], shape: ProjectorShape, effort: Effort, device: torch.device) -> None:
    _check_sizes(variants, shape, device)
    shortest = int(min(effort.durations_s) * shape.frame_rate)
    for variant in variants:
        needed = variant.config().min_frames()
        if shortest < needed:
            raise UserError(
                f"--durations: {min(effort.durations_s):g} s are {shortest} frames, but {variant.label} needs "
                f"{needed}; give longer durations"
            )


def _check_sizes(variants: Sequence[Variant], shape: ProjectorShape, device: torch.device) -> None:
    """Reject variants that cannot be built, or whose weights and gradients in fp32 do not fit into memory."""
    memory = device_bytes(device)
    context = ProjectorContext(shape.in_dim, shape.out_dim, shape.frame_rate, 1.0)
    for variant in variants:
        try:
            with torch.device("meta"):
                projector = PROJECTORS.build(variant.config(), context)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"--variants: {variant.label} cannot be built: {first_line(error)}; use smaller values"
            ) from error
        needed = 2 * 4 * sum(tensor.numel() for tensor in projector.parameters())
        if needed > memory:
            raise UserError(
                f"--variants: {variant.label} needs {needed / 2**30:,.0f} GiB for its weights and their gradients, but "
                f"{memory / 2**30:.0f} GiB are available; use smaller values"
            )


def _run(cases: Sequence[dict[str, Any]], effort: Effort, folder: Path) -> dict[str, Any]:
    given, result = folder / "cases.json", folder / "result.json"
    given.write_text(json.dumps(cases))
    # The user's own pytest configuration, options and plugins must not change the measurement.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV_CORE_"))}
    environment |= {CASES_VARIABLE: str(given), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", str(_CASES), "-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "--rootdir", str(folder), "--confcutdir", str(folder), "--no-header", "-v", "-x"]
    command += [f"--benchmark-json={result}", "--benchmark-disable-gc", "--benchmark-warmup=on"]
    command += [f"--benchmark-max-time={effort.max_time_s:g}", f"--benchmark-min-rounds={effort.min_rounds}"]
    command += ["--benchmark-warmup-iterations=1", "--benchmark-quiet"]
    # Progress goes to stderr, because a script may read stdout.
    done = subprocess.run(command, env=environment, stdout=sys.stderr.fileno(), check=False)
    if done.returncode != 0:
        raise RunFailed(f"a projector could not be measured; see the output above (pytest exit code {done.returncode})")
    measured: dict[str, Any] = json.loads(result.read_text())
    return measured


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    stats = entry["stats"]
    times = {f"{name}_s": stats[name] for name in ("median", "min", "mean", "stddev")}
    return {**entry["extra_info"], **times, "rounds": stats["rounds"], "iterations": stats["iterations"]}
