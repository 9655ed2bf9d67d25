"""Print JSON, and check the paths of pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_audio.config import UserError


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def check_page(html: Path | None) -> None:
    """Check that a page can be written, before the work begins.

    Raises:
        UserError: its folder does not exist.
    """
    if html is not None and not html.absolute().parent.is_dir():
        raise UserError(f"--html {html}: the folder {html.absolute().parent} does not exist; create it first")
