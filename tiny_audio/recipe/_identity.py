"""What of a config decides a result: all but the fields that are marked as no part of it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def identity_of(config: BaseModel) -> dict[str, Any]:
    """The dump without the fields that are marked as no part of the identity, such as paths."""
    found: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("identity") is False:
            continue
        found[name] = _decisive(getattr(config, name))
    return found


def _decisive(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity_of(value)
    if isinstance(value, dict):
        return {key: _decisive(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_decisive(item) for item in value]
    return value
