"""``clips.jsonl``: which clips each step was trained on; a restart continues it as if it had never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_audio.runtime.files import write_atomically
from tiny_audio.training.metrics import read_metrics


class ClipsLog:
    """One line for each batch that was used: what a loss that jumps, or an audit, sends one to look for.

    Args:
        path: the file.
        step: the step that training continues from. Lines of later ones are taken out, since those steps come again.
    """

    def __init__(self, path: Path, step: int) -> None:
        rows = [row for row in read_metrics(path) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._path = path

    def write(self, step: int, **values: Any) -> None:
        """A line."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
