"""Comparison of messages with golden files, which contain the expected texts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tiny_audio.config import problems
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.export import EXPORTS
from tiny_audio.projectors import PROJECTORS
from tiny_audio.providers import PROVIDERS
from tiny_audio.sources import SOURCES


def check_golden(path: Path, text: str) -> None:
    """Compare the text with the file. With ``REGENERATE=1`` in the environment, write the file first."""
    text = without_part_names(text)
    if os.environ.get("REGENERATE"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path}: run `make docs` and check the changes to the file"


def without_part_names(text: str) -> str:
    """Remove lists of all registered parts from the text, so that a new part does not change golden files."""
    for registry in (ENCODERS, PROJECTORS, DECODERS, SOURCES, PROVIDERS, EXPORTS):
        text = text.replace(f"Allowed: {', '.join(registry.names())}", f"Allowed: (every {registry.kind})")
    return text


def raised(title: str, function: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """Call a function and return a paragraph with the title and the error that it raised."""
    try:
        function(*args, **kwargs)
    except (ValueError, AssertionError) as error:
        message = problems(error) if isinstance(error, ValidationError) else str(error)
        return f"{title}\n    {type(error).__name__}: {message}\n"
    raise AssertionError(f"{title}: no error")
