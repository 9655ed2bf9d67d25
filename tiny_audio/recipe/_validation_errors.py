"""Messages for invalid recipes. They state the location, the given value, the allowed values, and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from tiny_audio.config import UserError
from tiny_audio.registry import Registry, did_you_mean

_MAX_ERRORS = 50
_MAX_MESSAGE = 1000


def invalid_recipe(name: str, errors: Sequence[str], changes: Sequence[tuple[str, Any]]) -> UserError:
    """Return one error that lists the errors of a recipe.

    Args:
        name: the name of the recipe in the message, such as its path.
        errors: the messages. Each begins with its location.
        changes: dotted path and value of each field that was changed after the file was read.
    """
    count = f"{len(errors)} error{'s' if len(errors) > 1 else ''}"
    whole = [error + _keeps_fields(error, changes) for error in errors[:_MAX_ERRORS]]
    lines = [line if len(line) <= _MAX_MESSAGE else f"{line[:_MAX_MESSAGE]} ..." for line in whole]
    if len(errors) > len(lines):
        lines.append(f"... and {len(errors) - len(lines)} more")
    return UserError("\n".join([f"{name} is not a valid recipe ({count}):", *(f"  {line}" for line in lines)]))


def field_errors(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Format each of pydantic's errors as one line. ``model`` is the validated class."""
    return [_field_error(entry, model) for entry in error.errors(include_url=False)]


def _field_error(entry: Any, model: type[BaseModel]) -> str:
    # Leave out the steps of the location that are not in the file. pydantic adds "[key]" for an invalid key of a
    # mapping. The unions of tiny_audio add "[name]" and "[section]".
    location = [step for step in entry["loc"] if step not in ("[key]", "[name]", "[section]")]
    path = ".".join(_shown_step(step) for step in location) or "(the file)"
    hint = ""
    match entry["type"]:
        case "extra_forbidden":
            *parents, given = location
            fields = [*_fields_at(model, parents), *(["extends"] if not parents else [])]
            return f"{path}: unknown field; {did_you_mean(given, fields)}"
        case "missing":
            return f"{path}: is missing and has no default"
        case "part_name" | "value_error":
            return f"{path}: {entry['msg'].removeprefix('Value error, ')}"
        case "too_short" | "too_long":
            return f"{path}: should {entry['msg'].partition(' should ')[2].replace(' after validation', '')}"
        case "string_type" if entry["input"] is not None:
            hint = "; write it in quotes"
    message = entry["msg"].removeprefix("Input ").removeprefix("String ")
    for theirs, yaml in (
        ("a valid dictionary or object to extract fields from", "a mapping"),
        ("an object", "a mapping"),
        ("a valid array", "a list"),
    ):
        message = message.replace(theirs, yaml)
    given = json.dumps(entry["input"], default=str)
    return f"{path}: {message}, not {given if len(given) < 80 else given[:77] + '...'}{hint}"


def added_by_null(
    section: BaseModel, document: Mapping[str, Any], before: Mapping[str, Any], path: str = ""
) -> Iterator[str]:
    """Yield an error for each optional section that exists only because an override set one of its fields to null.

    For example, ``alignment.steps=null`` would switch on the loss of a recipe that has no section ``alignment``.

    Args:
        section: the validated recipe, or one of its sections.
        document: the plain values of the section with the overrides.
        before: the plain values of the section without the overrides.
        path: the location of the section.
    """
    for name, field in type(section).model_fields.items():
        given, earlier, location = document.get(name), before.get(name), f"{path}.{name}".removeprefix(".")
        if isinstance(given, dict) and isinstance(earlier, dict):
            inner = getattr(section, name)
            if isinstance(inner, BaseModel):
                yield from added_by_null(inner, given, earlier, location)
        elif isinstance(given, dict) and given and earlier is None and field.default is None and _is_null(given):
            yield (
                f"{location}: the recipe has no such section, and null would add it with its defaults; remove the "
                f"override of {location}.{next(iter(given))}"
            )


def _is_null(values: Mapping[str, Any]) -> bool:
    """Return whether all values are None, at any depth."""
    return all(_is_null(value) if isinstance(value, dict) else value is None for value in values.values())


def _keeps_fields(error: str, changes: Sequence[tuple[str, Any]]) -> str:
    """If a change like ``projector.name=conv`` has kept the field of the error, return a hint, else an empty string."""
    for path, value in changes:
        section, _, field = path.rpartition(".")
        if field == "name" and error.startswith(f"{section}."):  # errors of the name itself start with `section: `
            return (
                f"; {path}={value} keeps the other fields of the section. To replace the whole section, write "
                f"{section}={value}"
            )
    return ""


def _shown_step(step: int | str) -> str:
    return str(step) if isinstance(step, int) or re.fullmatch(r"[\w-]{1,80}", step) else repr(step)


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the names of the fields at a location.

    After the field of a part, such as ``encoder``, the next step of a location is the part's name.
    """
    annotations: list[Any] = [model]
    metadata: Sequence[Any] = ()
    for step in location:
        registry = next((item for item in metadata if isinstance(item, Registry)), None)
        if registry is not None:
            annotations, metadata = [registry.entry(step).config], ()
            continue
        models = [item for item in _flatten(annotations) if isinstance(item, type) and issubclass(item, BaseModel)]
        field = next((found.model_fields[str(step)] for found in models if str(step) in found.model_fields), None)
        if field is not None:
            annotations, metadata = [field.annotation], field.metadata
        else:  # a value of a dict or an item of a tuple
            inner = [arg for item in annotations for arg in getattr(item, "__args__", ())]
            annotations, metadata = inner, [m for arg in inner for m in getattr(arg, "__metadata__", ())]
    models = [item for item in _flatten(annotations) if isinstance(item, type) and issubclass(item, BaseModel)]
    return [name for found in models for name in found.model_fields]


def _flatten(annotations: Sequence[Any]) -> Iterator[Any]:
    for annotation in annotations:
        yield annotation
        yield from _flatten(getattr(annotation, "__args__", ()))
