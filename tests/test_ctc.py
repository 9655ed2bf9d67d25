"""The CTC head's vocabulary, decoding and likelihoods. Likelihoods equal an explicit sum over all alignments."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tiny_audio.ctc import BLANK, CtcConfig, CtcVocabulary, Prefixes, greedy, log_likelihood, min_frames


def collapse(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != BLANK]


def brute_force(logits: Tensor, labels: list[int]) -> float:
    """Return the log of the total probability of all paths ``[T]`` that collapse to ``labels``."""
    log_probs = logits.double().log_softmax(-1)
    frames, vocabulary = logits.shape
    scores = [
        sum(float(log_probs[frame, label]) for frame, label in enumerate(path))
        for path in itertools.product(range(vocabulary), repeat=frames)
        if collapse(path) == labels
    ]
    return float(torch.tensor(scores, dtype=torch.float64).logsumexp(0)) if scores else -math.inf


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- vocabulary


def test_a_vocabulary_has_the_sorted_characters_of_its_transcripts() -> None:
    vocabulary = CtcVocabulary.of(["hé", "eh h"])
    assert vocabulary.characters == (" ", "e", "h", "é")
    assert len(vocabulary) == 5
    assert CtcVocabulary.of(["eh h", "hé"]) == vocabulary


def test_without_transcripts_a_vocabulary_has_only_the_blank() -> None:
    assert len(CtcVocabulary.of([])) == 1
    assert CtcVocabulary.of([]).encode("") == []
    assert CtcVocabulary.of([]).encode("a") is None


@given(st.text(max_size=30))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_decoding_inverts_encoding(text: str) -> None:
    vocabulary = CtcVocabulary.of([text])
    labels = vocabulary.encode(text)
    assert labels is not None
    assert BLANK not in labels
    assert all(0 < label < len(vocabulary) for label in labels)
    assert vocabulary.decode(labels) == text


def test_an_unknown_character_cannot_be_encoded() -> None:
    assert CtcVocabulary.of(["abc"]).encode("abx") is None


# --- lengths


@pytest.mark.parametrize(("labels", "frames"), [([], 0), ([1], 1), ([1, 2], 2), ([1, 1], 3), ([1, 1, 2, 2, 2], 8)])
def test_the_minimum_number_of_frames(labels: list[int], frames: int) -> None:
    assert min_frames(labels) == frames


@pytest.mark.parametrize("labels", [[1], [1, 2], [1, 1], [2, 2, 2], [1, 2, 2]])
def test_an_alignment_needs_the_minimum_number_of_frames(labels: list[int]) -> None:
    for frames in range(1, 7):
        fits = any(collapse(path) == labels for path in itertools.product(range(3), repeat=frames))
        assert fits == (frames >= min_frames(labels))


# --- greedy


def test_greedy_merges_repeats_and_drops_blanks() -> None:
    best = torch.tensor([[1, 1, 0, 1, 2, 2, 0], [0, 0, 3, 3, 3, 1, 1]])
    logits = torch.nn.functional.one_hot(best, 4).float()
    assert greedy(logits, torch.tensor([7, 7])) == [[1, 1, 2], [3, 1]]
    assert greedy(logits, torch.tensor([2, 1])) == [[1], []]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 1000))
def test_greedy_collapses_the_best_path_of_each_clip(lengths: list[int], seed: int) -> None:
    logits = random_logits(len(lengths), max(lengths), 5, seed=seed)
    expected = [collapse(tuple(row[:length].argmax(-1).tolist())) for row, length in zip(logits, lengths, strict=True)]
    assert greedy(logits, torch.tensor(lengths)) == expected


# --- likelihood


@pytest.mark.parametrize(
    "labels", [[], [1], [2], [1, 2], [1, 1], [2, 2, 1], [1, 2, 1], [1, 1, 1], [2, 2, 2], [1, 2, 1, 2, 1]]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_likelihood_equals_the_sum_over_all_alignments(labels: list[int], seed: int) -> None:
    logits = random_logits(5, 3, seed=seed)
    expected = brute_force(logits, labels)
    found = float(log_likelihood(logits[None], torch.tensor([5]), [labels])[0])
    assert found == pytest.approx(expected, abs=1e-4)


def test_all_transcripts_together_have_probability_one() -> None:
    logits, frames = random_logits(4, 3), 4
    sequences = [list(labels) for size in range(frames + 1) for labels in itertools.product((1, 2), repeat=size)]
    repeated = logits.expand(len(sequences), -1, -1)
    scores = log_likelihood(repeated, torch.full((len(sequences),), frames), sequences)
    assert float(scores.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_labels_that_do_not_fit_have_no_likelihood() -> None:
    logits = random_logits(2, 3, 3)
    scores = log_likelihood(logits, torch.tensor([2, 3]), [[1, 1], [1, 1]])
    assert scores[0] == -math.inf
    assert scores[1].isfinite()


def test_likelihoods_do_not_depend_on_the_batch() -> None:
    lengths, labels = [6, 3, 5], [[1, 2, 2], [1], []]
    logits = random_logits(3, 6, 4)
    for row, length in enumerate(lengths):
        logits[row, length:] = 1e3
    together = log_likelihood(logits, torch.tensor(lengths), labels)
    for row, length in enumerate(lengths):
        alone = log_likelihood(logits[row : row + 1, :length], torch.tensor([length]), [labels[row]])
        torch.testing.assert_close(alone[0], together[row])


def test_half_precision_logits_are_scored_in_single_precision() -> None:
    logits = random_logits(1, 5, 3).bfloat16()
    assert log_likelihood(logits, torch.tensor([5]), [[1]]).dtype == torch.float32


def test_gradients_are_finite() -> None:
    logits = random_logits(1, 5, 3).requires_grad_(True)
    log_likelihood(logits, torch.tensor([5]), [[1, 2]]).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("weight", [0, -1.0, math.inf])
def test_a_weight_of_zero_is_rejected(weight: float) -> None:
    with pytest.raises(ValidationError, match=r"greater than 0|finite number"):
        CtcConfig(weight=weight)


# --- prefixes


def test_prefixes_equal_the_sums_over_all_label_sequences() -> None:
    frames, classes = 5, 4
    log_probs = random_logits(frames, classes).double().log_softmax(-1)
    sequences = [labels for size in range(frames + 1) for labels in itertools.product((1, 2, 3), repeat=size)]
    counts = torch.full((len(sequences),), frames)
    whole = log_likelihood(log_probs.expand(len(sequences), -1, -1), counts, [list(labels) for labels in sequences])
    likelihood = dict(zip(sequences, whole, strict=True))
    reached = {(): Prefixes.empty(log_probs)}
    for labels in sequences[1:]:
        reached[labels] = reached[labels[:-1]].extended(log_probs, torch.tensor(labels[-1:]))
    for labels, prefix in reached.items():
        starting = torch.stack([likelihood[one] for one in sequences if one[: len(labels)] == labels])
        assert prefix.starting[0].exp() == pytest.approx(float(starting.exp().sum()), abs=1e-12)
        assert prefix.complete[0].exp() == pytest.approx(float(likelihood[labels].exp()), abs=1e-12)


def test_prefixes_are_accurate_for_long_clips_and_confident_heads() -> None:
    logits, labels = random_logits(1500, 30, seed=1).double() * 20, [*range(1, 30)] * 4 + [7, 7]
    log_probs = logits.log_softmax(-1)
    prefix = Prefixes.empty(log_probs)
    for label in labels:
        prefix = prefix.extended(log_probs, torch.tensor([label]))
    expected = log_likelihood(logits[None], torch.tensor([1500]), [labels])
    assert float(prefix.complete[0]) == pytest.approx(float(expected[0]), rel=1e-9)


def test_several_prefixes_are_extended_as_one_at_a_time() -> None:
    log_probs = random_logits(6, 4, seed=2).double().log_softmax(-1)
    both = Prefixes.empty(log_probs)[torch.tensor([0, 0])].extended(log_probs, torch.tensor([1, 2]))
    longer = both.with_first(both[:1].extended(log_probs, torch.tensor([1])))
    for row, labels in enumerate(([1, 1], [2])):
        prefix = Prefixes.empty(log_probs)
        for label in labels:
            prefix = prefix.extended(log_probs, torch.tensor([label]))
        for field in ("by_label", "by_blank", "last", "starting"):
            assert torch.equal(getattr(longer, field)[row], getattr(prefix, field)[0])
