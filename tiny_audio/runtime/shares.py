"""Split work between processes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def split_evenly(durations_s: Sequence[float], num_shares: int) -> list[list[int]]:
    """Split items into shares of about the same total duration. The same durations always give the same shares.

    Args:
        durations_s: duration of each item. 0 means unknown: the mean of the known durations is used instead.
        num_shares: number of shares. If there are fewer items than shares, some shares are empty.

    Returns:
        The indices of the items of each share, in ascending order.
    """
    known = [duration for duration in durations_s if duration > 0]
    mean = sum(known) / len(known) if known else 1.0
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    totals = [(0.0, share) for share in range(num_shares)]
    expected = [duration if duration > 0 else mean for duration in durations_s]
    for index in sorted(range(len(expected)), key=lambda index: -expected[index]):
        total, share = totals[0]
        shares[share].append(index)
        heapq.heapreplace(totals, (total + expected[index], share))
    return [sorted(share) for share in shares]
