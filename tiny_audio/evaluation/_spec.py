"""``NAME:key=value,key=value``: a registered part on one line."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from tiny_audio.config import UserError
from tiny_audio.registry import Registry, did_you_mean
from tiny_audio.runtime.yaml_file import apply_overrides


def split_spec(text: str, as_written: Collection[str] = ()) -> tuple[str, dict[str, Any]]:
    """The name and the fields; values are read as YAML, but for those fields that are taken ``as_written``.

    >>> split_spec("librispeech:split=test.clean")
    ('librispeech', {'split': 'test.clean'})
    >>> split_spec("owner/model:revision=1234567,num_beams=2", ["revision"])
    ('owner/model', {'revision': '1234567', 'num_beams': 2})

    Raises:
        UserError: a field is not of the form key=value.
    """
    name, colon, rest = text.partition(":")
    if not colon:
        return name, {}
    parts = rest.split(",")
    wrong = next((part for part in parts if "=" not in part), None)
    if wrong is not None:
        raise UserError(
            f"{text}: {wrong!r} is not of the form field=value; fields are separated by commas, and no value holds one"
        )
    fields = apply_overrides({}, parts)
    written = (part.partition("=") for part in parts)
    return name, fields | {key: value for key, _, value in written if key in as_written}


def parse_part(registry: Registry[Any, Any], fields: dict[str, Any], said: str) -> Any:
    """The config of a part.

    Args:
        said: what messages call it.

    Raises:
        UserError: there is no such part, or a field does not fit.
    """
    try:
        return registry.parse(fields)
    except ValidationError as error:
        known = registry.entry(fields["name"]).config.model_fields.keys() - {"name"}
        raise UserError(f"{said}: " + "; ".join(_words(one, known) for one in error.errors())) from None


def _words(one: Any, known: set[str]) -> str:
    place = ".".join(map(str, one["loc"])) or "(all)"
    if one["type"] == "extra_forbidden":
        return f"{place}: unknown field; {did_you_mean(place, known)}"
    if one["type"] == "missing":
        return f"{place}: is missing, and has no default"
    return f"{place}: {one['msg'].removeprefix('Value error, ')}"


def folder_name(text: str) -> str:
    """A name for a folder, made of a name with anything in it."""
    return re.sub(r"[^\w.=,+-]+", "-", text).strip("-.") or "unnamed"
