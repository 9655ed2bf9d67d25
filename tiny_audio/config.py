"""The strict pydantic base of every recipe section and every part's config, and the user's mistakes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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
