"""Comparison of tensors, and of nested values that contain tensors."""

from __future__ import annotations

from typing import Any

import torch


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Check that the largest difference is at most 1e-5 of the root mean square."""
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.pow(2).mean().sqrt())


def assert_equal(ours: Any, theirs: Any, place: str) -> None:
    """Check that two values are exactly equal, with the same structure and types. ``place`` is for error messages."""
    assert type(ours) is type(theirs), place
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), place
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), place
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), place
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{place}.{index}")
    else:
        assert ours == theirs, place
