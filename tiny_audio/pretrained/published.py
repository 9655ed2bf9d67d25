"""Architectures of well-known checkpoints, so that a recipe can be checked, shown and planned without a network."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


def published_fields(pretrained: str, revision: str | None) -> dict[str, Any] | None:
    """Return the transformers config of a checkpoint on the hub from this package's table; None if it is not listed.

    The table describes only the main branch. If a ``revision`` is given, the result is None, because the model at this
    revision may differ.
    """
    known = _table().get(pretrained) if revision is None else None
    return None if known is None else dict(known)


@cache
def _table() -> dict[str, dict[str, Any]]:
    """Read ``published.json``: hub id -> the fields of its config.json that affect the model."""
    table: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return table
