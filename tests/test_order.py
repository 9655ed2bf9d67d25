"""The planned order: a pure function in which every clip comes once and no batch breaks its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_audio.data.order import BatchingConfig, plan_epoch


def speech(count: int, seed: int = 0) -> list[float]:
    """Durations as speech corpora have them."""
    return np.random.default_rng(seed).lognormal(1.5, 0.6, count).clip(0.5, 20.0).tolist()


def padding_share(plan: list[list[int]], durations_s: list[float]) -> float:
    padded = sum(len(batch) * max(durations_s[clip] for clip in batch) for batch in plan)
    return 1 - sum(durations_s) / padded


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    durations_s=st.lists(st.floats(0.1, 30.0), max_size=80),
    max_clips=st.integers(1, 9),
    max_padded_s=st.none() | st.floats(30.0, 100.0),
    pool_batches=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
)
def test_every_clip_comes_once_and_bounds_hold(
    durations_s: list[float], max_clips: int, max_padded_s: float | None, pool_batches: int, seed: int, epoch: int
) -> None:
    config = BatchingConfig(max_clips=max_clips, max_padded_s=max_padded_s, pool_batches=pool_batches)
    plan = plan_epoch(durations_s, config, seed, epoch)
    assert sorted(clip for batch in plan for clip in batch) == list(range(len(durations_s)))
    assert all(1 <= len(batch) <= max_clips for batch in plan)
    if max_padded_s is not None:
        assert all(len(batch) * max(durations_s[clip] for clip in batch) <= max_padded_s for batch in plan)
    assert plan == plan_epoch(durations_s, config, seed, epoch)


def test_no_clips_make_no_batches() -> None:
    assert plan_epoch([], BatchingConfig(), seed=0, epoch=0) == []


def test_a_clip_beyond_the_bound_comes_alone() -> None:
    plan = plan_epoch([50.0, 1.0, 1.0], BatchingConfig(max_clips=3, max_padded_s=10.0), seed=0, epoch=0)
    assert sorted(map(sorted, plan)) == [[0], [1, 2]]


def test_epochs_and_seeds_differ() -> None:
    durations_s, config = speech(200), BatchingConfig(max_clips=8)
    plans = [plan_epoch(durations_s, config, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(left != right for number, left in enumerate(plans) for right in plans[:number])


def test_the_plan_is_the_same_on_every_machine() -> None:
    plan = plan_epoch([1.0, 2.0, 3.0, 4.0, 5.0], BatchingConfig(max_clips=2), seed=1, epoch=2)
    assert plan == [[0, 1], [4], [2, 3]]


def test_sorting_in_pools_saves_padding() -> None:
    durations_s = speech(3000)
    sorted_share = padding_share(plan_epoch(durations_s, BatchingConfig(pool_batches=50), 0, 0), durations_s)
    random_share = padding_share(plan_epoch(durations_s, BatchingConfig(pool_batches=1), 0, 0), durations_s)
    assert sorted_share < 0.04
    assert random_share > 0.4


def test_batches_come_in_no_order_of_length() -> None:
    durations_s = speech(3000)
    longest = [max(durations_s[clip] for clip in batch) for batch in plan_epoch(durations_s, BatchingConfig(), 0, 0)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.25


def test_a_bound_in_seconds_makes_batches_of_about_as_much_audio() -> None:
    durations_s = speech(3000)
    plan = plan_epoch(durations_s, BatchingConfig(max_clips=1000, max_padded_s=60.0, pool_batches=3), 0, 0)
    sizes = [len(batch) * max(durations_s[clip] for clip in batch) for batch in plan]
    assert max(sizes) <= 60.0
    assert np.mean(sizes) > 50.0


@pytest.mark.parametrize("count", [1, 15, 16, 17, 32, 801])
def test_batches_are_full_but_the_last_of_a_pool(count: int) -> None:
    sizes = [len(batch) for batch in plan_epoch([1.0] * count, BatchingConfig(max_clips=16), 0, 0)]
    assert sorted(sizes, reverse=True) == [16] * (count // 16) + [count % 16] * (count % 16 > 0)
