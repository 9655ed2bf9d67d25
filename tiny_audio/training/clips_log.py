"""Write ``clips.jsonl``, which lists the clips of each step. A restarted run continues the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_audio.runtime.files import write_atomically
from tiny_audio.training.metrics import read_metrics


class ClipsLog:
    """Appends one line per batch. The file helps to find clips that cause jumps of the loss.

    Args:
        path: the file.
        step: the step that training continues from. Lines of later steps are removed, because these steps run again.
    """

    def __init__(self, path: Path, step: int) -> None:
        rows = [row for row in read_metrics(path) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._path = path

    def write(self, step: int, **values: Any) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
