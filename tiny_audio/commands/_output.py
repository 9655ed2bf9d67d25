"""Print JSON, and check the paths of HTML pages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tiny_audio.config import UserError


def json_text(value: Any) -> str:
    """Return a value as indented JSON. Non-ASCII characters are escaped unless standard output uses a UTF encoding."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return json.dumps(value, indent=1, ensure_ascii=not encoding.startswith("utf"))


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json_text(value))


def check_page(html: Path | None) -> None:
    """Raise a UserError if the folder of the HTML page does not exist. Call this before any work begins."""
    if html is not None and not html.absolute().parent.is_dir():
        raise UserError(f"--html {html}: the folder {html.absolute().parent} does not exist; create it first")
