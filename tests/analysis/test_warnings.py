"""Warnings about scores: truncated hypotheses, and overlaps with the training data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tiny_audio.analysis.tables import warning_lines
from tiny_audio.analysis.warnings import Comparison, Overlap, comparison_of, state_overlap, warnings_of

OVERLAP = Overlap("speaker", 5, 9, ("a", "b"), ("anna", "ben"))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({}, []),
        ({"truncated_hypotheses": 0, "num_utterances": 4, "shared_with_training": []}, []),
        ({"truncated_hypotheses": 3, "num_utterances": None}, []),
        ({"truncated_hypotheses": 3, "num_utterances": 1_200}, ["3 of 1,200 hypotheses (0.2%)"]),
        ({"shared_with_training": None}, []),
    ],
)
def test_warnings(scores: dict[str, Any], expected: list[str]) -> None:
    found = list(warnings_of(scores))
    assert len(found) == len(expected)
    assert all(map(str.startswith, found, expected))


def test_scores_contain_overlaps_with_training() -> None:
    scores: dict[str, Any] = {}
    state_overlap(scores, Comparison((OVERLAP,), ("clip", "speaker")))
    (text,) = warnings_of(scores)
    assert text == str(OVERLAP)
    assert all(part in text for part in ("5 of 9 clips", "(a, b)", "anna, ben"))
    assert scores["compared_with_training"] == ["clip", "speaker"]
    assert comparison_of(scores) == "compared with the training data by clip, speaker"
    state_overlap(scores, Comparison((), ("clip", "text")))
    assert comparison_of(scores) == "compared with the training data by clip, text; nothing is shared"
    assert list(warnings_of(scores)) == []
    state_overlap(scores, Comparison((replace(OVERLAP, excluded=True),), ("clip", "speaker"), "too long"))
    left_out, not_compared = warnings_of(scores)
    assert left_out == f"{OVERLAP}; they are not scored"
    assert not_compared.endswith("only by clip, speaker, not by sound: too long")
    state_overlap(scores, None)
    (unknown,) = warnings_of(scores)
    assert comparison_of(scores) is comparison_of({}) is None
    assert unknown.startswith("not compared with training data: ")


def test_warnings_fit_a_terminal() -> None:
    rows = [(("dev", "mine"), {"truncated_hypotheses": 3, "num_utterances": 8})]
    lines = list(warning_lines(rows))
    assert lines[0].startswith("warning: dev mine: 3 of 8 hypotheses")
    assert max(map(len, lines)) <= 80
