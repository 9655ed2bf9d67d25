"""The logs of a run: ``metrics.jsonl``, with one line per event, and ``clips.jsonl``, with the clips of each step.

A restarted run continues both files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_audio.runtime.files import write_atomically
from tiny_audio.training.trackers import Tracker


class MetricsLog:
    """Appends rows to ``metrics.jsonl``, and sends the numbers in these rows to trackers.

    Args:
        run_dir: folder of the file.
        step: the step that training continues from. Rows of later steps are removed, because these steps run again.
        trackers: receive the numbers of each row, under names such as ``train/loss``.
    """

    def __init__(self, run_dir: Path, step: int, trackers: Sequence[Tracker] = ()) -> None:
        self.path = run_dir / "metrics.jsonl"
        _remove_later_rows(self.path, step)
        self._file = self.path.open("a", encoding="utf-8")
        self._trackers = trackers

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a row, and send its numbers to the trackers. Non-finite numbers become null."""
        values = {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.add(step, numbers)

    def close(self) -> None:
        """Flush and close the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


class ClipsLog:
    """Appends one line per batch to ``clips.jsonl``. The file helps to find clips that cause jumps of the loss.

    Args:
        path: the file.
        step: the step that training continues from. Lines of later steps are removed, because these steps run again.
    """

    def __init__(self, path: Path, step: int) -> None:
        _remove_later_rows(path, step)
        self._path = path

    def write(self, step: int, **values: Any) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _remove_later_rows(path: Path, step: int) -> None:
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all complete rows of a metrics file. A truncated last line is ignored."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # text after the last newline is incomplete
    return [json.loads(line) for line in lines]
