"""Commands in processes of their own, and what tests do to them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tiny_audio.training.metrics import read_metrics

PATIENCE_S = 180.0

Process = subprocess.Popen[str]


def in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``tiny-audio`` with these arguments."""
    command = [str(Path(sys.executable).with_name("tiny-audio")), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)


def start(recipe: Path, folder: Path, *overrides: str) -> Process:
    """Begin ``tiny-audio run``."""
    command = [sys.executable, "-m", "tiny_audio.cli", "run", str(recipe), *overrides, "--output-dir", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: Process) -> tuple[int, str, str]:
    """Wait for the end: exit code, standard output, standard error."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def wait_until(process: Process, happened: Callable[[], bool], pause_s: float = 0.002) -> bool:
    """Wait until something happens; False if the process ended first."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None:
        if happened():
            return True
        assert time.monotonic() < deadline
        time.sleep(pause_s)
    return False


def is_writing(checkpoints: Path) -> bool:
    """Whether a checkpoint is being written, or was when the process was killed."""
    try:
        with os.scandir(checkpoints) as entries:
            return any(entry.name.startswith(".writing-step-") for entry in entries)
    except FileNotFoundError:
        return False


def last_step(folder: Path) -> int:
    """The last step that the metrics of a run folder have."""
    rows = read_metrics(folder / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def kill(process: Process) -> None:
    """End the process as ``kill -9`` does."""
    process.kill()
    process.communicate(timeout=PATIENCE_S)
