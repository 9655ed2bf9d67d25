"""The matched-pairs test of NIST's sc_stats (MAPSSWE): compares the errors of two systems segment by segment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MIN_GOOD = 2
"""Consecutive words that both systems have right and that separate two segments, as in sc_stats."""


@dataclass(frozen=True)
class MatchedPairs:
    """The result of :func:`matched_pairs`; the first system is the baseline."""

    num_segments: int
    """Segments in which at least one of the two has an error."""
    mean: float
    """Errors of the baseline minus errors of the other, per segment: above 0 where the other is better."""
    standard_deviation: float
    """Standard deviation of this difference over segments."""
    z: float
    """``mean / (standard_deviation / √num_segments)``; 0 where the standard deviation is 0, as in sc_stats."""
    p_value: float
    """Two-sided, from the normal distribution. sc_stats looks up ``z``, cut to two decimals, in a table: its p is
    larger by at most 0.008, and by less than 0.001 where p is below 0.05."""


def matched_pairs(baseline: Sequence[str], other: Sequence[str]) -> MatchedPairs:
    """Matched-Pairs Sentence-Segment Word Error test (MAPSSWE), as NIST's sc_stats calculates it.

    L. Gillick and S. Cox, "Some statistical issues in the comparison of speech recognition algorithms", ICASSP 1989.
    The test assumes that errors are correlated within a segment, and independent between segments that two correct
    words separate. So each utterance is cut where both systems have two words in a row right. Each segment is a sample
    ``errors of the baseline - errors of the other``, and ``z`` is the mean over its standard error (with n - 1 in the
    variance). It needs about 50 segments, and ignores speakers.

    Args:
        baseline: the edits of each utterance, one letter per word: C right, S substituted, I inserted, D deleted.
        other: those of the other system, for the same utterances in the same order.
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
    """Errors of the baseline and of the other in each segment that has some; edits as for :func:`matched_pairs`."""
    errors, good = [0, 0], 0
    for first, second, right in _spots(baseline, other):
        # An error in a word, or an insertion before it, restarts the count of right words.
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
    """For each reference word: errors of both in it and just before it, and whether both have the word right.

    The last item is the end of the utterance, with insertions there.
    """
    for (inserted, edit), (also, theirs) in zip(_by_word(baseline), _by_word(other), strict=True):
        wrong, also_wrong = edit in ("S", "D"), theirs in ("S", "D")
        yield inserted + wrong, also + also_wrong, edit == theirs == "C"


def _by_word(edits: str) -> Iterator[tuple[int, str]]:
    """(insertions before it, edit) for each reference word, and for the end, whose edit is empty."""
    inserted = 0
    for edit in edits:
        if edit == "I":
            inserted += 1
        else:
            yield inserted, edit
            inserted = 0
    yield inserted, ""
