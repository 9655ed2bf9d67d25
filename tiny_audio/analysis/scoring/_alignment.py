"""Word alignment of references and hypotheses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from tiny_audio.analysis.scoring._costs import (
    Cost,
    Pair,
    check_scorer,
    compound_pairs,
    joined_pairs,
    sclite_pairs,
    unit_pairs,
)
from tiny_audio.analysis.scoring._normalizers import Normalizer
from tiny_audio.config import Config, UserError

_LOOP_REPEATS = 4
"""A text counts as looping if an n-gram of words occurs at least this many times in a row."""
_LONGEST_LOOP = 100
"""Longest n-gram in words. Without a limit, the time would be quadratic, such as 9 s for two hours of speech (20,000
words)."""


@dataclass(frozen=True)
class Alignment:
    """Word pairs of one utterance: (reference word, hypothesis word). ``None`` marks a missing word."""

    pairs: tuple[Pair, ...]
    num_joined: int = 0
    """Number of reference words that do not count, because the cost ``joined`` has joined them to another word."""

    @property
    def hits(self) -> int:
        """Number of correct words."""
        return sum(reference == hypothesis for reference, hypothesis in self.pairs)

    @property
    def deletions(self) -> int:
        """Number of reference words without a hypothesis word."""
        return sum(hypothesis is None for _, hypothesis in self.pairs)

    @property
    def insertions(self) -> int:
        """Number of hypothesis words without a reference word."""
        return sum(reference is None for reference, _ in self.pairs)

    @property
    def errors(self) -> int:
        """Number of substitutions, deletions and insertions."""
        return len(self.pairs) - self.hits

    @property
    def substitutions(self) -> int:
        """Number of reference words that are replaced by another word in the hypothesis."""
        return self.errors - self.deletions - self.insertions

    @property
    def num_reference_words(self) -> int:
        """Number of hits, substitutions and deletions, minus ``num_joined``."""
        return len(self.pairs) - self.insertions - self.num_joined

    @property
    def edits(self) -> str:
        """One letter per word, as in sclite: C correct, S substituted, I inserted, D deleted."""
        return "".join(
            "I" if reference is None else "D" if hypothesis is None else "C" if reference == hypothesis else "S"
            for reference, hypothesis in self.pairs
        )


def align(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer, *, cost: Cost | None = None
) -> list[Alignment]:
    """Normalize the texts, then align their words at the lowest cost.

    Args:
        references: raw texts.
        hypotheses: raw texts, in the order of ``references``.
        normalizer: the normalizer of references and hypotheses.
        cost: the costs of edits. If None, the normalizer's costs are used.

    Raises:
        UserError: the numbers of references and hypotheses differ, the cost is unknown, or the package that aligns
            words at this cost is missing.
    """
    cost = check_cost(cost or normalizer.cost)
    check_lengths(references, hypotheses=hypotheses)
    check_scorer(cost)
    if not references:
        return []
    texts = list(map(normalizer, references)), list(map(normalizer, hypotheses))
    if cost == "unit":
        return [Alignment(tuple(pairs)) for pairs in unit_pairs(*texts)]
    words = [(reference.split(), hypothesis.split()) for reference, hypothesis in zip(*texts, strict=True)]
    if cost == "joined":
        return [Alignment(tuple(pairs), num_joined) for pairs, num_joined in (joined_pairs(*pair) for pair in words)]
    aligned = sclite_pairs if cost == "sclite" else compound_pairs
    return [Alignment(tuple(aligned(*pair))) for pair in words]


def check_cost(cost: str) -> Cost:
    """Return ``cost`` if it is a known name. Otherwise, raise :class:`UserError`."""
    if cost not in get_args(Cost):
        raise UserError(f"unknown cost {cost!r}; allowed: {', '.join(get_args(Cost))}; choose one of these")
    return cost  # type: ignore[return-value]  # checked above


def loops(text: str) -> bool:
    """Return whether any sequence of at most ``_LONGEST_LOOP`` words occurs at least ``_LOOP_REPEATS`` times in a row.

    Case and punctuation are ignored. Pass raw text, because a normalizer may join digits and thereby hide a loop.
    """
    words = re.findall(r"[\w']+", text.lower())
    for n in range(1, min(_LONGEST_LOOP, len(words) // _LOOP_REPEATS) + 1):
        run = 0
        for word, later in zip(words, words[n:], strict=False):
            run = run + 1 if word == later else 0
            if run == n * (_LOOP_REPEATS - 1):
                return True
    return False


class Confusions(Config):
    """The most common errors of each kind, sorted by count and then alphabetically."""

    substitutions: tuple[tuple[str, str, int], ...]
    """(reference word, hypothesis word, count)"""
    deletions: tuple[tuple[str, int], ...]
    """(reference word, count)"""
    insertions: tuple[tuple[str, int], ...]
    """(hypothesis word, count)"""


def confusions(alignments: Sequence[Alignment], *, limit: int = 20) -> Confusions:
    """Return the most common errors in ``alignments``, at most ``limit`` of each kind."""
    pairs = Counter(pair for alignment in alignments for pair in alignment.pairs if pair[0] != pair[1])
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1] or ""))
    return Confusions(
        substitutions=tuple((a, b, count) for (a, b), count in ranked if a is not None and b is not None)[:limit],
        deletions=tuple((a, count) for (a, b), count in ranked if a is not None and b is None)[:limit],
        insertions=tuple((b, count) for (a, b), count in ranked if a is None and b is not None)[:limit],
    )


def check_lengths(references: Sequence[str], **others: Sequence[object]) -> None:
    """Raise :class:`UserError` if any of ``others`` is not as long as ``references``."""
    for name, values in others.items():
        if len(values) != len(references):
            raise UserError(
                f"{len(references)} references, but {len(values)} {name}; they must come in the same order, "
                "one for each utterance"
            )
