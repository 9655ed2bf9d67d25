"""The share of padding and the duration of audio in planned batches. They are computed without a dry run."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import Document, changed
from tests.plan.recipes import parse
from tiny_audio.data.order import plan_epoch
from tiny_audio.plan._order import SPREAD, planned_batches


def test_padding_equals_that_of_the_planned_order(document: Document) -> None:
    """Compare planned padding and audio with sums over batches of clips with random durations."""
    document = changed(document, batching={"max_clips": 8, "pool_batches": 1}, data__max_duration_s=10.0)
    recipe = parse(document)
    durations = np.random.default_rng(1).lognormal(np.log(3.0), SPREAD, 5000).clip(0.3, 10.0)
    batches = [[durations[clip] for clip in batch] for batch in plan_epoch(durations, recipe.batching, 1, 0)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    planned = planned_batches(recipe, float(durations.mean()))
    assert planned.padding_share == pytest.approx(1 - durations.sum() / padded, abs=0.02)
    assert planned.audio_s == pytest.approx(durations.sum() / len(batches), rel=0.02)
    sorted_by_length = planned_batches(parse(document, batching__pool_batches=50), float(durations.mean()))
    assert sorted_by_length.padding_share < 0.1 * planned.padding_share


@pytest.mark.parametrize("mean_s", [0.3, 0.31, 5.0, 9.9, 10.0])
def test_any_mean_between_the_bounds_can_be_planned(document: Document, mean_s: float) -> None:
    recipe = parse(document, batching={"max_clips": 10**9})
    planned = planned_batches(recipe, mean_s)
    assert planned.audio_s / 20_000 == pytest.approx(mean_s, rel=1e-6)
    assert 0 <= planned.padding_share < 1
