"""Parse ``NAME:key=value,key=value``: the config of a source, a provider or an export format in one line."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ValidationError

from tiny_audio.config import UserError
from tiny_audio.registry import Registry, did_you_mean
from tiny_audio.runtime.yaml_file import apply_overrides


def split_spec(text: str, as_written: Collection[str] = ()) -> tuple[str, dict[str, Any]]:
    """Split the text into the name and the fields.

    Values are read as YAML. The values of fields in ``as_written`` are not converted, so they remain strings.

    >>> split_spec("librispeech:split=test.clean")
    ('librispeech', {'split': 'test.clean'})
    >>> split_spec("owner/model:revision=1234567,num_beams=2", ["revision"])
    ('owner/model', {'revision': '1234567', 'num_beams': 2})

    Raises:
        UserError: a field does not have the form ``key=value``.
    """
    name, colon, rest = text.partition(":")
    if not colon:
        return name, {}
    parts = rest.split(",")
    wrong = next((part for part in parts if "=" not in part), None)
    if wrong is not None:
        raise UserError(
            f"{text}: {wrong!r} is not of the form field=value; commas separate fields, so a value cannot "
            "contain a comma"
        )
    fields = apply_overrides({}, parts)
    written = (part.partition("=") for part in parts)
    return name, fields | {key: value for key, _, value in written if key in as_written}


def parse_part(registry: Registry[Any, Any], fields: dict[str, Any], place: str) -> Any:
    """Return the config of a source, a provider or an export format.

    Args:
        fields: the fields of the config, including its ``name``.
        place: the start of error messages, such as the option and its value.

    Raises:
        UserError: the name is unknown, or a field is unknown, missing or invalid.
    """
    try:
        return registry.parse(fields)
    except ValidationError as error:
        raise invalid_fields(error, registry.entry(fields["name"]).config, place) from None


def invalid_fields(error: ValidationError, config: type[BaseModel], place: str) -> UserError:
    """Return an error that lists all wrong fields of a spec."""
    known = config.model_fields.keys() - {"name"}
    return UserError(f"{place}: " + "; ".join(_words(one, known) for one in error.errors()))


def _words(one: Any, known: set[str]) -> str:
    field = ".".join(map(str, one["loc"])) or "(all)"
    if one["type"] == "extra_forbidden":
        return f"{field}: unknown field; {did_you_mean(field, known)}"
    if one["type"] == "missing":
        return f"{field}: is missing and has no default"
    return f"{field}: {one['msg'].removeprefix('Value error, ')}"


def folder_name(text: str) -> str:
    """Return the text as a folder name. Characters that file systems may not allow are replaced by hyphens."""
    return re.sub(r"[^\w.=,+-]+", "-", text).strip("-.") or "unnamed"
