"""Joint decoding: choose among candidate texts by the scores of the decoder and of the CTC head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tiny_audio import ctc
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.frames import Frames


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
