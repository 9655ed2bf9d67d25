"""The strict pydantic base of every recipe section and every part's config, what of it decides results, and errors."""

from __future__ import annotations

from dataclasses import dataclass
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


class TinyAudioError(Exception):
    """An error that a command shows as a message, without a traceback."""

    origin: str | None = None
    """The process that raised the error first and prints it. None: this process."""


class UserError(TinyAudioError, ValueError):
    """A mistake of the user's: what was given, what is allowed, what to do. Exit code 2."""


class RunFailed(TinyAudioError):  # noqa: N818  # what it says, not what it is
    """A run that cannot continue although its recipe is right, such as a diverged loss. Exit code 1."""


class Stopped(TinyAudioError):  # noqa: N818
    """A signal asked the run to stop, and its state is saved. Exit code 3."""


class RegistryError(Exception):
    """A part that cannot be registered or discovered: a mistake in the part's code, or in its package."""


@dataclass(frozen=True)
class Failure:
    """An error as a value that one process sends to others."""

    kind: type[TinyAudioError]
    """What the receivers raise: the nearest of :class:`UserError`, :class:`RunFailed` and :class:`Stopped`."""
    message: str
    origin: str
    """The process that raised it, such as ``process 1``."""

    @classmethod
    def of(cls, error: Exception, origin: str) -> Failure:
        """Describe ``error``; what is none of ours becomes a :class:`RunFailed`."""
        kinds = (kind for kind in (UserError, RunFailed, Stopped) if isinstance(error, kind))
        return cls(next(kinds, RunFailed), str(error), origin)

    def to_error(self) -> TinyAudioError:
        """The error to raise in a receiver."""
        error = self.kind(self.message)
        error.origin = self.origin
        return error
