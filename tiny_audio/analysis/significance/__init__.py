"""The statistics of a comparison: intervals and p-values over utterances and over seeds.

A variant is a model or another recognizer. A model may be trained several times, with different seeds. A comparison has
a baseline and one other variant. Their difference is the other variant's word error rate minus the baseline's. If the
difference is below 0, the other variant is better.

A measured word error rate is uncertain for two reasons: the choice of utterances in the set, and the training seed.
Utterances, or groups of utterances such as speakers, are resampled, with the same draws for all variants. Seeds are not
resampled, because there are too few of them. For example, suppose that two equally good variants have three seeds each.
In one of ten cases (2 of the 20 ways to divide six ranks), all seeds of one variant are better than all seeds of the
other. Every resample of these seeds would then show a difference. Instead, the variation between seeds is drawn from
the t distribution of Welch's test.

In shapes, S is the number of seeds, U the number of utterances, and R the number of draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tiny_audio.analysis.significance._matched_pairs import MatchedPairs, matched_pairs, matched_segments
from tiny_audio.analysis.significance._resampling import Groups, group_indices, percentile_interval, pool, resample

__all__ = [
    "Errors",
    "Groups",
    "MatchedPairs",
    "Words",
    "difference_draws",
    "difference_interval",
    "difference_p_value",
    "holm",
    "matched_pairs",
    "matched_segments",
    "mean_wer",
    "num_groups",
    "percentile_interval",
    "ratio_interval",
    "share_below_zero",
    "wer_interval",
]

Errors = NDArray[np.int64]
"""Number of word errors of one variant, for each seed and utterance: ``[S, U]``."""
Words = NDArray[np.int64]
"""Number of reference words of one variant: ``[S, U]``, or ``[U]`` if the numbers are the same for all seeds. With the
cost ``joined``, a number depends on the hypothesis, but it is 0 only if the reference has no words."""

_CHUNK = 1 << 22  # maximum number of random signs in memory at a time


def num_groups(groups: Groups) -> int | None:
    """Return the number of groups that are resampled, or None if utterances are resampled."""
    return None if groups is None else int(group_indices(groups).max()) + 1


def mean_wer(errors: Errors, words: Words) -> float:
    """Return the word error rate, pooled over utterances and seeds.

    If all seeds have the same number of words, the result is the mean of the seeds' rates.
    """
    return float(errors.sum() / np.broadcast_to(words, errors.shape).sum())


def wer_interval(
    errors: Errors, words: Words, *, groups: Groups = None, num_draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of :func:`mean_wer`.

    The interval includes the variation between utterances and, if there are several seeds, between seeds.
    """
    draws = _rates([errors], [words], groups, num_draws, seed)[0]
    low, high = percentile_interval(draws + _seed_noise([errors], [words], len(draws), seed))
    return max(0.0, low), max(0.0, high)


