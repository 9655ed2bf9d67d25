"""Golden files of prose: one for each family of messages, compared whole."""

from __future__ import annotations

import os
from pathlib import Path


def check_golden(path: Path, text: str) -> None:
    """The file holds this text; with ``REGENERATE=1`` in the environment it is written instead."""
    if os.environ.get("REGENERATE"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path}: run the test again with REGENERATE=1, and read the diff"
