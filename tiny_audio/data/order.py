"""The planned order: which clips make which batch, as a pure function of (clips, settings, seed, epoch)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from tiny_audio.config import Config


class BatchingConfig(Config):
    """Batches of clips of similar length."""

    max_clips: PositiveInt = 16
    """Most clips in a batch."""
    max_padded_s: PositiveFloat | None = None
    """Most seconds in a batch, padding included: clips times the longest of them. None bounds by clips alone."""
    pool_batches: PositiveInt = 50
    """Clips of so many batches are sorted by duration together. More is less padding and less shuffling; 1 sorts
    only within a batch, so that batches are random."""


def plan_epoch(durations_s: Sequence[float], config: BatchingConfig, seed: int, epoch: int) -> list[list[int]]:
    """Indices of the clips of each global batch of one epoch; every clip comes exactly once.

    Shuffle, cut into pools, sort each pool by duration, cut batches under both bounds, shuffle the batches.
    """
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(durations_s))
    pool_size = config.max_clips * config.pool_batches
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), pool_size):
        pool = [int(clip) for clip in shuffled[start : start + pool_size]]
        if config.pool_batches > 1:
            pool.sort(key=lambda clip: (durations_s[clip], clip))
        batch: list[int] = []
        longest_s = 0.0
        for clip in pool:
            longest_s = max(longest_s, durations_s[clip])
            over = config.max_padded_s is not None and (len(batch) + 1) * longest_s > config.max_padded_s
            if batch and (over or len(batch) == config.max_clips):
                batches.append(batch)
                batch, longest_s = [], durations_s[clip]
            batch.append(clip)
        batches.append(batch)
    return [batches[index] for index in rng.permutation(len(batches))]
