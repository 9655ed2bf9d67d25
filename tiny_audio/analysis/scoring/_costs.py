"""Words aligned at the least cost: one edit is one error, or the weights of NIST's sclite."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tiny_audio import __version__

Cost = Literal["unit", "sclite"]
"""What an alignment makes as small as it can:

- ``unit``: substitutions + insertions + deletions, the Levenshtein distance of words. It gives the lowest WER there
  is; jiwer aligns.
- ``sclite``: 4 × substitutions + 3 × insertions + 3 × deletions, as NIST's sclite does, so that a word is not called
  substituted where an insertion and a deletion leave more words right. Its WER is never below the other.

S, D and I of one are not those of the other, and neither are the WERs: ``a b c d e`` against ``d e x y z`` has 5 errors
under ``unit`` and 6 under ``sclite``.
"""


def scorer(cost: Cost) -> tuple[str, str]:
    """What aligns words at this cost, and its version."""
    if cost == "unit":
        return "jiwer", importlib.metadata.version("jiwer")
    return "tiny-audio", __version__


Pair = tuple[str | None, str | None]
"""(reference word, hypothesis word); ``None`` where the other side has none."""

_SUBSTITUTION, _GAP = 4, 3


def unit_pairs(references: Sequence[str], hypotheses: Sequence[str]) -> list[list[Pair]]:
    """Aligned by jiwer; texts are normalized already."""
    import jiwer

    output = jiwer.process_words(list(references), list(hypotheses))
    aligned = []
    for said, heard, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
        pairs: list[Pair] = []
        for chunk in chunks:
            # One of the sides is empty in an insertion or deletion; otherwise they are equally long.
            pairs += zip_longest(
                said[chunk.ref_start_idx : chunk.ref_end_idx], heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
            )
        aligned.append(pairs)
    return aligned


def sclite_pairs(said: Sequence[str], heard: Sequence[str]) -> list[Pair]:
    """One utterance aligned as sclite 2.10 (SCTK 2.4.10) does it, ties included: S, D, I and the pairs are sclite's.

    With ``d[i, j]`` the cost of the first i reference words against the first j hypothesis words (R and H in all),

        ``d[i, j] = min(d[i-1, j-1] + 4·[said[i] ≠ heard[j]], d[i-1, j] + 3, d[i, j-1] + 3)``

    and the path is followed back from ``d[R, H]``. Of equal ways it takes the diagonal one (a hit or substitution),
    then the insertion, and the deletion only where that alone is the least.

    Of sclite's own reading of texts there is nothing here: it folds the case of ASCII letters (but for ``-s``), reads
    ``{ a / b }`` as alternatives, ``(word)`` as one that may be left out, ``@`` as no word, and drops a ``*`` at a
    word's end. Texts here are what the normalizer leaves.

    Takes R·H / 4 bytes and time in proportion: two hours of speech against two hours, 20,000 words each, are 100 MB.
    """
    if list(said) == list(heard):
        return list(zip(said, heard, strict=True))
    numbers: dict[str, int] = {}
    reference, hypothesis = (
        np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64) for words in (said, heard)
    )
    diagonal, insertion = _choices(reference, hypothesis)
    pairs: list[Pair] = []
    i, j = len(said), len(heard)
    while i or j:
        if i and j and diagonal[i - 1, (j - 1) >> 3] >> (7 - (j - 1 & 7)) & 1:
            i, j = i - 1, j - 1
            pairs.append((said[i], heard[j]))
        elif not i or (j and insertion[i - 1, (j - 1) >> 3] >> (7 - (j - 1 & 7)) & 1):
            j -= 1
            pairs.append((None, heard[j]))
        else:
            i -= 1
            pairs.append((said[i], None))
    return pairs[::-1]


def _choices(
    reference: NDArray[np.int64], hypothesis: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Where the path comes along the diagonal, and where by an insertion: bits, eight of a row in a byte.

    Within a row every cell waits for the one before it, unless the cost of the insertions up to it is taken off first:
    then the least so far is what insertions lead to, and the row is a handful of vector operations.
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
