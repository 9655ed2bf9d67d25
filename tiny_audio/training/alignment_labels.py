"""Choose the labels of the alignment loss from the decoder's tokens (see :class:`tiny_audio.ctc.AlignmentConfig`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain, repeat
from typing import Any

from tokenizers import Tokenizer, models, trainers

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # names of SentencePiece's byte tokens, such as <0xC3>, which do not spell text
_MOST_SAMPLES = 1_000_000  # approximate maximum number of tokens to learn from, so that learning takes only seconds


def choose_labels(
    tokenizer: Any, counts: Mapping[int, int], most: int | None, rows: int | None = None
) -> tuple[list[int], dict[int, list[int]]]:
    """Choose the labels, and spell all other tokens of the transcripts as sequences of labels.

    Byte-pair encoding finds frequent substrings of the transcripts' tokens. Substrings that are also tokens of the
    decoder are candidates. Each token of the transcripts is split into as few candidates as possible. The candidates
    that occur in these splits become labels, and so do tokens that cannot be split.

    Args:
        tokenizer: the decoder's tokenizer.
        counts: token id -> the number of times that the token occurs in the transcripts.
        most: approximate maximum number of labels, see ``AlignmentConfig.max_labels``. None if there is no limit.
        rows: number of tokens that have an embedding. None if all tokens have one.

    Returns:
        The labels, ascending, and a mapping from each other token to the labels that together spell it.
    """
    if most is None or len(counts) <= most:
        return sorted(counts), {}
    special = set(tokenizer.all_special_ids)
    ids = {name: token for name, token in tokenizer.get_vocab().items() if rows is None or token < rows}
    tokens = sorted(counts)  # so that the order of the transcripts does not affect the result
    names = dict(zip(tokens, tokenizer.convert_ids_to_tokens(tokens), strict=True))
    spoken = {token: name for token, name in names.items() if token not in special and not _BYTE.fullmatch(name)}
    scale = max(1.0, sum(counts.values()) / _MOST_SAMPLES)
    samples = chain.from_iterable(repeat(name, round(counts[token] / scale) or 1) for token, name in spoken.items())
    learned = Tokenizer(models.BPE())
    learned.train_from_iterator(samples, trainers.BpeTrainer(vocab_size=most, show_progress=False))
    usable = {name for name in learned.get_vocab() if name in ids and ids[name] not in special}
    spelled = {token: _split(name, usable) for token, name in spoken.items()}
    pieces = {
        token: [ids[name] for name in parts] for token, parts in spelled.items() if parts and parts != [names[token]]
    }
    labels = {piece for row in pieces.values() for piece in row} | (counts.keys() - pieces.keys())
    return sorted(labels), pieces


def _split(name: str, usable: set[str]) -> list[str] | None:
    """Split ``name`` into as few ``usable`` substrings as possible. Return None if there is no such split."""
    best: list[list[str] | None] = [[]]  # best[end] is the best split of name[:end]
    for end in range(1, len(name) + 1):
        found = [
            [*before, name[start:end]]
            for start, before in enumerate(best)
            if before is not None and name[start:end] in usable
        ]
        best.append(min(found, key=len, default=None))
    return best[-1]
