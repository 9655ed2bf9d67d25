"""The matched-pairs test of NIST's sc_stats: are the errors of two systems the same, segment by segment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MIN_GOOD = 2
"""Words that both systems have right, one after the other: so many part two segments, as sc_stats has it."""


@dataclass(frozen=True)
class MatchedPairs:
    """What :func:`matched_pairs` finds. The first system is the baseline, as everywhere here."""

    num_segments: int
    """Segments in which one of the two has an error, or both."""
    mean: float
    """Errors of the baseline less errors of the other, in a segment: above 0 where the other is better."""
    standard_deviation: float
    """Of that, between segments."""
    z: float
    """``mean / (standard_deviation / √num_segments)``; 0 where all segments differ by as much, as sc_stats has it."""
    p_value: float
    """Two-sided, of the normal distribution: the chance of a ``z`` as far from 0 if the two are equally good. sc_stats
    prints that of ``z`` cut to two decimals, from a table: more by up to 0.008, less than 0.001 where p is below 0.05.
    """


def matched_pairs(baseline: Sequence[str], other: Sequence[str]) -> MatchedPairs:
    """Matched-Pairs Sentence-Segment Word Error test (MAPSSWE), as NIST's sc_stats calculates it.

    L. Gillick and S. Cox, "Some statistical issues in the comparison of speech recognition algorithms", ICASSP 1989.
    Errors of one segment hang together; segments with two right words between them, it assumes, do not. So each
    utterance is cut where both systems have two words in a row right, each segment is a sample
    ``errors of the baseline - errors of the other``, and ``z`` is their mean over its standard error (with n - 1 in
    the variance). It takes about 50 segments; it knows nothing of speakers.

    Args:
        baseline: the edits of each utterance, one letter a word: C right, S substituted, I inserted, D deleted.
        other: those of the other system, of the same utterances in the same order.
    """
    assert len(baseline) == len(other), "of the same utterances"
    differences = [
        first - second for pair in zip(baseline, other, strict=True) for first, second in matched_segments(*pair)
    ]
    size = len(differences)
    mean = sum(differences) / size if size else 0.0
    squares = sum((difference - mean) ** 2 for difference in differences)
    deviation = math.sqrt(squares / (size - 1)) if squares else 0.0
    z = mean / (deviation / math.sqrt(size)) if deviation else 0.0
    return MatchedPairs(size, mean, deviation, z, math.erfc(abs(z) / math.sqrt(2)))


def matched_segments(baseline: str, other: str) -> Iterator[tuple[int, int]]:
    """Errors of the baseline and of the other in each segment of an utterance that has some; the edits as for
    :func:`matched_pairs`."""
    errors, good = [0, 0], 0
    for first, second, right in _spots(baseline, other):
        # An error in a word, or inserted before it, starts the count of right words again.
        good = 0 if not right else good + 1 if not (first or second) else 1
        errors[0] += first
        errors[1] += second
        if good >= _MIN_GOOD:
            if any(errors):
                yield errors[0], errors[1]
            errors = [0, 0]
    if any(errors):
        yield errors[0], errors[1]


def _spots(baseline: str, other: str) -> Iterator[tuple[int, int, bool]]:
    """For each reference word: errors of both in it and before it, and whether both have the word itself right.

    The last spot is the end of the utterance, with what is inserted there.
    """
    for (inserted, edit), (also, theirs) in zip(_by_word(baseline), _by_word(other), strict=True):
        wrong, also_wrong = edit in ("S", "D"), theirs in ("S", "D")
        yield inserted + wrong, also + also_wrong, edit == theirs == "C"


def _by_word(edits: str) -> Iterator[tuple[int, str]]:
    """(insertions before it, edit) of each reference word, and of the end, whose edit is empty."""
    inserted = 0
    for edit in edits:
        if edit == "I":
            inserted += 1
        else:
            yield inserted, edit
            inserted = 0
    yield inserted, ""
