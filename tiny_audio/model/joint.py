"""Joint decoding: find and choose texts by the scores of both the decoder and the CTC head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tiny_audio import ctc
from tiny_audio.ctc import CtcVocabulary, Prefixes
from tiny_audio.frames import Frames

_CANDIDATES = 16
"""Number of tokens that the CTC head scores for each beam in each step: the decoder's most likely tokens."""
_EXCLUDED = -1e9
"""Score of excluded tokens. It is finite, because the sum of infinite scores may be undefined."""


class CtcSearch:
    """A logits processor for transformers' beam search: add the CTC head's scores to the decoder's scores.

    A token gets the score (1 - w)·log p_decoder + w·log p_ctc (Watanabe et al. 2017). To define p_ctc, let P(text) be
    the probability that the CTC head's labels start with a text. Then p_ctc is P(text with the token) / P(text without
    the token). For the end token, the numerator is the probability that the labels are exactly the text. Tokens with
    characters that are not labels are excluded.

    Args:
        frames: frames of B clips, with CTC logits.
        vocabulary: the labels.
        tokenizer: the decoder's tokenizer.
        end_id: the token that ends a transcript.
        ctc_weight: the weight w.
    """

    def __init__(
        self, frames: Frames, vocabulary: CtcVocabulary, tokenizer: Any, end_id: int, ctc_weight: float
    ) -> None:
        assert frames.ctc_logits is not None
        log_probs = frames.ctc_logits.cpu().double().log_softmax(-1)  # Apple GPUs have no double precision
        self._clips = [
            _Clip(clip[: int(length)], vocabulary, tokenizer)
            for clip, length in zip(log_probs, frames.lengths, strict=True)
        ]
        self._end_id, self._weight = end_id, ctc_weight

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the joint scores ``[B * beams, V]``.

        Args:
            ids: ``[B * beams, N]``, the tokens so far.
            scores: ``[B * beams, V]``, the decoder's log-probabilities of the next token.
        """
        likely = scores.topk(min(_CANDIDATES, scores.shape[1])).indices.tolist()
        beams, by_ctc = len(ids) // len(self._clips), torch.full(scores.shape, -torch.inf, dtype=torch.float64)
        for clip, search in enumerate(self._clips):
            own = range(clip * beams, (clip + 1) * beams)
            search.score([(row, tuple(ids[row].tolist()), likely[row]) for row in own], self._end_id, by_ctc)
        joint = (1 - self._weight) * scores + self._weight * by_ctc.to(scores.dtype).to(scores.device)
        return joint.clamp(min=_EXCLUDED)


class _Clip:
    """The texts of one clip that the search has reached in the last step, and their probabilities."""

    def __init__(self, log_probs: Tensor, vocabulary: CtcVocabulary, tokenizer: Any) -> None:
        self._log_probs, self._vocabulary, self._tokenizer = log_probs, vocabulary, tokenizer
        self._prefixes = Prefixes.empty(log_probs)
        self._rows: dict[tuple[int, ...], int] = {(): 0}

    def score(self, beams: Sequence[tuple[int, tuple[int, ...], list[int]]], end_id: int, scores: Tensor) -> None:
        """Write the log-probabilities of tokens to ``scores``.

        Args:
            beams: for each beam, its row in ``scores``, its tokens so far, and the tokens that may come next.
            end_id: the token that ends a transcript.
            scores: ``[rows, V]``, changed in place. Scores of all other tokens stay as they are.
        """
        found: list[tuple[list[int], int, int, tuple[int, ...]]] = []  # new labels, row in scores, parent, tokens
        for row, ids, tokens in beams:
            parent = self._rows.get(ids)
            if parent is None:  # the beam has ended, or its text is impossible for the CTC head
                continue
            scores[row, end_id] = self._prefixes.complete[parent] - self._prefixes.starting[parent]
            text = self._text(ids)
            for token in tokens:
                new = self._text((*ids, token))
                labels = self._vocabulary.encode(new[len(text) :]) if new.startswith(text) else None
                if labels:  # special tokens, such as the end token, add no text
                    found.append((labels, row, parent, (*ids, token)))
        found.sort(key=lambda one: -len(one[0]))
        parents = self._prefixes[torch.tensor([parent for _, _, parent, _ in found], dtype=torch.long)]
        longer = parents
        for position in range(len(found[0][0]) if found else 0):
            added = torch.tensor([labels[position] for labels, *_ in found if len(labels) > position])
            longer = longer.with_first(longer[: len(added)].extended(self._log_probs, added))
        gains = longer.starting - parents.starting
        for gain, (_, row, _, ids) in zip(gains, found, strict=True):
            scores[row, ids[-1]] = gain
        possible = longer.starting.isfinite().tolist()  # False if the clip has too few frames for the labels
        self._prefixes = longer
        self._rows = {ids: index for index, (*_, ids) in enumerate(found) if possible[index]}

    def _text(self, ids: tuple[int, ...]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.lstrip()


def best_text(
    texts: Sequence[str], by_decoder: Tensor, frames: Frames, vocabulary: CtcVocabulary, ctc_weight: float
) -> str:
    """Return the text with the highest joint score.

    Args:
        texts: K candidates for one clip.
        by_decoder: ``[K]``, their log-likelihoods under the decoder.
        frames: the clip's frames, with CTC logits.
        ctc_weight: see ``GenerationConfig``.
    """
    assert frames.ctc_logits is not None
    count, labels = len(texts), [vocabulary.encode(text) for text in texts]
    by_ctc = ctc.log_likelihood(
        frames.ctc_logits.expand(count, -1, -1), frames.lengths.expand(count), [row or [] for row in labels]
    )
    for index, row in enumerate(labels):
        if row is None:  # the text has a character that is not a label of the head
            by_ctc[index] = -torch.inf
    scores = (1 - ctc_weight) * by_decoder + ctc_weight * by_ctc
    return texts[int(scores.argmax())]
