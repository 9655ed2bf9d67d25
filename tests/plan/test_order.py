"""Padding and audio of planned batches, without a dry run."""

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


def test_joined_clips_count_as_one_clip(document: Document) -> None:
    join = {"max_duration_s": 10.0, "probability": 1.0, "max_pause_s": 0.0}
    batching = {"max_clips": 8, "pool_batches": 1, "join": join}
    recipe = parse(changed(document, batching=batching, data__max_duration_s=10.0))
    durations = np.random.default_rng(1).lognormal(np.log(2.0), SPREAD, 5000).clip(0.3, 10.0)
    plan = plan_epoch(durations, recipe.batching, 1, 0)
    padded = 0.0
    for k, batch in enumerate(plan):
        lengths = [durations[batch[positions]].sum() for positions in plan.examples_of(k)]
        padded += max(lengths) * len(lengths)
    planned = planned_batches(recipe, float(durations.mean()))
    assert planned.padding_share == pytest.approx(1 - durations.sum() / padded, abs=0.02)
    assert planned.audio_s == pytest.approx(durations.sum() / len(plan), rel=0.03)
    single = planned_batches(parse(changed(document, batching=batching | {"join": None})), float(durations.mean()))
    assert planned.audio_s > 1.3 * single.audio_s


@pytest.mark.parametrize("mean_s", [0.3, 0.31, 5.0, 9.9, 10.0])
def test_any_mean_between_the_bounds_can_be_planned(document: Document, mean_s: float) -> None:
    recipe = parse(document, batching={"max_clips": 10**9})
    planned = planned_batches(recipe, mean_s)
    assert planned.audio_s / 20_000 == pytest.approx(mean_s, rel=1e-6)
    assert 0 <= planned.padding_share < 1
