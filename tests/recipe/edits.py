"""Edits of a recipe's plain YAML values, and the errors from loading them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny_audio.config import UserError
from tiny_audio.recipe import load_recipe

Document = dict[str, Any]
Write = Callable[..., Path]


def changed(document: Document, path: str, value: Any) -> Document:
    """Return a copy in which the field at a dotted path is set. The value ``...`` removes the field."""
    document = copy.deepcopy(document)
    *parents, last = path.split(".")
    section = document
    for key in parents:
        section = section.setdefault(key, {})
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return document


def errors_of(path: Path, *overrides: str) -> list[str]:
    """Load an invalid recipe. Return the lines of the error message: a heading, and one line per error."""
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


def location(line: str) -> str:
    """Return the location at the start of an error."""
    return line.split(": ")[0].strip()


def assert_error(lines: list[str], location: str, *values: str) -> None:
    """Check that one of the lines is an error at this location with these values."""
    found = [line.strip().removeprefix(f"{location}: ") for line in lines if line.strip().startswith(f"{location}: ")]
    assert found, "\n".join(lines)
    assert any(all(value in message for value in values) for message in found), "\n".join(found)
