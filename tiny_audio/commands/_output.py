"""Print JSON, and check the paths of pages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tiny_audio.config import UserError


def json_text(value: Any) -> str:
    """A value as indented JSON, with escapes for what the encoding of standard output may lack."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return json.dumps(value, indent=1, ensure_ascii=not encoding.startswith("utf"))


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json_text(value))


def check_page(html: Path | None) -> None:
    """Check that a page can be written, before the work begins.

    Raises:
        UserError: its folder does not exist.
    """
    if html is not None and not html.absolute().parent.is_dir():
        raise UserError(f"--html {html}: the folder {html.absolute().parent} does not exist; create it first")
