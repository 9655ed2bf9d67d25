"""Intervals and p-values have their stated error rates. The tests simulate systems whose true error rates are known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tiny_audio.analysis.comparison import num_tosses
from tiny_audio.analysis.significance import (
    Errors,
    difference_interval,
    difference_p_value,
    holm,
    mean_wer,
    wer_interval,
)

WORDS = np.full(120, 6)


def draw(rng: np.random.Generator, *, rate: float = 0.2, num_seeds: int = 1, seed_spread: float = 0.0) -> Errors:
    """Draw the number of word errors of each seed in each utterance: ``[S, U]``.

    Every seed has its own error rate near ``rate``, and every utterance has its own difficulty.
    """
    difficulty = rng.gamma(2.0, 0.5, len(WORDS))
    rates = np.clip(rng.normal(rate, seed_spread, (num_seeds, 1)), 0.01, 0.9)
    return rng.binomial(WORDS, np.clip(rates * difficulty, 0, 1))


def as_errors(*rows: list[int]) -> NDArray[np.int64]:
    return np.array(rows)


@pytest.mark.parametrize(("num_seeds", "seed_spread"), [(1, 0.0), (3, 0.0), (3, 0.04)])
def test_equal_systems_differ_about_as_often_as_stated(num_seeds: int, seed_spread: float) -> None:
    rng = np.random.default_rng(7)
    called = 0
    for _ in range(200):
        both = draw(rng, num_seeds=2 * num_seeds, seed_spread=seed_spread)
        called += difference_p_value(both[:num_seeds], both[num_seeds:], WORDS, num_draws=400) < 0.05
    assert called / 200 < 0.09  # the stated 0.05, plus about 2.5 standard deviations of a rate in 200 trials


def test_resampling_three_seeds_would_show_too_many_differences() -> None:
    """In one of ten cases, all three seeds of one variant have higher rates than all three seeds of an equally good
    variant. Then every resample of the seeds would show a difference. So :func:`difference_p_value` does not resample
    seeds."""
    rng = np.random.default_rng(7)
    apart = 0
    for _ in range(400):
        both = draw(rng, num_seeds=6, seed_spread=0.04).sum(axis=1)
        apart += both[:3].max() < both[3:].min() or both[3:].max() < both[:3].min()
    assert apart / 400 > 0.07


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(0)
    worse, better = draw(rng, rate=0.3, num_seeds=3, seed_spread=0.01), draw(rng, rate=0.15, num_seeds=3)
    assert difference_p_value(worse, better, WORDS) < 0.01
    low, high = difference_interval(worse, better, WORDS)
    assert low < mean_wer(better, WORDS) - mean_wer(worse, WORDS) < high < 0


def test_intervals_contain_the_true_difference_in_95_percent() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        both = draw(rng, num_seeds=6, seed_spread=0.04)
        low, high = difference_interval(both[:3], both[3:], WORDS, num_draws=400)
        held += low <= 0 <= high
    assert held / 200 > 0.91


def test_a_variant_does_not_differ_from_itself() -> None:
    errors = draw(np.random.default_rng(0))
    assert difference_p_value(errors, errors, WORDS) == 1.0
    assert difference_interval(errors, errors, WORDS) == (0.0, 0.0)


def test_a_few_different_sentences_do_not_show_a_difference() -> None:
    """4 of 120 sentences differ, all in favor of one system. By chance, all 4 favor the same system with probability
    2 / 2**4 = 1/8."""
    baseline, other = np.ones((1, 120), dtype=int), np.ones((1, 120), dtype=int)
    other[0, :4] = 0
    assert difference_p_value(baseline, other, WORDS) == pytest.approx(0.125, abs=0.01)
    other[0, :10] = 0
    assert difference_p_value(baseline, other, WORDS) == pytest.approx(2 / 1024, abs=0.001)


def test_signs_are_flipped_per_group() -> None:
    baseline, other = np.ones((1, 120), dtype=int), np.zeros((1, 120), dtype=int)
    assert difference_p_value(baseline, other, WORDS) < 0.001
    speakers = [f"s{number % 3}" for number in range(120)]
    assert difference_p_value(baseline, other, WORDS, groups=speakers) == pytest.approx(0.25, abs=0.02)
    apart: list[str | None] = [None] * 120
    assert difference_p_value(baseline, other, WORDS, groups=apart) < 0.001


def test_words_are_exchanged_together_with_errors() -> None:
    """There are 1024 ways to exchange the two systems in ten sentences. The exact p-value is the share of these ways
    with at least the measured difference. If errors were exchanged without the numbers of words, it would be 0.59."""
    rng = np.random.default_rng(7)
    errors, words = rng.integers(0, 5, (2, 10)), rng.integers(5, 9, (2, 10))

    def difference(exchanged: tuple[bool, ...]) -> float:
        sums = [np.where(exchanged, counts[::-1], counts).sum(axis=1) for counts in (errors, words)]
        before, after = sums[0] / sums[1]
        return float(after - before)

    measured = abs(difference((False,) * 10))
    exact = np.mean([abs(difference(each)) >= measured - 1e-9 for each in product((False, True), repeat=10)])
    found = difference_p_value(errors[:1], errors[1:], words[0], words[1])
    assert found == pytest.approx(exact, abs=0.015)
    # If the seed of a variant is counted twice, the error rate, the p-value and the interval do not change.
    twice = [np.stack([counts[1], counts[1]]) for counts in (errors, words)]
    assert difference_p_value(errors[:1], twice[0], words[0], twice[1]) == found
    assert difference_interval(errors[:1], twice[0], words[0], twice[1]) == difference_interval(
        errors[:1], errors[1:], words[0], words[1]
    )


def test_variants_can_have_different_numbers_of_seeds() -> None:
    one, three = as_errors([1] * 120), as_errors([1] * 120, [1] * 120, [1] * 120)
    assert mean_wer(one, WORDS) == mean_wer(three, WORDS)
    assert difference_p_value(one, three, WORDS) == 1.0
    assert difference_interval(one, three, WORDS) == (0.0, 0.0)


def test_seeds_that_differ_widen_the_interval() -> None:
    steady = as_errors([1] * 120, [1] * 120, [1] * 120)
    shaky = as_errors([0] * 120, [1] * 120, [2] * 120)
    assert mean_wer(steady, WORDS) == mean_wer(shaky, WORDS)
    assert wer_interval(steady, WORDS) == (pytest.approx(1 / 6), pytest.approx(1 / 6))
    low, high = wer_interval(shaky, WORDS)
    # The interval extends 4.30 standard errors to both sides, but not below 0. 4.30 is the 97.5 % quantile of the t
    # distribution with 2 degrees of freedom.
    assert low == 0
    assert high == pytest.approx(1 / 6 + 4.30 * (1 / 6) / np.sqrt(3), rel=0.25)


def test_a_single_seed_gets_the_variance_of_the_other_variant() -> None:
    shaky = as_errors([0] * 120, [1] * 120, [2] * 120)
    lucky = as_errors([0] * 120)
    low, high = difference_interval(shaky, lucky, WORDS)
    assert low < 0 < high
    assert difference_p_value(shaky, lucky, WORDS) > 0.2


def test_a_thousand_comparisons_can_show_a_difference() -> None:
    """Holm's correction multiplies the smallest p-value by the number of comparisons. A p-value from n draws is at
    least 1 / (n + 1). So with too few draws, every corrected p-value would exceed 0.05."""
    rng = np.random.default_rng(0)
    baseline = draw(rng, rate=0.3)
    lost, same = np.minimum(baseline + 1, WORDS), draw(rng, rate=0.3)
    other = difference_p_value(baseline, same, WORDS)
    p_values = [difference_p_value(baseline, lost, WORDS, num_draws=num_tosses(1000)), *[other] * 999]
    adjusted = holm(p_values)
    assert adjusted[0] < 0.05
    assert adjusted[1] == 1.0
    assert num_tosses(250) == num_tosses(1) == 10_000


@pytest.mark.parametrize("num_sentences", [12, 16, 20, 40, 200])
def test_with_few_draws_the_p_value_is_at_least_the_exact_one(num_sentences: int) -> None:
    """All sentences that differ favor the same system. The exact p-value is the probability of this by chance."""
    words = np.full(200, 6)
    baseline, other = np.ones((1, 200), dtype=int), np.ones((1, 200), dtype=int)
    other[0, :num_sentences] = 0
    p_value = difference_p_value(baseline, other, words, num_draws=1000)
    exact = 2.0 ** (1 - num_sentences)
    assert exact <= p_value <= 1 / 200


def test_with_few_draws_the_variance_of_seeds_is_included() -> None:
    """With only three seeds per variant, even a large difference is possible by chance. So more draws do not bring the
    p-value close to 0."""
    rng = np.random.default_rng(0)
    worse = draw(rng, rate=0.5, num_seeds=3, seed_spread=0.01)
    better = draw(rng, rate=0.05, num_seeds=3, seed_spread=0.01)
    few, many = (difference_p_value(worse, better, WORDS, num_draws=number) for number in (100, 100_000))
    assert 1e-5 < many <= few <= 1 / 101


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_between_the_p_value_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert len(adjusted) == len(p_values)
    for p_value, strict in zip(p_values, adjusted, strict=True):
        assert p_value <= strict <= min(1.0, len(p_values) * p_value)
    if p_values:
        least = p_values.index(min(p_values))
        assert adjusted[least] == min(1.0, len(p_values) * min(p_values))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[index] for index in order] == sorted(adjusted)


def test_holm_equals_values_computed_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
