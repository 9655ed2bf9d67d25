"""Code shared by several sources: a type for config fields, names in the cache, and texts for messages."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import StringConstraints

from tiny_audio.config import UserError
from tiny_audio.sources import Index

NonEmpty = Annotated[str, StringConstraints(min_length=1)]


def cache_key(identity: object) -> str:
    """Return a short hash of a text or of a JSON value, for the name of a file or folder in the cache."""
    text = identity if isinstance(identity, str) else json.dumps(identity)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


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
