"""Helpers of tests that compare finished runs: functions that edit hypotheses, and checks of the comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.messages import assert_names
from tiny_audio.analysis.compare import Comparison, compare_folders
from tiny_audio.config import UserError

COUNT = 48
Row = dict[str, Any]
Edit = Callable[[Row], None]
MakeVariant = Callable[..., Path]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def number_of(row: Row) -> int:
    return int(row["id"].removeprefix("held_out/clip")[:3])


def wrong(every: int) -> Edit:
    """Return an edit that makes the last word wrong in one of ``every`` utterances."""

    def edit(row: Row) -> None:
        if number_of(row) % every == 0:
            row["pred_text"] = " ".join([*row["text"].split()[:-1], "banana"])

    return edit


def only(comparison: Comparison) -> dict[str, Any]:
    return dict(comparison.to_json()["sets"]["held_out"])


def assert_rejected(folders: list[Path], *names: str, **options: Any) -> None:
    """Check that the folders cannot be compared, and that the message contains these names in this order."""
    with pytest.raises(UserError) as caught:
        compare_folders(folders, **options)
    assert_names(caught.value, *names)
