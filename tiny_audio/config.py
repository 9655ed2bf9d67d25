"""The strict pydantic base of every recipe section and every part's config, what of it decides results, and errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.config import JsonDict

NO_IDENTITY: JsonDict = {"identity": False}
"""``Field(json_schema_extra=NO_IDENTITY)`` marks what decides no result: a path, a bound on retries."""


class Config(BaseModel):
    """Frozen, knows all its keys, and converts nothing: what the file says is what runs.

    Field docstrings become the field descriptions of the JSON schema and of the generated docs.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def identity_of(config: BaseModel) -> dict[str, Any]:
    """The dump without the fields that are marked with :data:`NO_IDENTITY`."""
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


def problems(error: ValidationError) -> str:
    """What does not fit, and where in the config."""
    found = ((".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in error.errors())
    return "; ".join(f"{place}: {words}" if place else words for place, words in found)


class UserError(ValueError):
    """A mistake of the user's: what was given, what is allowed, what to do. Shown without a traceback, exit 2."""


class RunFailed(Exception):  # noqa: N818  # what it says, not what it is
    """A run that cannot go on for no mistake in its recipe, such as a diverged loss; shown as a message, exit 1."""


class Stopped(Exception):  # noqa: N818
    """A signal asked the run to stop, and what it had is saved; exit 3."""


class RegistryError(Exception):
    """A part that cannot be registered or discovered: a mistake in the part's code, or in its package."""


class FollowedError(Exception):
    """The first of several processes failed, and says why; this one leaves with it, without a word.

    Args:
        kind: what the first process raised.
    """

    def __init__(self, kind: type[Exception]) -> None:
        super().__init__(kind)
        self.kind = kind
