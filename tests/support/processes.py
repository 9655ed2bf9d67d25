"""Commands in separate processes, and signals to them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tiny_audio.commands.run  # noqa: F401 (so that a fork need not import it)
from tiny_audio.cli import main
from tiny_audio.runtime.files import UNFINISHED
from tiny_audio.training.metrics import read_metrics

PATIENCE_S = 180.0

Process = subprocess.Popen[str]


def in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``tiny-audio`` with these arguments."""
    command = [str(Path(sys.executable).with_name("tiny-audio")), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)


def start(recipe: Path, folder: Path, *overrides: str) -> Process:
    """Start ``tiny-audio run``."""
    return begin("run", recipe, *overrides, "--output-dir", folder)


def begin(*arguments: object, **options: Any) -> Process:
    """Start ``tiny-audio`` with these arguments; see :func:`fork`."""
    return fork(lambda: main([str(argument) for argument in arguments]), **options)


def fork(work: Callable[[], int | None], **options: Any) -> Process:
    """Start a process that does some work and exits with its result.

    The process is a fork of the test. So it keeps the test's patches, and need not import anything again, which would
    take seconds. It has its own streams, signals and exit code. ``options`` are those of :class:`subprocess.Popen`,
    apart from ``env``.
    """
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = streams | {"text": True} | options
    return subprocess.Popen(["fork"], preexec_fn=lambda: _work_and_exit(work), **options)


def _work_and_exit(work: Callable[[], int | None]) -> None:
    """Do the work in the new process, in place of the program that Popen would execute."""
    code = 1
    try:
        # Redirect the test's file descriptors to /dev/null. If they were closed, new files would get their numbers, and
        # file objects of the test could later close the new files. Redirecting also closes the pipe on which Popen
        # waits.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in map(int, os.listdir("/dev/fd")):
            if number > 2 and number != nowhere:
                os.dup2(nowhere, number, inheritable=False)
        sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        logging.getLogger().handlers.clear()
        warnings.resetwarnings()  # restore Python's default filters, with the loop below
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        torch.set_num_threads(1)
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(process: Process) -> tuple[int, str, str]:
    """Wait for the process to end. Return its exit code, standard output and standard error."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def wait_until(process: Process, happened: Callable[[], bool], pause_s: float = 0.002) -> bool:
    """Wait until something happens. Return False if the process ended first."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None:
        if happened():
            return True
        assert time.monotonic() < deadline
        time.sleep(pause_s)
    return False


def is_writing(checkpoints: Path) -> bool:
    """Whether a checkpoint is being written, or was incomplete when the process was killed."""
    try:
        with os.scandir(checkpoints) as entries:
            return any(entry.name.endswith(UNFINISHED) for entry in entries)
    except FileNotFoundError:
        return False


def last_step(folder: Path) -> int:
    """Return the last step in the metrics of a run folder."""
    rows = read_metrics(folder / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def kill(process: Process) -> None:
    """End the process as ``kill -9`` does."""
    process.kill()
    process.communicate(timeout=PATIENCE_S)
