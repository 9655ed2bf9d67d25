"""Drafted decoding: a cheap guess of the text, which the decoder verifies many tokens at a time.

As in speculative decoding (Stern et al. 2018, Leviathan et al. 2023). The draft is the CTC head's greedy text, which
costs nothing more: one forward pass of the decoder over prompt, audio and draft says at every place what it would have
said there. All up to the first disagreement is what greedy decoding gives, and so is the token that it puts there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tiny_audio.decoders import Decoder, DecoderCache
from tiny_audio.frames import length_mask


class Draft(Protocol):
    """Guesses what comes after the tokens that are certain."""

    def after(self, ids: Sequence[int]) -> list[int]:
        """Tokens that may follow ``ids``, as few or as many as it likes; a wrong guess costs time and nothing else."""


class TextDraft:
    """From a text that is nearly right, such as a CTC head's.

    It goes on from the place of the text where the certain tokens end, by Levenshtein's distance, so that a word too
    many, too few or another costs no more than itself.

    Args:
        text: the guess, whole.
        tokenizer: the decoder's.
        end_id: the token that ends a transcript.
        alphabet: what words are respelled with, see :func:`respelled`.
    """

    def __init__(self, text: str, tokenizer: Any, end_id: int, alphabet: Sequence[str] = ()) -> None:
        self._text = " ".join(respelled(text.split(), tokenizer, alphabet))
        self._tokenizer, self._end_id = tokenizer, end_id
        self._codes = _codes(self._text)
        self._said = ""
        # [len(text) + 1]: edits between what is said and each beginning of the text
        self._distances = np.arange(len(self._text) + 1)

    def after(self, ids: Sequence[int]) -> list[int]:
        """The rest of the text, and the end token."""
        if not ids:
            return [*self._encode(self._text), self._end_id]
        said = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        self._read(said)
        rest = self._rest()
        before, whole = self._encode(said), self._encode(said + rest)
        joined = whole[: len(before)] == before
        return [*(whole[len(before) :] if joined else self._encode(rest)), self._end_id]

    def _rest(self) -> str:
        """What of the text is not said yet."""
        best = np.flatnonzero(self._distances == self._distances.min()).tolist()
        # Tokens end with words more often than within, and a word in another's place took all of it.
        ends = [place for place in best if self._text[place : place + 1] in (" ", "")]
        return self._text[max(ends or best) :]

    def _read(self, said: str) -> None:
        """Compare what is said by now with each beginning of the text."""
        if not said.startswith(self._said):  # bytes of one character were apart
            self._said, self._distances = "", np.arange(len(self._text) + 1)
        places = np.arange(len(self._distances))
        for code in _codes(said[len(self._said) :]):
            swapped = self._distances[:-1] + (self._codes != code)
            row = np.concatenate([self._distances[:1] + 1, np.minimum(self._distances[1:] + 1, swapped)])
            # Characters of the text that are left out: row[j] = min over k <= j of row[k] + (j - k)
            self._distances = np.minimum.accumulate(row - places) + places
        self._said = said

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _codes(text: str) -> np.ndarray[Any, Any]:
    """Characters as numbers, in lower case: a head often knows no other."""
    return np.array([ord(character.lower()[0]) for character in text], dtype=np.int64)


_WORD_STARTS = ("▁", "Ġ")
"""How tokens begin that begin a word, in SentencePiece's way and in that of byte-level BPE."""
_LARGEST_ALPHABET = 100


def respelled(words: Sequence[str], tokenizer: Any, alphabet: Sequence[str]) -> list[str]:
    """Words as the decoder would spell them: a head that hears sounds often misses by a letter.

    A word that is not a token becomes one that is where a single letter more, less or other is enough (as Norvig's
    spelling corrector does), or two that were joined; of several, the one that the tokenizer learned first, which is
    the most frequent. Scripts without letters, and tokenizers of single characters, are left as they are.
    """
    known = _words(tokenizer)
    if not known or len(alphabet) > _LARGEST_ALPHABET:
        return list(words)

    letters = [letter for letter in alphabet if letter != " "]
    return [_respelled(word, known, letters) if len(word) > 1 and word not in known else word for word in words]


