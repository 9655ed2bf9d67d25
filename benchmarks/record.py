"""Prints what a benchmark found, and keeps it as a page with the date, the machine and the command."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


class Record:
    """Lines as they come, on the console and in a Markdown page.

    Args:
        title: of the page.
        path: where :meth:`write` puts it; None prints only.
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
        """Bars that do not hold."""
        print("\n".join(self._lines[2:]))

    def say(self, text: str = "") -> None:
        """A paragraph."""
        self._add("", text)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Numbers to the right, the first column to the left."""
        self._add("", f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}")
        self._add(*(f"| {' | '.join(map(str, row))} |" for row in rows))

    def bar(self, claim: str, holds: bool) -> None:
        """A bound that the benchmark sets, and whether it holds."""
        self._add(f"- {claim}: {'holds' if holds else 'IS BROKEN'}")
        if not holds:
            self.broken.append(claim)

    def write(self) -> int:
        """The page, where one was asked for; gives the exit code."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("\n".join(self._lines) + "\n")
        return int(bool(self.broken))

    def _add(self, *lines: str) -> None:
        self._lines += lines
        print("\n".join(lines), flush=True)


def machine() -> str:
    """Processor, threads, what else keeps it busy, and the GPU."""
    cpus = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if cpus.exists():
        names = [line.partition(":")[2].strip() for line in cpus.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    load = f"load average {os.getloadavg()[0]:.1f} at the start"
    threads = torch.get_num_threads()
    return f"{os.cpu_count()} cores ({model}), {gpu}, torch {torch.__version__}, {threads} threads, {load}"


def command() -> str:
    """As it was typed."""
    return " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    middle = (
        sorted(values)[len(values) // 2] if len(values) % 2 else sum(sorted(values)[len(values) // 2 - 1 :][:2]) / 2
    )
    return f"{middle:.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"
