"""Code shared by several sources: a type for config fields, names in the cache, lines of files, texts for messages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from tiny_audio.config import UserError
from tiny_audio.runtime.text_files import open_text
from tiny_audio.sources import Index

NonEmpty = Annotated[str, StringConstraints(min_length=1)]

MAX_LINE = 1_000_000
"""Maximum number of characters that :func:`read_lines` reads of a line."""


def cache_key(identity: object) -> str:
    """Return a short hash of a text or of a JSON value, for the name of a file or folder in the cache."""
    text = identity if isinstance(identity, str) else json.dumps(identity)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def read_lines(path: Path, name: str, expected: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not blank, with their numbers.

    Only the first ``MAX_LINE`` characters of a line are read. Bytes that are not UTF-8 become lone surrogates.

    Args:
        name: how messages refer to the file.
        expected: a description of the expected content, for messages.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
            raise UserError(f"{name} {found}; {expected}")
        with open_text(path) as file:
            line_number = 0
            while line := file.readline(MAX_LINE):
                line_number += 1
                if line.strip():
                    yield line_number, line
                while len(line) == MAX_LINE and line[-1] != "\n":  # skip the rest of a longer line
                    line = file.readline(MAX_LINE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{name} cannot be read: {error}") from error


def shown(value: object) -> str:
    """Return the ``repr`` of a value for a message, shortened to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_any_usable(index: Index, name: str) -> Index:
    """Check that an index has utterances, and return the index.

    Args:
        name: the name of the data in messages.

    Raises:
        UserError: the index has no utterances.
    """
    if index.utterances:
        return index
    first = f"; the first problem of {len(index.dropped)}: {index.dropped[0].detail}" if index.dropped else ""
    raise UserError(f"no row of {name} can be used{first}")
