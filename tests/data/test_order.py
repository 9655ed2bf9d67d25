"""The planned order is deterministic. Every clip is used once, and every batch respects the limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_audio.data.order import BatchingConfig, EpochPlan, plan_epoch


def speech(count: int, seed: int = 0) -> list[float]:
    """Return random durations in seconds, distributed like those of a speech corpus."""
    return np.random.default_rng(seed).lognormal(1.5, 0.6, count).clip(0.5, 20.0).tolist()


def batches(plan: EpochPlan) -> list[list[int]]:
    return [batch.tolist() for batch in plan]


def padding_share(plan: EpochPlan, durations_s: list[float]) -> float:
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
def test_every_clip_is_used_once_and_limits_are_respected(
    durations_s: list[float], max_clips: int, max_padded_s: float | None, pool_batches: int, seed: int, epoch: int
) -> None:
    config = BatchingConfig(max_clips=max_clips, max_padded_s=max_padded_s, pool_batches=pool_batches)
    plan = plan_epoch(durations_s, config, seed, epoch)
    assert sorted(clip for batch in plan for clip in batch) == list(range(len(durations_s)))
    assert all(1 <= len(batch) <= max_clips for batch in plan)
    if max_padded_s is not None:
        assert all(len(batch) * max(durations_s[clip] for clip in batch) <= max_padded_s for batch in plan)
    again = plan_epoch(durations_s, config, seed, epoch)
    assert (batches(plan), plan.hash) == (batches(again), again.hash)


def test_without_clips_there_are_no_batches() -> None:
    assert batches(plan_epoch([], BatchingConfig(), seed=0, epoch=0)) == []


def test_a_clip_above_the_limit_is_alone_in_its_batch() -> None:
    plan = plan_epoch([50.0, 1.0, 1.0], BatchingConfig(max_clips=3, max_padded_s=10.0), seed=0, epoch=0)
    assert sorted(map(sorted, batches(plan))) == [[0], [1, 2]]


def test_epochs_and_seeds_differ() -> None:
    durations_s, config = speech(200), BatchingConfig(max_clips=8)
    plans = [plan_epoch(durations_s, config, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(batches(left) != batches(right) for number, left in enumerate(plans) for right in plans[:number])
    assert len({plan.hash for plan in plans}) == 4


def test_the_plan_is_the_same_on_every_machine() -> None:
    plan = plan_epoch([1.0, 2.0, 3.0, 4.0, 5.0], BatchingConfig(max_clips=2), seed=1, epoch=2)
    assert (batches(plan), plan.hash) == ([[0, 1], [4], [2, 3]], "3c88f093f16be072")


def test_sorting_in_pools_saves_padding() -> None:
    durations_s = speech(3000)
    sorted_share = padding_share(plan_epoch(durations_s, BatchingConfig(pool_batches=50), 0, 0), durations_s)
    random_share = padding_share(plan_epoch(durations_s, BatchingConfig(pool_batches=1), 0, 0), durations_s)
    assert sorted_share < 0.04
    assert random_share > 0.4


def test_batches_are_not_sorted_by_duration() -> None:
    durations_s = speech(3000)
    longest = [max(durations_s[clip] for clip in batch) for batch in plan_epoch(durations_s, BatchingConfig(), 0, 0)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.25


def test_a_limit_in_seconds_gives_batches_of_similar_duration() -> None:
    durations_s = speech(3000)
    plan = plan_epoch(durations_s, BatchingConfig(max_clips=1000, max_padded_s=60.0, pool_batches=3), 0, 0)
    sizes = [len(batch) * max(durations_s[clip] for clip in batch) for batch in plan]
    assert max(sizes) <= 60.0
    assert np.mean(sizes) > 50.0


@pytest.mark.parametrize("max_padded_s", [None, 100.0])
@pytest.mark.parametrize("pool_batches", [1, 2, 50])
def test_every_batch_is_sorted_by_duration(max_padded_s: float | None, pool_batches: int) -> None:
    durations_s = np.array(speech(3000))
    config = BatchingConfig(max_padded_s=max_padded_s, pool_batches=pool_batches)
    assert all((np.diff(durations_s[batch]) >= 0).all() for batch in plan_epoch(durations_s, config, 0, 0))


def test_random_batches_are_as_full_as_possible() -> None:
    durations_s = speech(3000)
    config = BatchingConfig(max_clips=64, max_padded_s=400.0, pool_batches=1)
    plan = plan_epoch(durations_s, config, 0, 0)
    shuffled = np.random.default_rng([0, 0]).permutation(3000).tolist()
    expected: list[list[int]] = [[]]
    for clip in shuffled:
        longer = [*expected[-1], clip]
        if len(longer) > 64 or len(longer) * max(durations_s[one] for one in longer) > 400.0:
            expected.append([clip])
        else:
            expected[-1] = longer
    assert sorted(map(sorted, batches(plan))) == sorted(map(sorted, expected))
    assert np.mean([len(batch) for batch in plan]) > 20


# Hashes of plans. They must not change, because published runs must be repeatable.
PUBLISHED = {
    (2, None, False): "8151a9387872c0e9",
    (2, None, True): "0fee864d49d9a2dc",
    (2, 60.0, False): "911a28c07e4c008c",
    (2, 60.0, True): "c80a90abe2702c38",
    (50, None, False): "7ad4debc07d39938",
    (50, None, True): "7a23de03e17abce4",
    (50, 60.0, False): "42fdf41489e4eaa7",
    (50, 60.0, True): "684f1dd02ba814e1",
}


@pytest.mark.parametrize(("pool_batches", "max_padded_s", "grouped"), PUBLISHED)
def test_plans_of_sorted_pools_do_not_change(pool_batches: int, max_padded_s: float | None, grouped: bool) -> None:
    config = BatchingConfig(max_clips=8, max_padded_s=max_padded_s, pool_batches=pool_batches, shuffle_clips=700)
    durations_s = (np.arange(2000) * 37 % 1901 + 50) / 100  # exact on every machine
    groups, weights = (np.arange(2000) // 60, np.full(2000, 1.25)) if grouped else (None, None)
    plan = plan_epoch(durations_s, config, 5, 3, groups=groups, weights=weights)
    assert plan.hash == PUBLISHED[pool_batches, max_padded_s, grouped]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 32, 801])
def test_batches_are_full_except_the_last_of_a_pool(count: int) -> None:
    sizes = [len(batch) for batch in plan_epoch([1.0] * count, BatchingConfig(max_clips=16), 0, 0)]
    assert sorted(sizes, reverse=True) == [16] * (count // 16) + [count % 16] * (count % 16 > 0)


GROUPED = BatchingConfig(max_clips=4, pool_batches=5, shuffle_clips=100)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    max_padded_s=st.none() | st.floats(30.0, 100.0),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 100),
)
def test_clips_of_a_row_group_are_used_close_together(
    sizes: list[int], max_padded_s: float | None, seed: int, epoch: int
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    durations_s = np.random.default_rng(seed).uniform(0.5, 20.0, len(groups))
    config = GROUPED.model_copy(update={"max_padded_s": max_padded_s})
    plan = plan_epoch(durations_s, config, seed, epoch, groups=groups)
    assert sorted(plan.order.tolist()) == list(range(len(groups)))
    # All clips of a group are used within about one window of 100 clips.
    places = {group: np.flatnonzero(groups[plan.order] == group) for group in range(len(sizes))}
    assert all(found[-1] - found[0] < 100 + max(sizes) for found in places.values())


def test_each_epoch_has_another_order_of_groups_and_clips() -> None:
    groups = np.repeat(np.arange(50), 20)
    first, second = (
        groups[plan_epoch(np.ones(1000), GROUPED, 0, epoch, groups=groups).order][:100] for epoch in (0, 1)
    )
    assert set(first) != set(second)
    assert len(set(first)) == 5  # a window of 100 clips contains five groups of 20
    assert len(set(first[:20])) > 2


def test_groups_of_one_clip_are_planned_like_clips_without_groups() -> None:
    durations_s = speech(300)
    alone = plan_epoch(durations_s, BatchingConfig(), 3, 1)
    numbered = plan_epoch(durations_s, BatchingConfig(), 3, 1, groups=np.arange(300))
    assert sorted(alone.order.tolist()) == sorted(numbered.order.tolist())
    assert padding_share(numbered, durations_s) < 0.15


def test_weights_set_how_often_a_clip_is_used() -> None:
    weights = np.array([1.0] * 50 + [0.5] * 50 + [2.0] * 50 + [0.3] * 50)
    counts = np.zeros((20, 200), int)
    for epoch in range(20):
        plan = plan_epoch(np.ones(200), BatchingConfig(), 0, epoch, weights=weights)
        counts[epoch] = np.bincount(plan.order, minlength=200)
    assert (counts[:, :50] == 1).all()
    assert (counts[:, 100:150] == 2).all()
    assert (counts[::2, 50:100] + counts[1::2, 50:100] == 1).all()  # every clip is used once in every two epochs
    assert abs(counts[:, 50:100].mean(1) - 0.5).max() < 0.25  # each epoch uses about half of them
    assert (counts[:, 150:].sum(0) == 6).all()


def test_repetitions_of_a_clip_in_an_epoch_are_numbered() -> None:
    plan = plan_epoch(np.ones(3), BatchingConfig(max_clips=2), 0, 0, weights=np.array([1.0, 3.0, 2.0]))
    seen: dict[int, list[int]] = {}
    for k, batch in enumerate(plan):
        for clip, repeat in zip(batch.tolist(), plan.repeats_of(k).tolist(), strict=True):
            seen.setdefault(clip, []).append(repeat)
    assert {clip: sorted(numbers) for clip, numbers in seen.items()} == {0: [0], 1: [0, 1, 2], 2: [0, 1]}


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_are_planned_with_the_durations_after_augmentation(weighted: bool) -> None:
    recorded, weights = speech(500), np.full(500, 1.5) if weighted else None
    factors = np.random.default_rng(7).uniform(0.5, 2.0, (500, 2))

    def augmented_s(clips: np.ndarray, repeats: np.ndarray) -> np.ndarray:
        return np.asarray(recorded)[clips] * factors[clips, repeats]

    config = BatchingConfig(max_clips=8, max_padded_s=100.0)
    plan = plan_epoch(recorded, config, 0, 0, weights=weights, augmented_s=augmented_s)
    for k, batch in enumerate(plan):
        durations = augmented_s(batch, plan.repeats_of(k))
        assert (np.diff(durations) >= 0).all()
        assert len(batch) == 1 or len(batch) * durations[-1] <= 100.0
    assert (np.bincount(plan.order) == np.bincount(plan_epoch(recorded, config, 0, 0, weights=weights).order)).all()


def test_a_plan_can_be_indexed_like_a_list() -> None:
    plan = plan_epoch([1.0, 2.0, 3.0], BatchingConfig(max_clips=1), 0, 0)
    assert plan[-1].tolist() == batches(plan)[-1]
    with pytest.raises(IndexError):
        plan[3]


def test_batches_mix_the_groups_of_a_window() -> None:
    groups = np.repeat(np.arange(50), 20)
    plan = plan_epoch(np.random.default_rng(0).uniform(1, 20, 1000), GROUPED, 0, 0, groups=groups)
    # A batch has four clips, from a window of five groups.
    assert np.mean([len(set(groups[batch])) for batch in plan]) > 2.5


def test_short_clips_are_used_first_in_the_first_epochs() -> None:
    durations = np.array(speech(400))
    config = BatchingConfig(max_clips=4, short_first_epochs=2)
    longest = [[durations[batch].max() for batch in plan_epoch(durations, config, 0, epoch)] for epoch in range(3)]
    assert [ends == sorted(ends) for ends in longest] == [True, True, False]
    plain = BatchingConfig(max_clips=4)
    assert plan_epoch(durations, config, 0, 2).hash == plan_epoch(durations, plain, 0, 2).hash
    shuffled, ordered = (sorted(map(sorted, batches(plan_epoch(durations, one, 0, 0)))) for one in (plain, config))
    assert shuffled == ordered, "only the order of the batches differs"
