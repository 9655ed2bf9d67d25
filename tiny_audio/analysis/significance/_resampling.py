"""Resampling of utterances, or of groups of utterances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Groups = Sequence[str | None] | None
"""One label per utterance, such as its speaker. An utterance whose label is ``None`` is a separate group. If ``Groups``
itself is ``None``, utterances are resampled."""

_CHUNK = 1 << 22  # maximum number of resampled indices in memory at a time, about 32 MB


def group_indices(groups: Sequence[str | None]) -> NDArray[np.int64]:
    """Return the index of each utterance's group, from 0 in order of appearance. Each ``None`` gets its own index."""
    seen: dict[str | int, int] = {}
    return np.array([seen.setdefault(i if group is None else group, len(seen)) for i, group in enumerate(groups)])


def pool(counts: NDArray[Any], groups: Groups) -> NDArray[Any]:
    """Sum each of the C rows of ``counts`` [C, U] within the G groups -> [C, G].

    If ``groups`` is None, return ``counts`` unchanged.
    """
    if groups is None:
        return counts
    units = group_indices(groups)
    pooled = np.zeros((len(counts), units.max() + 1), dtype=counts.dtype)
    for row, values in zip(pooled, counts, strict=True):
        np.add.at(row, units, values)
    return pooled


def resample(counts: NDArray[Any], groups: Groups, num_draws: int, seed: int) -> NDArray[Any]:
    """Resample utterances or groups, and sum each row of ``counts`` [C, U] over each resample -> [C, R].

    All C rows use the same resamples. The last row contains the denominators of a rate, such as numbers of reference
    words. A resample is omitted if its denominators sum to 0, so R ≤ ``num_draws``. Even if only one utterance or
    group has a denominator above 0, on average at most 37 % (1/e) of the resamples are omitted.
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
    """Return the ends of the middle 95 % of ``values`` ``[R]``."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
