"""Print JSON, and check the paths of HTML pages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tiny_audio.config import UserError

_PAGE_STARTS = (b"<!doctype html", b"<html")


def json_text(value: Any) -> str:
    """Return a value as indented JSON. Non-ASCII characters are escaped unless standard output uses a UTF encoding."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return json.dumps(value, indent=1, ensure_ascii=not encoding.startswith("utf"))


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json_text(value))


def check_page(html: Path | None) -> None:
    """Check the path of an HTML page. Call this before any work begins.

    Raises:
        UserError: the page's folder does not exist, or the path is a folder or a file that is not an HTML page.
    """
    if html is None:
        return
    if not html.absolute().parent.is_dir():
        raise UserError(f"--html {html}: the folder {html.absolute().parent} does not exist; create it first")
    # If the name of the page is forgotten, as in `--html a.jsonl b.jsonl`, the page would replace the first input.
    if html.is_dir() or (html.is_file() and not _is_page_or_empty(html)):
        found = "a folder" if html.is_dir() else "not an HTML page"
        raise UserError(f"--html {html}: this path exists and is {found}; give another path, such as page.html")


def _is_page_or_empty(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(20)
    return not start or start.lower().startswith(_PAGE_STARTS)
