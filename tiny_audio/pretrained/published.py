"""Architectures of well-known checkpoints, so that a recipe can be checked, shown and planned without a network."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


def published_fields(pretrained: str, revision: str | None) -> dict[str, Any] | None:
    """The transformers config of a checkpoint on the hub, from the table in this package. None if it is not listed.

    The table describes the main branch only, because another revision may be another model.
    """
    known = _table().get(pretrained) if revision is None else None
    return None if known is None else dict(known)


@cache
def _table() -> dict[str, dict[str, Any]]:
    """``published.json``: hub id -> the fields of its config.json that shape the model."""
    table: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return table
