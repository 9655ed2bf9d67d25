"""Join the texts of overlapping chunks, so that no word at a cut is lost or repeated."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tiny_audio.inference.chunking import Chunk
from tiny_audio.inference.segments import Segment
from tiny_audio.inference.word_times import Word, apart, evenly_spread

_TOLERANCE_S = 0.3
"""Two aligned words with the same text are the same spoken word if their middles are at most this far apart."""
_LEAST_S = 0.001
"""Minimum duration of a word that a cut shortens."""


class Joiner:
    """Joins the segments of one recording, in order.

    Args:
        keep_words: whether the joined segments have word times.
    """

    def __init__(self, *, keep_words: bool) -> None:
        self._keep_words = keep_words
        self._waiting: Segment | None = None

    def add(self, chunk: Chunk, segment: Segment) -> Iterator[Segment]:
        """Yield the segments that are finished. If a segment overlaps the next segment, the next call yields it.

        Args:
            chunk: the next chunk.
            segment: the segment of this chunk, with its words.
        """
        if self._waiting is not None:
            before, segment = join(self._waiting, segment)
            yield self._finished(before)
            self._waiting = None
        if chunk.overlap:
            self._waiting = segment
        else:
            yield self._finished(segment)

    def end(self) -> Iterator[Segment]:
        """Yield the segment that still waits for the next chunk, if there is one."""
        if self._waiting is not None:
            yield self._finished(self._waiting)
            self._waiting = None

    def _finished(self, segment: Segment) -> Segment:
        return segment if self._keep_words else replace(segment, words=None)


def joined(chunks: Iterable[Chunk], segments: Iterable[Segment], *, keep_words: bool) -> list[Segment]:
    """Return the segments of a recording, joined where its chunks overlap."""
    joiner = Joiner(keep_words=keep_words)
    found = [one for chunk, segment in zip(chunks, segments, strict=True) for one in joiner.add(chunk, segment)]
    return [*found, *joiner.end()]


@dataclass(frozen=True)
class _Cut:
    """The number of words that stay in the first segment, and the number removed from the start of the second."""

    kept: int
    left_out: int


def join(first: Segment, second: Segment) -> tuple[Segment, Segment]:
    """Divide the words of two overlapping segments, so that each spoken word is in exactly one of them.

    The cut is after a word that both segments contain. This word is in their longest common sequence of words, near the
    middle of the overlap. If there is no common word, the cut is at the middle of the overlap. If only one segment has
    text, it keeps all of its text.

    Args:
        first, second: segments with words. The second one begins before the first one ends.
    """
    assert first.words is not None and second.words is not None  # noqa: PT018
    begin_s, end_s = second.start_s, first.end_s
    first_ctc, second_ctc = _joined_ctc(first, second)
    if not first.words or not second.words:
        middle_s = begin_s if second.words else end_s if first.words else (begin_s + end_s) / 2
        return (
            replace(first, end_s=middle_s, ctc_text=first_ctc),
            replace(second, start_s=middle_s, ctc_text=second_ctc),
        )
    cut = _cut(first.words, second.words, begin_s, end_s)
    before, after = first.words[: cut.kept], second.words[cut.left_out :]
    middle_s = _between(before, after, begin_s, end_s)
    before, after = apart(before, _LEAST_S, middle_s, first.start_s), apart(after, _LEAST_S, second.end_s, middle_s)
    return (
        replace(first, end_s=middle_s, text=_text(before), words=before, ctc_text=first_ctc),
        replace(second, start_s=middle_s, text=_text(after), words=after, ctc_text=second_ctc),
    )


def _cut(first: Sequence[Word], second: Sequence[Word], begin_s: float, end_s: float) -> _Cut:
    overlap_s, middle_s = end_s - begin_s, (begin_s + end_s) / 2
    keys = [[_key(word) for word in words] for words in (first, second)]
    found: list[tuple[int, float, _Cut]] = []
    for i, j in itertools.product(range(len(first)), range(len(second))):
        # Words without an alignment have estimated times, which may be wrong by as much as the overlap.
        is_aligned = first[i].confidence is not None and second[j].confidence is not None
        tolerance_s = _TOLERANCE_S if is_aligned else overlap_s
        slack_s = 0.0 if is_aligned else overlap_s / 2
        distance_s = abs(_middle(first[i]) - _middle(second[j]))
        shared = first[i].end_s > begin_s - slack_s and second[j].start_s < end_s + slack_s
        if shared and distance_s <= tolerance_s and keys[0][i] == keys[1][j]:
            from_middle_s = abs((_middle(first[i]) + _middle(second[j])) / 2 - middle_s)
            found.append((-_run(keys[0], keys[1], i, j), distance_s + from_middle_s, _Cut(i + 1, j + 1)))
    if found:
        return min(found, key=lambda one: one[:2])[2]
    return _Cut(
        sum(_middle(word) < middle_s for word in first),
        sum(_middle(word) < middle_s for word in second),
    )


def _run(first: Sequence[str], second: Sequence[str], i: int, j: int) -> int:
    """Return the length of the sequence of equal words around word ``i`` of the first and word ``j`` of the second."""
    later = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first[i:], second[j:], strict=False))
    earlier = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(reversed(first[:i]), reversed(second[:j]), strict=False)
    )
    return sum(1 for _ in itertools.chain(later, earlier))


def _between(before: Sequence[Word], after: Sequence[Word], begin_s: float, end_s: float) -> float:
    """Return the time at which the first segment ends and the second begins."""
    if not before or not after:
        return begin_s if after else end_s
    middle_s = (before[-1].end_s + after[0].start_s) / 2
    return min(max(middle_s, before[-1].start_s + _LEAST_S), after[0].end_s - _LEAST_S)


def _joined_ctc(first: Segment, second: Segment) -> tuple[str | None, str | None]:
    """Divide the CTC head's texts like the decoder's texts, with estimated word times."""
    if not first.ctc_text or not second.ctc_text:
        return first.ctc_text, second.ctc_text
    words = [evenly_spread(str(one.ctc_text).split(), one.start_s, one.end_s) for one in (first, second)]
    cut = _cut(words[0], words[1], second.start_s, first.end_s)
    return _text(words[0][: cut.kept]), _text(words[1][cut.left_out :])


def _key(word: Word) -> str:
    """Return the word without case and punctuation."""
    return "".join(filter(str.isalnum, word.text.casefold())) or word.text


def _middle(word: Word) -> float:
    return (word.start_s + word.end_s) / 2


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)
