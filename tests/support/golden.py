"""Golden files of prose: one for each family of messages, compared whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tiny_audio.config import problems


def check_golden(path: Path, text: str) -> None:
    """The file holds this text; with ``REGENERATE=1`` in the environment it is written instead."""
    if os.environ.get("REGENERATE"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path}: run the test again with REGENERATE=1, and read the diff"


def raised(title: str, function: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """Call a function, and return a paragraph with the title and the error that it raises."""
    try:
        function(*args, **kwargs)
    except (ValueError, AssertionError) as error:
        message = problems(error) if isinstance(error, ValidationError) else str(error)
        return f"{title}\n    {type(error).__name__}: {message}\n"
    raise AssertionError(f"{title}: no error")
