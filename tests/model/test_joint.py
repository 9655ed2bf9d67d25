"""Tests of joint decoding: the CTC head's scores in the beam search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.support.models import assemble, batch
from tiny_audio import ctc
from tiny_audio.config import identity_of
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.frames import Frames
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.joint import CtcSearch

PIECES = ["c", " a", "b", "ab", " b", "c", "!", "  "]
END = 0
VOCABULARY = CtcVocabulary((" ", "a", "b", "c"))


class Tokenizer:
    """A tokenizer whose tokens are ``PIECES``. ``END`` is its only special token."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False, **_: bool) -> str:
        return "".join(PIECES[index] for index in ids if not (skip_special_tokens and index == END))


def frames_of(*lengths: int) -> Frames:
    logits = torch.randn(len(lengths), max(lengths), 5, generator=torch.Generator().manual_seed(1)) * 3
    return Frames(torch.zeros(len(lengths), max(lengths), 1), torch.tensor(lengths), 50.0, logits)


def test_the_scores_of_a_texts_tokens_sum_to_its_likelihood() -> None:
    weight, frames = 0.3, frames_of(9, 12)
    assert frames.ctc_logits is not None
    search = CtcSearch(frames, VOCABULARY, Tokenizer(), END, weight)
    texts = [[1, 2, 4, END], [2, 5, 3, END]]  # "ab b" and "bcab", each in both beams of its clip
    decoder = torch.randn(4, len(PIECES)).log_softmax(-1)
    total = torch.zeros(4)
    for step in range(4):
        ids = torch.tensor([text[:step] for text in texts for _ in range(2)], dtype=torch.long).reshape(4, step)
        scores = search(ids, decoder)
        rows, tokens = torch.arange(4), torch.tensor([text[step] for text in texts for _ in range(2)])
        total += (scores - (1 - weight) * decoder)[rows, tokens] / weight
    labels = [VOCABULARY.encode(text) or [] for text in ("ab b", "bcab")]
    expected = ctc.log_likelihood(frames.ctc_logits, frames.lengths, labels)
    torch.testing.assert_close(total, expected.repeat_interleave(2), rtol=1e-4, atol=1e-4)


def test_tokens_that_the_head_cannot_spell_are_excluded() -> None:
    search = CtcSearch(frames_of(9), VOCABULARY, Tokenizer(), END, 0.3)
    (scores,) = search(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, len(PIECES)))
    excluded = {PIECES[index] for index, score in enumerate(scores.tolist()) if score == -1e9}
    assert excluded == {"!", "  "}, "text starts without spaces, so a token of only spaces adds nothing"
    (scores,) = search(torch.tensor([[6]]), torch.zeros(1, len(PIECES)))
    assert set(scores.tolist()) == {-1e9}, "a beam with an excluded token is not continued"


def test_labels_that_do_not_fit_into_the_clip_are_excluded() -> None:
    search = CtcSearch(frames_of(1), VOCABULARY, Tokenizer(), END, 0.3)
    (scores,) = search(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, len(PIECES)))
    excluded = {PIECES[index] for index, score in enumerate(scores.tolist()) if score == -1e9}
    assert excluded == {"ab", "!", "  "}, "the only frame is one label or a blank"
    (scores,) = search(torch.tensor([[3]]), torch.zeros(1, len(PIECES)))
    assert set(scores.tolist()) == {-1e9}


def test_the_search_is_part_of_an_identity_only_if_it_is_on() -> None:
    """Without the search, the identity equals that of earlier versions, so the scores of those versions stay usable."""
    settings: dict[str, Any] = {"num_beams": 3, "ctc_weight": 0.3}
    assert "ctc_search" not in identity_of(GenerationConfig(**settings))
    assert identity_of(GenerationConfig(**settings, ctc_search=True))["ctc_search"]


@pytest.mark.parametrize("weight", [0.3, 0.9])
def test_the_search_finds_texts_that_the_ctc_head_prefers(weight: float) -> None:
    """Compare the search with a choice among the decoder's own beams. The CTC head's own text is not a candidate."""
    by_ctc = []
    for search in (False, True):
        generation = GenerationConfig(max_new_tokens=8, num_beams=3, ctc_weight=weight, ctc_search=search)
        model, tokenizer = assemble(generation=generation)
        assert model.ctc_head is not None
        assert model.ctc_vocabulary is not None
        with torch.no_grad():
            model.ctc_head.weight *= 30
            frames = model.encode(*batch(16_000, 23_000))
        model.ctc_texts = lambda frames: [None] * len(frames.lengths)  # type: ignore[method-assign]
        texts = [one.text for one in model.transcribe_frames(frames, tokenizer)]
        assert frames.ctc_logits is not None
        labels = [model.ctc_vocabulary.encode(text) or [] for text in texts]
        by_ctc.append(ctc.log_likelihood(frames.ctc_logits, frames.lengths, labels))
    assert (by_ctc[1] > by_ctc[0]).all()
