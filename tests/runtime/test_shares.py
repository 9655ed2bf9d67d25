"""Work is split evenly between processes, always in the same way."""

from __future__ import annotations

import pytest

from tiny_audio.runtime.shares import split_evenly


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_item_is_in_one_share_and_shares_are_balanced(size: int) -> None:
    durations_s = [float(1 + (37 * index) % 59) for index in range(200)]
    shares = split_evenly(durations_s, size)
    assert sorted(index for share in shares for index in share) == list(range(200))
    assert all(share == sorted(share) for share in shares)
    totals = [sum(durations_s[index] for index in share) for share in shares]
    assert max(totals) - min(totals) <= min(durations_s) + 1
    assert split_evenly(durations_s, size) == shares


def test_one_long_item_gets_its_own_share() -> None:
    assert split_evenly([1.0, 1.0, 100.0, 1.0], 2) == [[2], [0, 1, 3]]


def test_items_of_unknown_duration_are_spread() -> None:
    assert sorted(map(len, split_evenly([0.0] * 8, 4))) == [2, 2, 2, 2]
    assert sorted(map(len, split_evenly([0.0, 5.0, 0.0, 5.0], 2))) == [2, 2]


def test_there_can_be_fewer_items_than_shares() -> None:
    assert split_evenly([3.0], 3) == [[0], [], []]
    assert split_evenly([], 2) == [[], []]
