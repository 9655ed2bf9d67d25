"""What several sources need: a type of config fields, names of cache folders, values in messages."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import StringConstraints

from tiny_audio.config import UserError
from tiny_audio.sources import Index

NonEmpty = Annotated[str, StringConstraints(min_length=1)]


def cache_key(identity: object) -> str:
    """A short name for what a JSON value identifies."""
    text = identity if isinstance(identity, str) else json.dumps(identity)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def shown(value: object) -> str:
    """A value for a message: quoted, and not too long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_any_usable(index: Index, name: str) -> Index:
    """The index.

    Args:
        name: what messages call the data.

    Raises:
        UserError: it has no utterance.
    """
    if index.utterances:
        return index
    first = f"; the first of {len(index.dropped)}: {index.dropped[0].detail}" if index.dropped else ""
    raise UserError(f"no row of {name} can be used{first}")
