"""Resampling of utterances, or of groups of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Groups = Sequence[str | None] | None
"""One label per utterance, such as its speaker. A label ``None`` is a group of its own; ``None`` instead of labels
makes each utterance its own group."""

_CHUNK = 1 << 22  # resampled indices held at a time, about 32 MB


def group_indices(groups: Sequence[str | None]) -> NDArray[np.int64]:
    """Group indices from 0, in order of appearance; each ``None`` has its own."""
    seen: dict[str | int, int] = {}
    return np.array([seen.setdefault(i if group is None else group, len(seen)) for i, group in enumerate(groups)])


def pool(counts: NDArray[np.int64], groups: Groups) -> NDArray[np.int64]:
    """Sums of ``counts`` [C, U] within groups -> [C, G]; without groups, unchanged."""
    if groups is None:
        return counts
    units = group_indices(groups)
    pooled = np.zeros((len(counts), units.max() + 1), dtype=np.int64)
    for row, values in zip(pooled, counts, strict=True):
        np.add.at(row, units, values)
    return pooled


def resample(counts: NDArray[np.int64], groups: Groups, num_draws: int, seed: int) -> NDArray[np.int64]:
    """Sums of ``counts`` [C, U] over resampled utterances or groups, the same draws for every row.

    The last row holds reference words. Resamples without any have no rate and are left out: at most about one in e.

    Returns:
        ``[C, R]``, R ≤ ``num_draws``.
    """
    counts = pool(counts, groups)
    rng = np.random.default_rng(seed)
    size = counts.shape[1]
    rows = max(1, _CHUNK // size)
    sums = []
    for start in range(0, num_draws, rows):
        drawn = rng.integers(size, size=(min(rows, num_draws - start), size))  # [rows, units]
        sums.append(np.stack([row[drawn].sum(axis=1) for row in counts]))
    samples = np.concatenate(sums, axis=1)
    return samples[:, samples[-1] > 0]


def percentile_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of ``values`` ``[R]``."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
