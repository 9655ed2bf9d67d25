"""Align words at the lowest cost. :data:`Cost` describes the possible costs of edits."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tiny_audio import __version__
from tiny_audio.config import UserError

Cost = Literal["unit", "sclite", "compounds", "joined"]
"""The quantity that an alignment minimizes:

- ``unit``: substitutions + insertions + deletions, the Levenshtein distance of words. It gives the lowest WER that is
  possible without joining words. jiwer computes the alignment.
- ``sclite``: 4 × substitutions + 3 × insertions + 3 × deletions, as in NIST's sclite. An insertion and a
  deletion (cost 6) are preferred to two substitutions (cost 8). WER is never lower than with ``unit``.
- ``compounds``: like ``unit``, but several words match one word that differs from them only in spaces, such as
  ``white paper`` and ``whitepaper``. The Open ASR Leaderboard uses ``compounds`` for English. kaldialign computes the
  alignment.
- ``joined``: like ``compounds``, but before the alignment, words that differ only in spaces are joined in both texts.
  Each joined group counts as one reference word, such as ``whitepaper``. With ``compounds``, ``white paper`` in the
  reference counts as two words. The Open ASR Leaderboard uses ``joined`` for languages other than English.
"""


DESCRIPTIONS: Mapping[Cost, str] = {
    "unit": "each edit costs 1",
    "sclite": "a substitution costs 4, an insertion or deletion 3, as in NIST's sclite",
    "compounds": "each edit costs 1, and several words match one word that differs from them only in spaces",
    "joined": "each edit costs 1, and words that differ only in spaces match and count as one reference word",
}


def scorer(cost: Cost) -> tuple[str, str]:
    """Return the program that aligns words at this cost, and its version."""
    if cost == "sclite":
        return "tiny-audio", __version__
    name = "jiwer" if cost == "unit" else "kaldialign"
    return name, importlib.metadata.version(name)


def check_scorer(cost: Cost) -> None:
    """Raise :class:`UserError` if the program that aligns words at this cost is not installed."""
    try:
        scorer(cost)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"the cost {cost!r}, which normalizers of the Open ASR Leaderboard use, needs the package kaldialign: pip "
            "install kaldialign (this needs a C++ compiler if PyPI has no wheel for your platform)"
        ) from None


Pair = tuple[str | None, str | None]
"""(reference word, hypothesis word). ``None`` marks a missing word."""

_SUBSTITUTION, _GAP = 4, 3  # costs of sclite for a substitution, and for an insertion or deletion
_NO_WORD = " "
"""Marks a missing word for kaldialign. No word contains a space."""


def unit_pairs(references: Sequence[str], hypotheses: Sequence[str]) -> list[list[Pair]]:
    """Align normalized texts with jiwer."""
    import jiwer

    output = jiwer.process_words(list(references), list(hypotheses))
    aligned = []
    for reference, hypothesis, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
        pairs: list[Pair] = []
        for chunk in chunks:
            # In an insertion or deletion, one side is empty. Otherwise both sides have the same length.
            pairs += zip_longest(
                reference[chunk.ref_start_idx : chunk.ref_end_idx], hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            )
        aligned.append(pairs)
    return aligned


def compound_pairs(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    """Align one utterance with kaldialign, which matches compounds.

    If a compound matches, each of its reference words is paired with itself, so every reference word has a pair.
    kaldialign needs 20 bytes of memory for each combination of a reference word and a hypothesis word, such as 180 MB
    for two texts of 3,000 words.
    """
    from kaldialign import align

    if list(reference) == list(hypothesis):
        return list(zip(reference, hypothesis, strict=True))
    pairs: list[Pair] = []
    for left, right in align(reference, hypothesis, _NO_WORD, merge_compounds=True):
        if left == _NO_WORD or right == _NO_WORD or " " not in left + right:
            pairs.append((None if left == _NO_WORD else left, None if right == _NO_WORD else right))
        else:
            pairs += ((word, word) for word in left.split())
    return pairs


def joined_pairs(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[list[Pair], int]:
    """Join words where the two texts differ only in spaces, then align them with :func:`compound_pairs`.

    Return the pairs, and the number of reference words that do not count because they were joined to another word. The
    pairs contain all reference words, so that systems can be compared word by word.
    """
    groups: list[list[str]] = []
    words: list[str] = []
    for kind, start, stop, other_start, other_stop in SequenceMatcher(None, reference, hypothesis).get_opcodes():
        left, right = list(reference[start:stop]), list(hypothesis[other_start:other_stop])
        joined = kind != "equal" and "".join(left) == "".join(right)
        groups += [left] if joined else [[word] for word in left]
        words += ["".join(right)] if joined else right
    pairs: list[Pair] = []
    rest = iter(groups)
    for word, other in compound_pairs(["".join(group) for group in groups], words):
        if word is None:
            pairs.append((None, other))
            continue
        first, *others = next(rest)
        pairs += [(first, first if word == other else other), *((each, each) for each in others)]
    return pairs, len(reference) - len(groups)


def sclite_pairs(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    """Align one utterance like sclite 2.10 (SCTK 2.4.10).

    Even if several alignments have the lowest cost, the result is the alignment that sclite chooses.

    ``d[i, j]`` is the lowest cost of aligning the first i of R reference words with the first j of H hypothesis words:

        ``d[i, j] = min(d[i-1, j-1] + 4·[reference[i] ≠ hypothesis[j]], d[i-1, j] + 3, d[i, j-1] + 3)``

    The best path is followed backward from ``d[R, H]``. Among steps with equal costs, a diagonal step (a hit or
    substitution) is preferred to an insertion, and an insertion is preferred to a deletion.

    This function compares the normalized texts as they are. In contrast, sclite ignores the case of ASCII letters
    unless ``-s`` is given. It reads ``{ a / b }`` as alternatives, ``(word)`` as optional and ``@`` as no word. It
    removes a ``*`` at the end of a word.

    The alignment needs R·H / 4 bytes of memory, such as 100 MB for two texts of 20,000 words (two hours of speech).
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
    """Return two tables of bits, packed eight per byte. Each bit belongs to a cell of ``d`` in :func:`sclite_pairs`.

    In the first table, the bit is set if the best path reaches the cell by a diagonal step. In the second table, the
    bit is set if reaching the cell by an insertion costs no more than by a deletion.

    Because of insertions, each cell of a row depends on the cell to its left. A row is still computed with vector
    operations: subtract from each cell the cost of inserting all words up to this cell (``ramp``), take the running
    minimum, and add ``ramp`` again.
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
