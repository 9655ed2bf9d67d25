"""All configs of the recipe schema, and their fields."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.projectors import PROJECTORS
from tiny_audio.recipe import SOURCES, Recipe

REGISTRIES = (ENCODERS, PROJECTORS, DECODERS, SOURCES)


def configs() -> list[type[BaseModel]]:
    """Return the configs of all sections and parts."""
    found: dict[type[BaseModel], None] = {}

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in found:
            found[annotation] = None
            for field in annotation.model_fields.values():
                visit(field.annotation)
        for argument in get_args(annotation):
            visit(argument)

    visit(Recipe)
    for registry in REGISTRIES:
        for entry in registry.entries():
            visit(entry.config)
    return list(found)


FIELDS = [
    (config, name)
    for config in configs()
    for name, field in config.model_fields.items()
    if not (name == "name" and get_origin(field.annotation) in (Literal, None))
]
