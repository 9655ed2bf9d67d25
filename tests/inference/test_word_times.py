"""When words are said, on posteriors that are made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tiny_audio.ctc import CtcVocabulary
from tiny_audio.inference.word_times import Spelling, align, shifted

VOCABULARY = CtcVocabulary(tuple(" abcdeé"))
SURE = 0.9


def posteriors(path: str) -> Tensor:
    """Log-probabilities in which each character of ``path`` is heard with 0.9 in a frame of its own; _ is the blank."""
    rest = (1 - SURE) / len(VOCABULARY)
    probs = torch.full((len(path), len(VOCABULARY)), rest)
    for frame, character in enumerate(path):
        probs[frame, 0 if character == "_" else VOCABULARY.characters.index(character) + 1] += SURE
    return probs.log()


def times(text: str, path: str) -> list[tuple[str, float, float]]:
    found = align(Spelling.of(text, VOCABULARY), posteriors(path), rate=10.0)
    return [(word.text, word.start_s, word.end_s) for word in found.words]


def test_words_last_from_their_first_to_their_last_character() -> None:
    assert times("ab cc d", "__aab_ __c_cc__ d_") == [
        ("ab", pytest.approx(0.2), pytest.approx(0.5)),
        ("cc", pytest.approx(0.9), pytest.approx(1.3)),
        ("d", pytest.approx(1.6), pytest.approx(1.7)),
    ]


def test_case_accents_and_marks_that_the_head_lacks() -> None:
    assert Spelling.of("Ab, ä é!", VOCABULARY).labels == (2, 3, 1, 2, 1, 7)
    assert [(text, start) for text, start, _ in times("Ab, ä!", "_ab_ _a_")] == [
        ("Ab,", pytest.approx(0.1)),
        ("ä!", pytest.approx(0.6)),
    ]


def test_words_that_cannot_be_spelled_share_the_gap() -> None:
    assert times("7 a 8 9 b 10", "__a____b__") == [
        ("7", 0.0, pytest.approx(0.2)),
        ("a", pytest.approx(0.2), pytest.approx(0.3)),
        ("8", pytest.approx(0.3), pytest.approx(0.5)),
        ("9", pytest.approx(0.5), pytest.approx(0.7)),
        ("b", pytest.approx(0.7), pytest.approx(0.8)),
        ("10", pytest.approx(0.8), pytest.approx(1.0)),
    ]


def test_too_few_frames_for_the_text() -> None:
    found = align(Spelling.of("abcd abcd", VOCABULARY), posteriors("abcd"), rate=10.0)
    assert [(word.start_s, word.end_s, word.confidence) for word in found.words] == [
        (0.0, pytest.approx(0.2), None),
        (pytest.approx(0.2), pytest.approx(0.4), None),
    ]
    assert found.confidence is None


def test_confidence_is_the_geometric_mean_over_characters() -> None:
    log_probs = posteriors("_ab_ c_")
    sure = SURE + (1 - SURE) / len(VOCABULARY)
    log_probs[2] = torch.full((len(VOCABULARY),), 1 / len(VOCABULARY)).log()  # "b" is a guess
    found = align(Spelling.of("ab c", VOCABULARY), log_probs, rate=10.0)
    assert found.words[0].confidence == pytest.approx(math.sqrt(sure / len(VOCABULARY)), rel=1e-4)
    assert found.words[1].confidence == pytest.approx(sure, rel=1e-4)
    assert found.confidence == pytest.approx((sure**3 / len(VOCABULARY)) ** 0.25, rel=1e-4)


def test_a_head_without_a_blank_between_words() -> None:
    vocabulary = CtcVocabulary(("a", "b"))
    assert Spelling.of("ab a", vocabulary).labels == (1, 2, 1)


def test_shifted() -> None:
    (word,) = align(Spelling.of("a", VOCABULARY), posteriors("_a_"), rate=10.0).words
    assert (shifted(word, 2.0).start_s, shifted(word, 2.0).end_s) == (pytest.approx(2.1), pytest.approx(2.2))
