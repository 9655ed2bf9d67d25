"""Names of the checkpoint folders of a run."""

from __future__ import annotations

import re
from pathlib import Path

PREFIX = "step-"


def steps_in(folder: Path) -> dict[int, Path]:
    """Return the folder of each complete checkpoint by its step, in ascending order.

    Folders with other names are ignored, such as ``step-000000004 (copy)``.
    """
    steps = {path: path.name.removeprefix(PREFIX) for path in sorted(folder.glob(f"{PREFIX}*"))}
    return {int(step): path for path, step in steps.items() if re.fullmatch("[0-9]+", step)}
