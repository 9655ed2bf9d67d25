"""The JSON schema accepts valid recipes and rejects invalid ones, like the loader."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.recipe.edits import Document, changed
from tiny_audio.config import with_null
from tiny_audio.recipe import Recipe, recipe_schema


def test_the_schema_accepts_a_valid_recipe(document: Document) -> None:
    schema = recipe_schema()
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["additionalProperties"] is False
    assert sorted(schema["required"]) == ["data", "decoder", "encoder", "projector", "training"]
    assert schema["properties"].keys() == Recipe.model_fields.keys() | {"extends"}
    json.dumps(schema)
    problems = list(_violations(schema, schema, {"extends": "base.yaml", **document}, "recipe"))
    assert problems == []


def test_descriptions_say_null_instead_of_none() -> None:
    """Recipes are YAML, which writes Python's None as null. The words "None of" are text, and stay."""
    assert with_null("If None, none of them. None of the rest") == "If ``null``, none of them. None of the rest"
    descriptions = re.findall(r'"description": "((?:[^"\\]|\\.)*)"', json.dumps(recipe_schema()))
    assert any("``null``" in text for text in descriptions)
    assert not [text for text in descriptions if re.search(r"\bNone\b(?! of\b)", text)]


@pytest.mark.parametrize(
    ("path", "value"),
    [("training.steps", "1"), ("trainin", {}), ("encoder.name", "x"), ("projector.stack", 0), ("encoder.layers", 3)],
)
def test_the_schema_rejects_what_the_loader_rejects(document: Document, path: str, value: Any) -> None:
    schema = recipe_schema()
    assert list(_violations(schema, schema, changed(document, path, value), "recipe"))


def _violations(root: Document, schema: Document, value: Any, place: str) -> Iterator[str]:
    """Yield violations of a schema. Of JSON Schema, only the keywords that our schema uses are implemented."""
    if "$ref" in schema:
        yield from _violations(root, root["$defs"][schema["$ref"].rpartition("/")[2]], value, place)
    for group in ("anyOf", "oneOf"):
        branches = [list(_violations(root, branch, value, place)) for branch in schema.get(group, ())]
        if branches and all(branches):
            yield min(branches, key=len)[0]
    types: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
        "integer": int, "number": int | float,
    }  # fmt: skip
    if "type" in schema:
        wanted = schema["type"]
        is_bool_as_number = isinstance(value, bool) and wanted in ("integer", "number")
        if is_bool_as_number or not isinstance(value, types[wanted]):
            yield f"{place}: {value!r} is no {wanted}"
            return
    if "const" in schema and value != schema["const"]:
        yield f"{place}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is none of {schema['enum']}"
    if "exclusiveMinimum" in schema and not value > schema["exclusiveMinimum"]:
        yield f"{place}: {value!r} is too small"
    if schema.get("type") == "object":
        fields = schema.get("properties", {})
        missing = [name for name in schema.get("required", ()) if name not in value]
        unknown = [name for name in value if name not in fields] if schema.get("additionalProperties") is False else []
        yield from (f"{place}: {name} is missing" for name in missing)
        yield from (f"{place}: {name} is unknown" for name in unknown)
        for name, item in value.items():
            further = schema.get("additionalProperties")
            below = fields.get(name) or (further if isinstance(further, dict) else {})
            yield from _violations(root, below, item, f"{place}.{name}")
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        for number, item in enumerate(value):
            yield from _violations(root, schema["items"], item, f"{place}.{number}")