def _respelled(word: str, known: Mapping[str, int], letters: Sequence[str]) -> str:
    cuts = [(word[:place], word[place:]) for place in range(len(word) + 1)]
    edited = {before + letter + after for before, after in cuts for letter in letters}
    edited |= {before + letter + after[1:] for before, after in cuts if after for letter in letters}
    edited |= {before + after[1:] for before, after in cuts}
    if found := edited & known.keys():
        return min(found, key=lambda one: known[one])
    pairs = [
        (before, rest) for before, after in cuts for rest in (after, after[1:]) if before in known and rest in known
    ]
    return " ".join(min(pairs, key=lambda pair: max(known[one] for one in pair))) if pairs else word


@lru_cache(maxsize=2)
def _words(tokenizer: Any) -> dict[str, int]:
    """Tokens that begin with a word's start and go on for two letters or more, without it, and their ids."""
    start = tokenizer.convert_ids_to_tokens(tokenizer.encode("a a", add_special_tokens=False))[-1][:1]
    if start not in _WORD_STARTS:
        return {}
    return {token[1:]: number for token, number in tokenizer.get_vocab().items() if token[:1] == start and token[2:]}


@dataclass(frozen=True)
class Drafted:
    """What greedy decoding says of one clip."""

    ids: list[int]
    """With the end token, where one came."""
    num_passes: int
    """Forward passes of the decoder that the clip took part in."""


def decode_drafted(
    decoder: Decoder,
    cache: DecoderCache,
    embeddings: Tensor,
    mask: Tensor,
    drafts: Sequence[Draft],
    *,
    max_new_tokens: int,
    end_id: int,
    tell: Callable[[int, list[int]], None] | None = None,
) -> list[Drafted]:
    """Greedy decoding of B rows that verifies drafts.

    Each row goes on from its own first disagreement, with a new draft of what is left; rows that have ended leave the
    batch.

    Args:
        decoder: gives embeddings of tokens.
        cache: an empty one of ``decoder``'s.
        embeddings: ``[B, L, H]`` prompts with their audio, left-padded.
        mask: ``[B, L]`` bool, True on real positions.
        drafts: B of them.
        max_new_tokens: where a row without an end token is cut.
        end_id: the token that ends a row.
        tell: called after each pass, with the number of a row and its certain ids up to now.
    """
    device = embeddings.device
    said: list[list[int]] = [[] for _ in drafts]
    passes = [0] * len(drafts)
    rows = list(range(len(drafts)))
    lengths = mask.sum(1).tolist()  # of what the cache holds of each row, once the pass is done
    while rows:
        guesses = [_until(drafts[row].after(said[row]), end_id)[: max_new_tokens - len(said[row]) - 1] for row in rows]
        # The last certain token has not been read yet, but for the first time, when the prompt comes before the draft.
        known = [said[row][-1:] for row in rows]
        ids = [torch.tensor([*last, *guess], dtype=torch.long) for last, guess in zip(known, guesses, strict=True)]
        read = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)
        sizes = torch.tensor([len(row) for row in ids], device=device)
        new, new_mask = decoder.embed(read).to(embeddings.dtype), length_mask(sizes, read.shape[1])
        if not passes[rows[0]]:
            new, new_mask = torch.cat([embeddings, new], dim=1), torch.cat([mask, new_mask], dim=1)
        num_kept = 1 + max(map(len, guesses))
        answers = cache.extend(new, new_mask, num_kept).argmax(-1).tolist()
        going, kept = [], []
        for place, (row, guess, answer) in enumerate(zip(rows, guesses, answers, strict=True)):
            agreed = next((at for at, token in enumerate(guess) if token != answer[at]), len(guess))
            certain = _until([*guess[:agreed], answer[agreed]], end_id)
            lengths[row] += len(known[place]) + agreed
            said[row] += certain
            passes[row] += 1
            if tell is not None:
                tell(row, said[row])
            if certain[-1] != end_id and len(said[row]) < max_new_tokens:
                going.append(place)
                kept.append(lengths[row])
        if going:
            cache.keep(torch.tensor(going, device=device), torch.tensor(kept, device=device))
        rows = [rows[place] for place in going]
    return [Drafted(ids, number) for ids, number in zip(said, passes, strict=True)]


def _until(ids: list[int], end_id: int) -> list[int]:
    """Up to the first end token, that one included."""
    return ids[: ids.index(end_id) + 1] if end_id in ids else ids
