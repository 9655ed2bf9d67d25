"""Word times, computed from artificial probabilities of the CTC head."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.models import assemble
from tiny_audio.config import UserError
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.inference.pipeline import TinyAudioPipeline
from tiny_audio.inference.spoken_forms import spoken
from tiny_audio.inference.word_times import Spelling, align, shifted

VOCABULARY = CtcVocabulary(tuple(" abcdeé"))
SURE = 0.9


def posteriors(path: str) -> Tensor:
    """Return log-probabilities ``[T, labels]``. In frame ``i``, the character ``path[i]`` has a probability of
    slightly more than ``SURE``. ``_`` is the blank."""
    rest = (1 - SURE) / len(VOCABULARY)
    probs = torch.full((len(path), len(VOCABULARY)), rest)
    for frame, character in enumerate(path):
        probs[frame, 0 if character == "_" else VOCABULARY.characters.index(character) + 1] += SURE
    return probs.log()


def times(text: str, path: str) -> list[tuple[str, float, float]]:
    found = align(Spelling.of(text, VOCABULARY), posteriors(path), rate=10.0, duration_s=len(path) / 10)
    return [(word.text, word.start_s, word.end_s) for word in found.words]


def test_words_last_from_their_first_to_their_last_character() -> None:
    assert times("ab cc d", "__aab_ __c_cc__ d_") == [
        ("ab", pytest.approx(0.2), pytest.approx(0.5)),
        ("cc", pytest.approx(0.9), pytest.approx(1.3)),
        ("d", pytest.approx(1.6), pytest.approx(1.7)),
    ]


def test_unknown_cases_accents_and_marks_are_replaced_or_left_out() -> None:
    assert Spelling.of("Ab, ä é!", VOCABULARY).labels == (2, 3, 1, 2, 1, 7)
    assert [(text, start) for text, start, _ in times("Ab, ä!", "_ab_ _a_")] == [
        ("Ab,", pytest.approx(0.1)),
        ("ä!", pytest.approx(0.6)),
    ]


def test_words_that_cannot_be_spelled_divide_the_gap() -> None:
    assert times("→ a ☎ ♥ b …", "__a____b__") == [
        ("→", 0.0, pytest.approx(0.2)),
        ("a", pytest.approx(0.2), pytest.approx(0.3)),
        ("☎", pytest.approx(0.3), pytest.approx(0.5)),
        ("♥", pytest.approx(0.5), pytest.approx(0.7)),
        ("b", pytest.approx(0.7), pytest.approx(0.8)),
        ("…", pytest.approx(0.8), pytest.approx(1.0)),
    ]


def test_words_are_spread_evenly_if_there_are_too_few_frames() -> None:
    found = align(Spelling.of("abcd abcd", VOCABULARY), posteriors("abcd"), rate=10.0, duration_s=0.4)
    assert [(word.start_s, word.end_s, word.confidence) for word in found.words] == [
        (0.0, pytest.approx(0.2), None),
        (pytest.approx(0.2), pytest.approx(0.4), None),
    ]
    assert found.confidence is None


def test_confidence_is_the_geometric_mean_over_characters() -> None:
    log_probs = posteriors("_ab_ c_")
    sure = SURE + (1 - SURE) / len(VOCABULARY)
    log_probs[2] = torch.full((len(VOCABULARY),), 1 / len(VOCABULARY)).log()  # "b" has a low probability
    found = align(Spelling.of("ab c", VOCABULARY), log_probs, rate=10.0, duration_s=0.7)
    assert found.words[0].confidence == pytest.approx(math.sqrt(sure / len(VOCABULARY)), rel=1e-4)
    assert found.words[1].confidence == pytest.approx(sure, rel=1e-4)
    assert found.confidence == pytest.approx((sure**3 / len(VOCABULARY)) ** 0.25, rel=1e-4)


def test_a_head_may_lack_the_space() -> None:
    vocabulary = CtcVocabulary(("a", "b"))
    assert Spelling.of("ab a", vocabulary).labels == (1, 2, 1)


def test_times_can_be_shifted() -> None:
    (word,) = align(Spelling.of("a", VOCABULARY), posteriors("_a_"), rate=10.0, duration_s=0.3).words
    assert (shifted(word, 2.0).start_s, shifted(word, 2.0).end_s) == (pytest.approx(2.1), pytest.approx(2.2))


ENGLISH = CtcVocabulary(tuple(" abcdefghijklmnopqrstuvwxyz"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", "forty two"),
        ("$5", "five dollars"),
        ("$1,250.75", "one thousand two hundred fifty point seven five dollars"),
        ("C++", "C plus plus"),
        ("100%", "one hundred percent"),
        ("007", "zero zero seven"),
        ("1905", "nineteen oh five"),
        ("1990s", "nineteen ninety s"),
        ("2004", "two thousand four"),
        ("1,000,000", "one million"),
        ("5551234567", "five five five one two three four five six seven"),
        ("R&D", "R and D"),
        ("don't", "don't"),
        ("٣ ½ é", "٣ ½ é"),
    ],
)
def test_numbers_and_symbols_are_written_as_words(text: str, expected: str) -> None:
    assert spoken(text) == expected


@pytest.mark.parametrize(
    ("word", "labels"),
    [
        ("42", "forty two"),
        ("C++", "c plus plus"),
        ("don't", "dont"),
        ("CAFÉ", "cafe"),
        ("é", "e"),
        ("x=3", "x equals three"),
    ],
)
def test_a_word_is_spelled_as_it_is_read_aloud(word: str, labels: str) -> None:
    spelling = Spelling.of(word, ENGLISH)
    assert ENGLISH.decode(spelling.labels) == labels
    assert set(spelling.owners) == {0}


def test_a_head_with_digits_uses_them() -> None:
    vocabulary = CtcVocabulary(tuple(" 0123456789$abcdefghijklmnopqrstuvwxyz"))
    assert vocabulary.decode(Spelling.of("pay $42", vocabulary).labels) == "pay $42"


def test_words_without_a_gap_take_time_from_their_neighbors() -> None:
    found = times("a → b", "ab")
    assert [word for word, _, _ in found] == ["a", "→", "b"]
    assert all(end > start for _, start, end in found)


WORDS = st.sampled_from(
    ["42", "$5", "C++", "don't", "café", "é", "→", "…", "a", "ab", "bad", "deed", "1999", "日本", "a-b", "&"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=12), st.integers(0, 90), st.floats(-0.2, 0.2), st.integers(0, 9))
def test_times_are_in_order_within_the_clip_and_never_empty(
    words: list[str], num_frames: int, longer_s: float, seed: int
) -> None:
    vocabulary = ENGLISH if seed % 2 else VOCABULARY
    logits = torch.randn(num_frames, len(vocabulary), generator=torch.Generator().manual_seed(seed)) * 4
    duration_s = max(0.01, num_frames / 50 + longer_s)
    found = align(Spelling.of(" ".join(words), vocabulary), logits.log_softmax(-1), 50.0, duration_s).words
    assert [word.text for word in found] == words
    now = 0.0
    for word in found:
        assert now <= word.start_s < word.end_s <= duration_s + 1e-9
        now = word.end_s


def test_word_timestamps_need_a_ctc_head() -> None:
    model, tokenizer = assemble(ctc=False)
    pipe = TinyAudioPipeline(model, tokenizer, device="cpu")
    with pytest.raises(UserError, match=r"return_timestamps='word' .*CTC head"):
        pipe(np.zeros(16_000, dtype=np.float32), return_timestamps="word")
