"""Is one variant better than another, or would chance do as much: over utterances, and over seeds.

Two things make a measured word error rate uncertain: which utterances the set happens to hold, and which seed the
training happened to have. Utterances, or groups of them such as speakers, are resampled, the same for all variants.
Seeds are too few for that: three of them can be resampled in so few ways that two variants of one distribution would
be called different once in ten times. Their part is drawn from the t distribution of Welch's test instead.

A difference is the other's rate less the baseline's: below 0, the other is better.

S seeds · U utterances · R draws
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tiny_audio.analysis.significance._matched_pairs import MatchedPairs, matched_pairs, matched_segments
from tiny_audio.analysis.significance._resampling import Groups, group_numbers, percentile_interval, pool, resample
from tiny_audio.analysis.significance._tails import tail_bound

__all__ = [
    "Errors",
    "Groups",
    "MatchedPairs",
    "difference_draws",
    "difference_interval",
    "difference_p_value",
    "holm",
    "matched_pairs",
    "matched_segments",
    "mean_wer",
    "num_groups",
    "percentile_interval",
    "wer_interval",
]

Errors = NDArray[np.int64]
"""Word errors of one variant: ``[S, U]``."""

_CHUNK = 1 << 22  # random signs held at a time


def num_groups(groups: Groups) -> int | None:
    """How many groups are resampled; None: utterances are."""
    return None if groups is None else int(group_numbers(groups).max()) + 1


def mean_wer(errors: Errors, words: NDArray[np.int64]) -> float:
    """Pooled word error rate, averaged over seeds; ``words`` ``[U]`` are the reference's."""
    return float(errors.sum() / (len(errors) * words.sum()))


def wer_interval(
    errors: Errors, words: NDArray[np.int64], *, groups: Groups = None, num_draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of :func:`mean_wer` over utterances and, where there are several, seeds."""
    draws = _rates([errors], words, groups, num_draws, seed)[0]
    low, high = percentile_interval(draws + _seed_noise([errors], words, len(draws), seed))
    return max(0.0, low), max(0.0, high)


def difference_draws(
    baseline: Errors,
    other: Errors,
    words: NDArray[np.int64],
    *,
    groups: Groups = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """``mean_wer(other) - mean_wer(baseline)`` as it might have come out: ``[R]``, R at most ``num_draws``.

    Over utterances it is the paired bootstrap (Bisani and Ney, ICASSP 2004): each resample holds the same for both,
    so that what is hard for both cancels. With one seed each, seeds have no part in it.
    """
    first, second = _rates([baseline, other], words, groups, num_draws, seed)
    noise = _seed_noise([baseline, other], words, len(first), seed)
    return np.asarray(second - first + noise, dtype=np.float64)


def difference_interval(
    baseline: Errors,
    other: Errors,
    words: NDArray[np.int64],
    *,
    groups: Groups = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of the difference: the middle of :func:`difference_draws`."""
    return percentile_interval(difference_draws(baseline, other, words, groups=groups, num_draws=num_draws, seed=seed))


def difference_p_value(
    baseline: Errors,
    other: Errors,
    words: NDArray[np.int64],
    *,
    groups: Groups = None,
    num_draws: int = 10_000,
    seed: int = 0,
) -> float:
    """Chance of a difference as large as this, either way, between two variants that are equally good.

    Approximate randomization (Noreen, 1989): if they are, it is a coin's toss which of the two made which errors on an
    utterance, or group. Unlike a p-value of the bootstrap's it holds for few utterances, and for few groups: 4
    sentences out of 1000 that differ, all in favor of one, give 0.125.

    Where no draw is as large, draws say no more than that the chance is below one in ``num_draws``, which a correction
    for hundreds of comparisons would eat up. There it is the lesser of that and of an upper bound in closed form; both
    hold, and which of them is asked does not depend on the answer.
    """
    # Sums over seeds, scaled to be comparable and still whole numbers: equal sums must compare as equal.
    gains = other.sum(axis=0) * len(baseline) - baseline.sum(axis=0) * len(other)
    per_unit = pool(gains[None], groups)[0]
    per_unit = per_unit[per_unit != 0]  # a toss changes nothing at the others
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK // max(1, len(per_unit)))
    tossed = [
        rng.choice(np.array([-1, 1], dtype=np.int8), (min(size, num_draws - start), len(per_unit))) @ per_unit
        for start in range(0, num_draws, size)
    ]
    scale = len(baseline) * len(other) * int(words.sum())
    chance = np.concatenate(tossed) + scale * _seed_noise([baseline, other], words, num_draws, seed)
    found = abs(int(gains.sum()))
    as_large = int((np.abs(chance) >= found).sum())
    resolved = (as_large + 1) / (num_draws + 1)
    if as_large:
        return resolved
    error, freedom = _seed_error([baseline, other], words)
    return min(resolved, tail_bound(found, float((per_unit.astype(float) ** 2).sum()), scale * error, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family of comparisons, adjusted so that those below 0.05 hold a mistake in 5 % of families at most.

    Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979), in the order of ``p_values``: as strict
    as Bonferroni for the least of them, less so for the others. It asks nothing of how they depend on each other.
    """
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = floor
    return adjusted


def _rates(
    variants: Sequence[Errors], words: NDArray[np.int64], groups: Groups, num_draws: int, seed: int
) -> NDArray[np.float64]:
    """:func:`mean_wer` of each variant on the same resamples: ``[V, R]``."""
    samples = resample(np.stack([*(errors.sum(axis=0) for errors in variants), words]), groups, num_draws, seed)
    seeds = np.array([[len(errors)] for errors in variants])
    return np.asarray(samples[:-1] / (seeds * samples[-1]), dtype=np.float64)


def _seed_noise(variants: Sequence[Errors], words: NDArray[np.int64], num_draws: int, seed: int) -> NDArray[np.float64]:
    """What other seeds might have given, as an error of the mean ``[R]``; 0 where every variant has one seed."""
    error, freedom = _seed_error(variants, words)
    if error == 0:
        return np.zeros(num_draws)
    # Its own stream: the seed that resamples utterances must not decide this too.
    return np.asarray(error * np.random.default_rng([seed, 1]).standard_t(freedom, num_draws), dtype=np.float64)


def _seed_error(variants: Sequence[Errors], words: NDArray[np.int64]) -> tuple[float, float]:
    """Standard error by seeds of a rate, or of a difference, and its degrees of freedom (Welch and Satterthwaite).

    A variant with one seed says nothing of its own spread, and is taken to spread as the others do.

    The spread of seeds on one set holds what is chance of seed and utterance together, which the resampling of
    utterances holds as well: counted twice, it errs on the side of finding no difference.
    """
    spreads = [  # (variance over seeds, degrees of freedom)
        (float((errors.sum(axis=1) / words.sum()).var(ddof=1)), len(errors) - 1)
        for errors in variants
        if len(errors) > 1
    ]
    parts = [(spread / (df + 1), df) for spread, df in spreads]  # of the mean over seeds
    singles = sum(len(errors) == 1 for errors in variants)
    if spreads and singles:
        freedom = sum(df for _, df in spreads)
        pooled = sum(spread * df for spread, df in spreads) / freedom
        parts += [(pooled, freedom)] * singles
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0, 1.0
    return variance**0.5, variance**2 / sum(part**2 / df for part, df in parts)
