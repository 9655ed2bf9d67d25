"""Assisted (speculative) greedy decoding: the decoder verifies a draft of the text, many tokens in one pass.

See Stern et al. 2018 and Leviathan et al. 2023. The draft is the CTC head's greedy text. One forward pass of the
decoder over prompt, audio and draft predicts the next token at every position. The draft is accepted up to the first
token that differs from the prediction. The predicted token replaces this token, as in plain greedy decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tiny_audio.config import UserError
from tiny_audio.decoders import Decoder, DecoderCache
from tiny_audio.frames import length_mask
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.streamer import OnIds


def uses_draft(settings: GenerationConfig, decoder: Decoder, *, has_ctc_head: bool) -> bool:
    """Whether the CTC head's text is used as a draft (see ``GenerationConfig.draft``).

    Raises:
        UserError: ``draft: ctc`` is set, but there is no CTC head, or the decoder's cache cannot be rewound.
    """
    can_rewind = decoder.cache() is not None
    if settings.draft == "ctc" and not has_ctc_head:
        raise UserError("generation.draft: ctc needs a CTC head, and this model has none; leave draft out")
    if settings.draft == "ctc" and not can_rewind:
        raise UserError(
            "generation.draft: ctc needs a decoder with a cache that can be rewound, and the cache of this model's "
            "decoder cannot be rewound; leave draft out"
        )
    if settings.draft is not None:
        return settings.draft == "ctc"
    in_half = any(
        tensor.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(tensor.device.type)
        for tensor in decoder.parameters()
    )
    return has_ctc_head and settings.num_beams == 1 and can_rewind and not in_half


class Draft(Protocol):
    """Proposes the tokens that follow the verified tokens."""

    def after(self, ids: Sequence[int]) -> list[int]:
        """Return any number of tokens that are likely to follow ``ids``.

        A wrong draft makes decoding slower, but does not change the result, apart from rounding errors.
        """


class TextDraft:
    """A draft from a text that is nearly correct, such as the text of a CTC head.

    The text's prefix with the lowest Levenshtein distance to the verified text is removed. The rest of the text is the
    draft. A wrong word therefore rarely affects the draft of the following words.

    Args:
        text: the whole text.
        tokenizer: the decoder's tokenizer.
        end_id: the token that ends a transcript.
    """

    def __init__(self, text: str, tokenizer: Any, end_id: int) -> None:
        self._text = " ".join(text.split())
        self._tokenizer, self._end_id = tokenizer, end_id
        self._codes = _codes(self._text)
        self._verified = ""
        # [len(text) + 1]: Levenshtein distance between the verified text and each prefix of the whole text
        self._distances = np.arange(len(self._text) + 1)

    def after(self, ids: Sequence[int]) -> list[int]:
        """Return the tokens of the rest of the text, and the end token."""
        if not ids:
            return [*self._encode(self._text), self._end_id]
        verified = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        self._update_distances(verified)
        rest = self._rest()
        before, whole = self._encode(verified), self._encode(verified + rest)
        joined = whole[: len(before)] == before
        return [*(whole[len(before) :] if joined else self._encode(rest)), self._end_id]

    def _rest(self) -> str:
        """Return the part of the text that follows the verified text."""
        best = np.flatnonzero(self._distances == self._distances.min()).tolist()
        # If several prefixes are equally good, prefer those that end with a word, like most verified texts.
        word_ends = [position for position in best if self._text[position : position + 1] in (" ", "")]
        return self._text[max(word_ends or best) :]

    def _update_distances(self, verified: str) -> None:
        if not verified.startswith(self._verified):  # earlier ids ended inside a multi-byte character
            self._verified, self._distances = "", np.arange(len(self._text) + 1)
        positions = np.arange(len(self._distances))
        for code in _codes(verified[len(self._verified) :]):
            substituted = self._distances[:-1] + (self._codes != code)
            row = np.concatenate([self._distances[:1] + 1, np.minimum(self._distances[1:] + 1, substituted)])
            # Characters of the text can also be skipped: row[j] = min over k <= j of row[k] + (j - k)
            self._distances = np.minimum.accumulate(row - positions) + positions
        self._verified = verified

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _codes(text: str) -> np.ndarray[Any, Any]:
    """Return the code points of the text in lower case, because many CTC heads have no capitals."""
    return np.array([ord(character.lower()[0]) for character in text], dtype=np.int64)


@dataclass(frozen=True)
class AssistedDecode:
    """The result of greedy decoding for one clip."""

    ids: list[int]
    """Token ids. If the text was not truncated, the last id is the end token."""
    num_passes: int
    """Number of forward passes of the decoder that included the clip."""


def decode_assisted(
    decoder: Decoder,
    cache: DecoderCache,
    embeddings: Tensor,
    mask: Tensor,
    drafts: Sequence[Draft],
    *,
    max_new_tokens: int,
    end_id: int,
    on_ids: OnIds | None = None,
) -> list[AssistedDecode]:
    """Decode B rows greedily, and verify drafts.

    After each pass, each row continues with a new draft after its own last verified token.

    Args:
        decoder: used only to embed tokens, because ``cache`` runs the layers.
        cache: an empty cache of ``decoder``.
        embeddings: ``[B, L, H]`` prompts with their audio, left-padded.
        mask: ``[B, L]`` bool, True at positions that are not padding.
        drafts: one draft for each row.
        max_new_tokens: number of tokens after which a row without an end token is truncated.
        end_id: the token that ends a row.
        on_ids: called after each pass, once for each row in the pass, with the row's index and all its verified ids.
    """
    device = embeddings.device
    verified: list[list[int]] = [[] for _ in drafts]
    passes = [0] * len(drafts)
    rows = list(range(len(drafts)))
    lengths = mask.sum(1).tolist()  # for each row, the number of positions to keep in the cache
    while rows:
        proposed = [
            _until(drafts[row].after(verified[row]), end_id)[: max_new_tokens - len(verified[row]) - 1] for row in rows
        ]
        # The last verified token is not in the cache yet, so the pass reads it before the draft. The first pass reads
        # the prompt before the draft.
        last = [verified[row][-1:] for row in rows]
        ids = [torch.tensor([*known, *draft], dtype=torch.long) for known, draft in zip(last, proposed, strict=True)]
        read = pad_sequence(ids, batch_first=True).to(device)
        sizes = torch.tensor([len(row) for row in ids], device=device)
        new, new_mask = decoder.embed(read).to(embeddings.dtype), length_mask(sizes, read.shape[1])
        if not passes[rows[0]]:
            new, new_mask = torch.cat([embeddings, new], dim=1), torch.cat([mask, new_mask], dim=1)
        num_kept = 1 + max(map(len, proposed))
        predicted = cache.extend(new, new_mask, num_kept).argmax(-1).tolist()
        going, kept = [], []
        for index, (row, draft, answer) in enumerate(zip(rows, proposed, predicted, strict=True)):
            agreed = next((at for at, token in enumerate(draft) if token != answer[at]), len(draft))
            accepted = _until([*draft[:agreed], answer[agreed]], end_id)
            lengths[row] += len(last[index]) + agreed
            verified[row] += accepted
            passes[row] += 1
            if on_ids is not None:
                on_ids(row, verified[row])
            if accepted[-1] != end_id and len(verified[row]) < max_new_tokens:
                going.append(index)
                kept.append(lengths[row])
        if going:
            cache.keep(torch.tensor(going, device=device), torch.tensor(kept, device=device))
        rows = [rows[index] for index in going]
    return [AssistedDecode(ids, count) for ids, count in zip(verified, passes, strict=True)]


def _until(ids: list[int], end_id: int) -> list[int]:
    """Return the ids up to and including the first end token."""
    return ids[: ids.index(end_id) + 1] if end_id in ids else ids
