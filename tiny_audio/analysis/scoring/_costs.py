"""Word alignment at the least cost: each edit costs 1, or the weights of NIST's sclite."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tiny_audio import __version__

Cost = Literal["unit", "sclite"]
"""What an alignment minimizes:

- ``unit``: substitutions + insertions + deletions, the Levenshtein distance of words. It gives the lowest possible
  WER. jiwer aligns.
- ``sclite``: 4 × substitutions + 3 × insertions + 3 × deletions, as NIST's sclite does, so that an
  insertion and a deletion are preferred to substitutions where they leave more words right. Its WER is never lower.

S, D, I and WER depend on the cost: ``a b c d e`` against ``d e x y z`` has 5 errors under ``unit``, 6 under ``sclite``.
"""


def scorer(cost: Cost) -> tuple[str, str]:
    """Program that aligns words at this cost, and its version."""
    if cost == "unit":
        return "jiwer", importlib.metadata.version("jiwer")
    return "tiny-audio", __version__


Pair = tuple[str | None, str | None]
"""(reference word, hypothesis word); ``None`` where the other side has none."""

_SUBSTITUTION, _GAP = 4, 3


def unit_pairs(references: Sequence[str], hypotheses: Sequence[str]) -> list[list[Pair]]:
    """Align normalized texts with jiwer."""
    import jiwer

    output = jiwer.process_words(list(references), list(hypotheses))
    aligned = []
    for reference, hypothesis, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
        pairs: list[Pair] = []
        for chunk in chunks:
            # One of the sides is empty in an insertion or deletion; otherwise they are equally long.
            pairs += zip_longest(
                reference[chunk.ref_start_idx : chunk.ref_end_idx], hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            )
        aligned.append(pairs)
    return aligned


def sclite_pairs(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    """Align one utterance as sclite 2.10 (SCTK 2.4.10) does, including ties: S, D, I and the pairs are the same.

    With ``d[i, j]`` the cost of the first i reference words against the first j hypothesis words (R and H in all),

        ``d[i, j] = min(d[i-1, j-1] + 4·[reference[i] ≠ hypothesis[j]], d[i-1, j] + 3, d[i, j-1] + 3)``

    and the path is followed back from ``d[R, H]``. Among equal steps it takes the diagonal one (a hit or substitution),
    then the insertion, and a deletion only where no other step is as cheap.

    Texts are used as normalized. sclite's own text conventions are not implemented: it folds the case of ASCII
    letters (without ``-s``), reads ``{ a / b }`` as alternatives, ``(word)`` as optional, ``@`` as no word, and drops a
    ``*`` at the end of a word.

    It takes R·H / 4 bytes, and time in proportion: two texts of 20,000 words (two hours of speech) take 100 MB.
    """
    if list(reference) == list(hypothesis):
        return list(zip(reference, hypothesis, strict=True))
    ids: dict[str, int] = {}
    diagonal, insertion = _choices(
        *(
            np.array([ids.setdefault(word, len(ids)) for word in words], dtype=np.int64)
            for words in (reference, hypothesis)
        )
    )
    pairs: list[Pair] = []
    i, j = len(reference), len(hypothesis)
    while i or j:
        if i and j and diagonal[i - 1, (j - 1) >> 3] >> (7 - (j - 1 & 7)) & 1:
            i, j = i - 1, j - 1
            pairs.append((reference[i], hypothesis[j]))
        elif not i or (j and insertion[i - 1, (j - 1) >> 3] >> (7 - (j - 1 & 7)) & 1):
            j -= 1
            pairs.append((None, hypothesis[j]))
        else:
            i -= 1
            pairs.append((reference[i], None))
    return pairs[::-1]


def _choices(
    reference: NDArray[np.int64], hypothesis: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cells that the path enters diagonally, and by an insertion: packed bits, eight cells of a row in a byte.

    In a row, each cell depends on the one before it. Subtracting the cost of insertions up to each cell removes this
    dependency: a running minimum then gives the row in a few vector operations.
    """
    ramp = np.arange(len(hypothesis) + 1, dtype=np.int64) * _GAP
    above = ramp
    width = -(-len(hypothesis) // 8)
    diagonal, insertion = (np.empty((len(reference), width), dtype=np.uint8) for _ in range(2))
    for i, word in enumerate(reference):
        here = above + _GAP  # deletions
        swapped = above[:-1] + _SUBSTITUTION * (hypothesis != word)
        deleted = here[1:].copy()
        np.minimum(deleted, swapped, out=here[1:])
        here -= ramp
        np.minimum.accumulate(here, out=here)
        here += ramp
        inserted = here[:-1] + _GAP
        diagonal[i] = np.packbits((swapped <= deleted) & (swapped <= inserted))
        insertion[i] = np.packbits(inserted <= deleted)
        above = here
    return diagonal, insertion
