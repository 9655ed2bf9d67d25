"""Print the results of a benchmark, and write them to a page with the date, the machine and the command."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


class Record:
    """Collects lines for the console and for a Markdown page.

    Args:
        title: title of the page.
        path: path of the page. If None, no page is written.
    """

    def __init__(self, title: str, path: Path | None) -> None:
        self._path = path
        self._lines = [
            f"# {title}",
            "",
            f"Measured on {datetime.now(UTC):%Y-%m-%d}, {machine()}:",
            "",
            f"    {command()}",
        ]
        self.broken: list[str] = []
        """Claims that do not hold."""
        print("\n".join(self._lines[2:]))

    def say(self, text: str = "") -> None:
        """Add a paragraph."""
        self._add("", text)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table."""
        self._add("", f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}")
        self._add(*(f"| {' | '.join(map(str, row))} |" for row in rows))

    def bar(self, claim: str, holds: bool) -> None:
        """Add a claim, and whether it holds."""
        self._add(f"- {claim}: {'holds' if holds else 'FAILS'}")
        if not holds:
            self.broken.append(claim)

    def write(self) -> int:
        """Write the page, if there is a path, and return the exit code."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("\n".join(self._lines) + "\n")
        return int(bool(self.broken))

    def _add(self, *lines: str) -> None:
        self._lines += lines
        print("\n".join(lines), flush=True)


def machine() -> str:
    """Describe the CPU, the GPU, the number of threads and the load."""
    cpus = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if cpus.exists():
        names = [line.partition(":")[2].strip() for line in cpus.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    load = f"load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else "load unknown"
    threads = torch.get_num_threads()
    return f"{os.cpu_count()} cores ({model}), {gpu}, torch {torch.__version__}, {threads} threads, {load}"


def command() -> str:
    """Return the command line of this benchmark."""
    return " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format the median and the range."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"
