"""Recipes of tiny parts."""

from __future__ import annotations

import json
from typing import Any

from tests.conftest import Document, changed
from tiny_audio.recipe import Recipe


def parse(document: Document, **changes: Any) -> Recipe:
    return Recipe.model_validate_json(json.dumps(changed(document, **changes)))


def part(registry: Any, name: str) -> Document:
    return {"name": name, **registry.entry(name).config.tiny().model_dump(mode="json", exclude_unset=True)}
