"""Estimate the share of padding in a recipe's batches, by planning an epoch of clips with assumed durations."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tiny_audio.data.order import plan_epoch
from tiny_audio.recipe import Recipe

SPREAD = 0.6
"""Standard deviation of the logarithm of the duration. With this value, two thirds of the clips are within a factor of
1.8 of the median."""
_NUM_CLIPS = 20_000
"""Number of clips in the planned epoch."""


@dataclass(frozen=True)
class Batches:
    """Averages over the batches of an epoch."""

    audio_s: float
    """Seconds of audio in a batch."""
    padding_share: float
    """``padding / (audio + padding)``, in seconds over all batches."""


def planned_batches(recipe: Recipe, mean_s: float) -> Batches:
    """Plan an epoch with the recipe's batching, and return averages over its batches.

    The durations of the clips are log-normal, clipped to the recipe's bounds, and have the mean ``mean_s``.
    """
    durations = _durations(recipe.data.min_duration_s, recipe.data.max_duration_s, mean_s)
    clips = min(recipe.batching.max_clips, len(durations))
    plan = plan_epoch(durations, recipe.batching.model_copy(update={"max_clips": clips}), seed=0, epoch=0)
    longest = np.maximum.reduceat(durations[plan.order], plan.starts[:-1])
    padded_s = float(longest @ np.diff(plan.starts))
    audio_s = float(durations.sum())
    return Batches(audio_s / len(plan), 1 - audio_s / padded_s)


def _durations(shortest_s: float, longest_s: float, mean_s: float) -> NDArray[np.float64]:
    """Return evenly spaced quantiles of the distribution of durations.

    Clipping changes the mean, so bisection searches for the median with which the clipped mean is ``mean_s``.
    """
    normal = NormalDist(sigma=SPREAD)
    offsets = np.array([normal.inv_cdf((rank + 0.5) / _NUM_CLIPS) for rank in range(_NUM_CLIPS)])
    low, high = np.log(shortest_s) + offsets[0], np.log(longest_s) + offsets[-1]
    durations = np.full(_NUM_CLIPS, mean_s)
    for _ in range(60):
        middle = (low + high) / 2
        durations = np.exp(middle + offsets).clip(shortest_s, longest_s)
        low, high = (middle, high) if durations.mean() < mean_s else (low, middle)
    return durations
