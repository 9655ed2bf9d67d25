"""Write ``metrics.jsonl``, with one line per event, and send its numbers to trackers. A restarted run continues it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_audio.runtime.files import write_atomically
from tiny_audio.training.trackers import Tracker


class MetricsLog:
    """Appends rows to ``metrics.jsonl``, and their numbers to trackers.

    Args:
        run_dir: folder of the file.
        step: the step that training continues from. Rows of later steps are removed, because these steps run again.
        trackers: they also receive the numbers, under names such as ``kind/name``.
    """

    def __init__(self, run_dir: Path, step: int, trackers: Sequence[Tracker] = ()) -> None:
        self.path = run_dir / "metrics.jsonl"
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = self.path.open("a", encoding="utf-8")
        self._trackers = trackers

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a row, and send its numbers to the trackers. Non-finite numbers become null."""
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[name] = None
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all complete rows of a metrics file. A truncated last line is ignored."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # text after the last newline is incomplete
    return [json.loads(line) for line in lines]
