"""Which cases of a parametrized test are in the fast run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def fast_ones(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Return the values as parameters of a test. All values except those in ``fast`` are marked slow."""
    values = list(values)
    assert all(value in values for value in fast), "a fast value is not one of the values"
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
