"""Special cases of the changes that a plan suggests if a recipe does not fit the memory."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import Document, changed
from tests.plan.recipes import parse
from tiny_audio.plan import _changes, plan_recipe
from tiny_audio.plan._step import Shape

pytestmark = pytest.mark.usefixtures("one_thread")


def test_changes_are_combined_if_all_clips_have_similar_durations(
    document: Document, gpu: Callable[[float], str]
) -> None:
    """Halving the maximum duration is not suggested, because all clips last at least 2 s. Other changes are enough."""
    data = changed(document, data__min_duration_s=2.0, data__max_duration_s=3.0)
    recipe = parse(data, batching__max_clips=1, encoder__attention="eager")
    savers = {
        "encoder.attention": "sdpa",
        "training.precision": "bf16",
        "encoder.gradient_checkpointing": True,
        "decoder.gradient_checkpointing": True,
    }
    lean = plan_recipe(recipe.with_(savers), gpu=gpu(1e9)).rows[0].needed_bytes
    (row,) = plan_recipe(recipe, gpu=gpu(1.01 * lean)).rows
    assert [change.fields for change in row.changes or ()] == [savers]


def test_a_smaller_budget_in_seconds_has_room_for_the_longest_clip(document: Document) -> None:
    recipe = parse(document, batching={"max_clips": 32, "max_padded_s": 40.0}, data__max_duration_s=3.33)
    worst: Any = SimpleNamespace(shape=Shape(12, 3.33))
    fields = _changes._fewer_clips(recipe, worst, 1)
    assert fields["batching.max_padded_s"] == 3.4
    assert recipe.with_(fields).batching.max_padded_s == 3.4
    slower = recipe.with_({"augmentation": {"speed": [0.5, 1.0]}})
    assert _changes._fewer_clips(slower, worst, 1)["batching.max_padded_s"] == 6.7
