"""Architectures of well-known checkpoints, so that a recipe can be checked, shown and planned without a network."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tiny_audio.pretrained.checkpoints import published_architecture
from tiny_audio.pretrained.config import TransformersPartConfig


def architecture(part: TransformersPartConfig) -> dict[str, Any] | None:
    """The transformers config of the part's checkpoint, from the table in this package. None if it is not listed.

    The table describes the main branch only, because another revision may be another model.
    """
    if part.init == "random" or part.revision is not None:
        return None
    known = _table().get(part.pretrained)
    return None if known is None else dict(known)


def read_architecture(part: TransformersPartConfig) -> dict[str, Any] | None:
    """The config from the table, or else from the checkpoint itself. None for a part with random weights.

    Raises:
        UserError: the checkpoint's config cannot be read.
    """
    return architecture(part) or published_architecture(part)


@cache
def _table() -> dict[str, dict[str, Any]]:
    """``published.json``: hub id -> the fields of its config.json that shape the model."""
    table: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text())
    return table
