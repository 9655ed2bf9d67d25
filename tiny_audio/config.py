"""The strict pydantic base class of all configs, the identity of a config, and the package's errors.

The identity of a config is a dict of the fields that affect a result. It is saved with the result. A later run reuses
the result if its config has the same identity.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError
from pydantic.config import JsonDict

NO_IDENTITY: JsonDict = {"identity": False}
"""``Field(json_schema_extra=NO_IDENTITY)`` marks a field that does not affect results, such as a limit on retries."""
LATER: JsonDict = {"identity": "unless default"}
"""Marks a field that was added after results of the config had been saved. Its default must give the earlier behavior.
A field with its default is left out of the identity, so the identities of the saved results stay valid."""


class Config(BaseModel):
    """Base of every recipe section and every part's config. It is frozen, and rejects unknown keys and wrong types.

    Field docstrings become the descriptions in the JSON schema and in the generated docs.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def with_null(description: str) -> str:
    """Replace the word None in a field's description by ``null``, because recipes are YAML."""
    return re.sub(r"\bNone\b(?! of\b)", "``null``", description)


def expand_path(text: str) -> str:
    """Replace ``~`` and environment variables in a path, like a shell.

    Variables that are not set are kept, so that a recipe can be validated on another machine. A path that exists as
    written is returned unchanged.
    """
    if not (text.startswith("~") or "$" in text) or os.path.lexists(text):
        return text
    return os.path.expanduser(os.path.expandvars(text))


LocalPath = Annotated[str, StringConstraints(min_length=1), AfterValidator(expand_path)]
"""The type of a field for a local path. Paths differ between machines, so recipe fields of this type are also marked
with :data:`NO_IDENTITY`."""


def identity_of(config: BaseModel) -> dict[str, Any]:
    """Return the identity of a config: its fields and their values, without fields marked with :data:`NO_IDENTITY`.

    A field that is None by default, or is marked with :data:`LATER`, is left out if it has its default.
    """
    found: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        marked = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        value = getattr(config, name)
        is_later = field.default is None or marked.get("identity") == LATER["identity"]
        if marked.get("identity") is False or (is_later and value == field.default):
            continue
        found[name] = _identity_of_value(value)
    return found


def _identity_of_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity_of(value)
    if isinstance(value, dict):
        return {key: _identity_of_value(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_identity_of_value(item) for item in value]
    return value


def problems(error: ValidationError, skip: int = 0) -> str:
    """Return the errors of a validation in one line, as ``location: message; location: message``.

    The first ``skip`` keys of each location are removed.
    """
    found = (
        (".".join(map(str, one["loc"][skip:])), one["msg"].removeprefix("Value error, ")) for one in error.errors()
    )
    return "; ".join(f"{location}: {message}" if location else message for location, message in found)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's class if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class TinyAudioError(Exception):
    """An error that a command shows as a message, without a traceback."""

    origin: str | None = None
    """Name of the process that prints this error, such as ``process 1``. None if it is the current process."""


class UserError(TinyAudioError, ValueError):
    """An error that the user can correct. The message says what was given, what is allowed and what to do.

    Exit code 2.
    """


class RunFailed(TinyAudioError):  # noqa: N818
    """A run cannot continue although its recipe is valid; for example, its loss diverged. Exit code 1."""


class Stopped(TinyAudioError):  # noqa: N818
    """A signal stopped the run, and its state was saved. Exit code 3."""


class RegistryError(Exception):
    """A part cannot be registered or discovered, because of an error in its code or its package."""


@dataclass(frozen=True)
class Failure:
    """The description of an error. One process sends it to the other processes, which then raise the error, too."""

    kind: type[TinyAudioError]
    """The class that the receivers raise: :class:`UserError`, :class:`RunFailed` or :class:`Stopped`."""
    message: str
    origin: str
    """The process that raised the error, such as ``process 1``."""

    @classmethod
    def of(cls, error: Exception, origin: str) -> Failure:
        """Describe ``error``.

        A :class:`UserError`, :class:`RunFailed` or :class:`Stopped` keeps its class. An OSError of the operating
        system, such as a full disk, becomes a :class:`UserError`. All other errors become :class:`RunFailed`.
        """
        kinds = (kind for kind in (UserError, RunFailed, Stopped) if isinstance(error, kind))
        # An OSError with neither a file name nor an error number comes from a library, not from the system.
        is_of_system = isinstance(error, OSError) and (error.filename, error.errno) != (None, None)
        return cls(next(kinds, UserError if is_of_system else RunFailed), str(error), origin)

    def to_error(self) -> TinyAudioError:
        """Return the exception to raise in a receiver."""
        error = self.kind(self.message)
        error.origin = self.origin
        return error