def ratio_interval(
    values: NDArray[np.float64],
    counts: NDArray[np.int64],
    *,
    groups: Groups = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % interval of ``sum(values) / sum(counts)`` by resampling utterances or groups.

    Both arrays are ``[U]``.
    """
    sums, totals = resample(np.stack([values, counts.astype(np.float64)]), groups, num_draws, seed)
    return percentile_interval(sums / totals)


def difference_draws(
    baseline: Errors,
    other: Errors,
    words: Words,
    other_words: Words | None = None,
    *,
    groups: Groups = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return resampled values of ``mean_wer(other) - mean_wer(baseline)``: ``[R]``.

    R is ``num_draws`` minus the number of resamples without a reference word. Utterances are resampled by the paired
    bootstrap (Bisani and Ney, ICASSP 2004). Each resample has the same utterances for both variants. A difficult
    utterance affects both, so its effect on the difference largely cancels.

    ``words`` are the numbers of reference words for the baseline, and ``other_words`` for the other variant. If
    ``other_words`` is None, they are equal.
    """
    both = [words, words if other_words is None else other_words]
    first, second = _rates([baseline, other], both, groups, num_draws, seed)
    noise = _seed_noise([baseline, other], both, len(first), seed)
    return np.asarray(second - first + noise, dtype=np.float64)


def share_below_zero(draws: NDArray[np.float64]) -> float:
    """Return the share of draws in which the other variant is better. Ties count half."""
    return float((draws < 0).mean() + (draws == 0).mean() / 2)


def difference_interval(
    baseline: Errors,
    other: Errors,
    words: Words,
    other_words: Words | None = None,
    *,
    groups: Groups = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % interval of the difference: the middle 95 % of :func:`difference_draws`."""
    draws = difference_draws(baseline, other, words, other_words, groups=groups, num_draws=num_draws, seed=seed)
    return percentile_interval(draws)


def difference_p_value(
    baseline: Errors,
    other: Errors,
    words: Words,
    other_words: Words | None = None,
    *,
    groups: Groups = None,
    num_draws: int = 10_000,
    seed: int = 0,
) -> float:
    """Return p: the probability that two equally good variants differ, in either direction, at least as much as these.

    The test is approximate randomization (Noreen, 1989). If both variants are equally good, their errors on an
    utterance or group are exchangeable. So in each draw, a coin toss for each utterance or group decides whether the
    variants' errors are exchanged. If the numbers of reference words differ, they are exchanged together with the
    errors. If any variant has several seeds, each draw also includes random variation between seeds. Unlike a p-value
    from the bootstrap, p is valid even for few utterances or groups. For ``other_words``, see :func:`difference_draws`.

    p is never below ``1 / (num_draws + 1)``. After Holm's correction for m comparisons, p can be below 0.05 only with
    at least ``20 * m`` draws.
    """
    both = [words, words if other_words is None else other_words]
    # Errors and words of each variant, summed over its seeds. Multiplying by the other variant's number of seeds gives
    # both variants the same weight, and keeps integers, so that equal sums compare as equal.
    before, after = (
        np.stack([errors, np.broadcast_to(one, errors.shape)]).sum(axis=1) * num_seeds
        for errors, one, num_seeds in zip((baseline, other), both, (len(other), len(baseline)), strict=True)
    )
    gains, total = after - before, (before + after).sum(axis=1)
    per_unit = pool(gains, groups)
    per_unit = per_unit[:, per_unit.any(axis=0)]  # a coin toss cannot change a gain of 0
    rng = np.random.default_rng(seed)
    num_units = per_unit.shape[1]
    size = max(1, _CHUNK // max(1, num_units))
    tossed = [
        rng.choice(np.array([-1, 1], dtype=np.int8), (min(size, num_draws - start), num_units)) @ per_unit.T
        for start in range(0, num_draws, size)
    ]
    noise = total[1] / 2 * _seed_noise([baseline, other], both, num_draws, seed)
    chance = _scaled_difference(np.concatenate(tossed).T, total) + noise
    as_large = int((np.abs(chance) >= abs(_scaled_difference(gains.sum(axis=1), total))).sum())
    return (as_large + 1) / (num_draws + 1)


def _scaled_difference(gains: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the difference in rates, multiplied by half of the total number of words.

    ``gains`` ``[2, R]`` or ``[2]`` are the errors and words of the other variant minus those of the baseline. ``total``
    ``[2]`` are the errors and words of both variants together. If both variants have the same number of words, the
    result is exactly the difference in errors.
    """
    share = gains[1] / total[1]
    return np.asarray((gains[0] - total[0] * share) / (1 - share * share), dtype=np.float64)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of a family of comparisons for the number of comparisons. Return them in the same order.

    This is Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979). If differences with adjusted
    values below 0.05 are reported, at most 5 % of families contain a false difference. This also holds for comparisons
    that depend on each other.
    """
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def _rates(
    variants: Sequence[Errors], words: Sequence[Words], groups: Groups, num_draws: int, seed: int
) -> NDArray[np.float64]:
    """Return :func:`mean_wer` of each of V variants on the same resamples: ``[V, R]``."""
    per_seed = (np.broadcast_to(one, errors.shape) for errors, one in zip(variants, words, strict=True))
    counts = [counted.sum(axis=0) for counted in (*variants, *per_seed)]
    samples = resample(np.stack(counts), groups, num_draws, seed)
    return np.asarray(samples[: len(variants)] / samples[len(variants) :], dtype=np.float64)


def _seed_noise(variants: Sequence[Errors], words: Sequence[Words], num_draws: int, seed: int) -> NDArray[np.float64]:
    """Draw random changes ``[R]`` of a rate or difference, as if the variants were trained with other seeds.

    The changes are 0 if every variant has only one seed.
    """
    error, freedom = _seed_error(variants, words)
    if error == 0:
        return np.zeros(num_draws)
    # The seed [seed, 1] makes these random numbers independent of those that resample utterances.
    return np.asarray(error * np.random.default_rng([seed, 1]).standard_t(freedom, num_draws), dtype=np.float64)


def _seed_error(variants: Sequence[Errors], words: Sequence[Words]) -> tuple[float, float]:
    """Return the standard error over seeds, and its degrees of freedom (Welch, Satterthwaite).

    For one variant, this is the standard error of its rate. For two variants, it is the standard error of their
    difference. If only one variant has several seeds, its spread is used for both. If both have one seed, the standard
    error is 0.

    Part of the spread between seeds is due to the limited number of utterances. Resampling utterances includes this
    part, too. Because it is counted twice, the test is slightly too strict.
    """
    spreads = [  # (variance over seeds, degrees of freedom)
        (float((errors.sum(axis=1) / one.sum(axis=-1)).var(ddof=1)), len(errors) - 1)
        for errors, one in zip(variants, words, strict=True)
        if len(errors) > 1
    ]
    parts = [(spread / (df + 1), df) for spread, df in spreads]  # variance of the mean over seeds
    singles = sum(len(errors) == 1 for errors in variants)
    if spreads and singles:
        freedom = sum(df for _, df in spreads)
        pooled = sum(spread * df for spread, df in spreads) / freedom
        parts += [(pooled, freedom)] * singles
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0, 1.0
    return variance**0.5, variance**2 / sum(part**2 / df for part, df in parts)
