"""Write ``metrics.jsonl``, with one line per event. A restarted run continues the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tiny_audio.runtime.files import write_atomically


class MetricsLog:
    """Appends rows to ``metrics.jsonl`` and scalars to TensorBoard.

    Args:
        run_dir: folder of the file. TensorBoard's files are in its subfolder ``tensorboard/``.
        step: the step that training continues from. Rows of later steps are removed, because these steps run again.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = run_dir / "metrics.jsonl"
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a row, and write its numbers to TensorBoard as ``kind/name``. Non-finite numbers become null."""
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[name] = None
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all complete rows of a metrics file. A truncated last line is ignored."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # text after the last newline is incomplete
    return [json.loads(line) for line in lines]
