"""Is one variant better than another, or would chance do as much: over utterances, and over seeds.

Two things make a measured word error rate uncertain: which utterances the set happens to hold, and which seed the
training happened to have. Utterances, or groups of them such as speakers, are resampled, the same for all variants.
Seeds are too few for that: three of them can be resampled in so few ways that two variants of one distribution would
be called different once in ten times. Their part is drawn from the t distribution of Welch's test instead.

S seeds · U utterances · R draws
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tiny_audio.scoring import percentile_interval, pool, resample

Errors = NDArray[np.int64]
"""Word errors of one variant: ``[S, U]``."""
Groups = Sequence[str | None] | None
"""One label per utterance, as in :func:`tiny_audio.scoring.score`; ``None``: each utterance for itself."""

_CHUNK = 1 << 22  # random signs held at a time


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


def difference_interval(
    baseline: Errors,
    other: Errors,
    words: NDArray[np.int64],
    *,
    groups: Groups = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of ``mean_wer(other) - mean_wer(baseline)``: negative where the other is better.

    Over utterances it is the paired bootstrap (Bisani and Ney, ICASSP 2004): each resample holds the same for both,
    so that what is hard for both cancels. With one seed each, seeds have no part in it.
    """
    first, second = _rates([baseline, other], words, groups, num_draws, seed)
    return percentile_interval(second - first + _seed_noise([baseline, other], words, len(first), seed))


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

    Approximate randomisation (Noreen, 1989): if they are, it is a coin's toss which of the two made which errors on an
    utterance, or group. Unlike a p-value of the bootstrap's it holds for few utterances, and for few groups: 4
    sentences out of 1000 that differ, all in favour of one, give 0.125.
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
    as_large = int((np.abs(chance) >= abs(int(gains.sum()))).sum())
    return (as_large + 1) / (num_draws + 1)


def _rates(
    variants: Sequence[Errors], words: NDArray[np.int64], groups: Groups, num_draws: int, seed: int
) -> NDArray[np.float64]:
    """:func:`mean_wer` of each variant on the same resamples: ``[V, R]``."""
    samples = resample(np.stack([*(errors.sum(axis=0) for errors in variants), words]), groups, num_draws, seed)
    seeds = np.array([[len(errors)] for errors in variants])
    return np.asarray(samples[:-1] / (seeds * samples[-1]), dtype=np.float64)


def _seed_noise(variants: Sequence[Errors], words: NDArray[np.int64], num_draws: int, seed: int) -> NDArray[np.float64]:
    """What other seeds might have given, as an error of the mean ``[R]``; 0 where every variant has one seed.

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
        return np.zeros(num_draws)
    effective = variance**2 / sum(part**2 / df for part, df in parts)  # Welch and Satterthwaite
    # Its own stream: the seed that resamples utterances must not decide this too.
    draws = np.random.default_rng([seed, 1]).standard_t(effective, num_draws)
    return np.asarray(np.sqrt(variance) * draws, dtype=np.float64)
