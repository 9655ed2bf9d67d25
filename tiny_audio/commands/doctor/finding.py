"""One line of the output of ``tiny-audio doctor``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    """What was checked, such as ``GPU`` or ``encoder``."""
    detail: str
    is_problem: bool = False
    is_warning: bool = False

    def __str__(self) -> str:
        return f"{'✗' if self.is_problem else '!' if self.is_warning else '✓'} {self.what}: {self.detail}"
