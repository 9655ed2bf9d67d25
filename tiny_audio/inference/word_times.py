"""When each word of a text is said, by the CTC head: forced alignment of its characters."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tiny_audio.ctc import BLANK, CtcVocabulary, min_frames


@dataclass(frozen=True)
class Word:
    """A word of a text, and when it is said."""

    text: str
    """As written, with its punctuation."""
    start_s: float
    end_s: float
    confidence: float | None
    """Geometric mean of the probabilities that the CTC head gives to the word's characters, each in the frame where it
    is surest of it, under the likeliest alignment of the whole text; None for a word that the head cannot spell."""


@dataclass(frozen=True)
class Spelling:
    """A text in labels of the head, as far as it can be spelled."""

    words: tuple[str, ...]
    labels: tuple[int, ...]
    owners: tuple[int | None, ...]
    """The word that each label belongs to; None for what separates words."""

    @classmethod
    def of(cls, text: str, vocabulary: CtcVocabulary) -> Spelling:
        """Characters that the head does not know are taken in the other case, then without their accents, else left
        out."""
        known = {character: number for number, character in enumerate(vocabulary.characters, 1)}
        words = tuple(text.split())
        labels: list[int] = []
        owners: list[int | None] = []
        for number, word in enumerate(words):
            spelled = [label for character in word for label in _labels(character, known)]
            if spelled and labels and " " in known:
                labels.append(known[" "])
                owners.append(None)
            labels += spelled
            owners += [number] * len(spelled)
        return cls(words, tuple(labels), tuple(owners))


def _labels(character: str, known: dict[str, int]) -> list[int]:
    for form in (character, character.lower(), character.upper()):
        if form in known:
            return [known[form]]
    plain = unicodedata.normalize("NFKD", character)
    return [known[form] for part in plain for form in (part, part.lower(), part.upper()) if form in known][:1]


@dataclass(frozen=True)
class Alignment:
    """A text in time."""

    words: tuple[Word, ...]
    confidence: float | None
    """As of a word, over all characters; None where nothing could be aligned."""


def align(spelling: Spelling, log_probs: Tensor, rate: float) -> Alignment:
    """The likeliest alignment of a text.

    A word lasts from the first frame of its first character to the last frame of its last. Words that the head cannot
    spell share what lies between their neighbors; so do all, from beginning to end, where the frames are too few for
    the text.

    Args:
        spelling: of the text.
        log_probs: ``[T, V]`` of one clip, on any device.
        rate: frames per second.
    """
    duration_s = len(log_probs) / rate
    words: list[Word | None] = [None] * len(spelling.words)
    confidence = None
    if spelling.labels and min_frames(spelling.labels) <= len(log_probs):
        from torchaudio.functional import forced_align

        target = torch.tensor([spelling.labels], dtype=torch.int32)
        path, scores = forced_align(log_probs.float().cpu()[None], target, blank=BLANK)
        spans = _spans(path[0].tolist(), scores[0].tolist(), spelling.labels)
        confidence = _mean([best for _, _, best in spans])
        for number, text in enumerate(spelling.words):
            mine = [span for span, owner in zip(spans, spelling.owners, strict=True) if owner == number]
            if mine:
                sure = _mean([best for _, _, best in mine])
                words[number] = Word(text, mine[0][0] / rate, (mine[-1][1] + 1) / rate, sure)
    return Alignment(_filled(spelling.words, words, duration_s), confidence)


def shifted(word: Word, by_s: float) -> Word:
    """The same word, in a recording of which this clip is a part."""
    return replace(word, start_s=word.start_s + by_s, end_s=word.end_s + by_s)


def _spans(path: Sequence[int], scores: Sequence[float], labels: Sequence[int]) -> list[tuple[int, int, float]]:
    """First frame, last frame and best log-probability of each label."""
    spans: list[tuple[int, int, float]] = []
    previous = BLANK
    for frame, (label, score) in enumerate(zip(path, scores, strict=True)):
        if label != BLANK:
            if label == previous:
                first, _, best = spans[-1]
                spans[-1] = (first, frame, max(best, score))
            else:
                spans.append((frame, frame, score))
        previous = label
    assert len(spans) == len(labels), "the alignment spells the text"
    return spans


def _mean(log_probs: Sequence[float]) -> float:
    return math.exp(sum(log_probs) / len(log_probs))


def _filled(texts: Sequence[str], words: Sequence[Word | None], duration_s: float) -> tuple[Word, ...]:
    """Words without a time of their own divide the gap that they stand in."""
    found: list[Word] = []
    number = 0
    while number < len(texts):
        word = words[number]
        if word is not None:
            found.append(word)
            number += 1
            continue
        stop = next((later for later in range(number, len(texts)) if words[later] is not None), len(texts))
        after = words[stop] if stop < len(texts) else None
        begin, end = (found[-1].end_s if found else 0.0), (after.start_s if after else duration_s)
        step = (end - begin) / (stop - number)
        found += [
            Word(texts[index], begin + step * (index - number), begin + step * (index - number + 1), None)
            for index in range(number, stop)
        ]
        number = stop
    return tuple(found)
