"""Word timestamps: forced alignment of a text's characters with the CTC head's output."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tiny_audio.ctc import BLANK, CtcVocabulary, min_frames
from tiny_audio.inference.spoken_forms import spoken


@dataclass(frozen=True)
class Word:
    """A word of a text, with its times."""

    text: str
    """The word as written, with its punctuation."""
    start_s: float
    end_s: float
    confidence: float | None
    """Geometric mean of the CTC head's probabilities of the word's characters. The probability of a character is its
    highest probability in the frames that the most likely alignment assigns to it. None if the word was not aligned:
    the model has no CTC head, the head cannot spell the word, or the clip has too few frames for the text."""


@dataclass(frozen=True)
class Spelling:
    """A text as labels of the CTC head."""

    words: tuple[str, ...]
    labels: tuple[int, ...]
    owners: tuple[int | None, ...]
    """Index of the word that each label belongs to. None for separators between words."""

    @classmethod
    def of(cls, text: str, vocabulary: CtcVocabulary, *, read_numbers: bool = True) -> Spelling:
        """Spell a text.

        A character that is not in the vocabulary is replaced by the same letter in the other case or without accents.
        If the vocabulary does not contain such a letter, the character is left out.

        Args:
            text: the text.
            vocabulary: the CTC head's vocabulary.
            read_numbers: if a word has digits or symbols that are not in the vocabulary, spell it as it is read aloud
                in English.
        """
        known = {character: label for label, character in enumerate(vocabulary.characters, 1)}
        words = tuple(text.split())
        labels: list[int] = []
        owners: list[int | None] = []
        for index, word in enumerate(words):
            spelled = [
                label
                for character in (_readable(word, known) if read_numbers else word)
                for label in _labels(character, known)
            ]
            if spelled and labels and " " in known:
                labels.append(known[" "])
                owners.append(None)
            labels += spelled
            owners += [index] * len(spelled)
        return cls(words, tuple(labels), tuple(owners))


def _readable(word: str, known: dict[str, int]) -> str:
    """Return the word. If ``known`` lacks any of its digits or symbols, return it as it is read aloud in English."""
    if all(_labels(character, known) for character in word if character.isdecimal() or spoken(character) != character):
        return word
    return spoken(word)


def _labels(character: str, known: dict[str, int]) -> list[int]:
    for form in (character, character.lower(), character.upper()):
        if form in known:
            return [known[form]]
    plain = unicodedata.normalize("NFKD", character)
    return [known[form] for part in plain for form in (part, part.lower(), part.upper()) if form in known][:1]


@dataclass(frozen=True)
class Alignment:
    """The words of a text with their times."""

    words: tuple[Word, ...]
    confidence: float | None
    """The confidence over all characters, computed as in :class:`Word`. None if the text could not be aligned."""


def align(spelling: Spelling, log_probs: Tensor, rate: float, duration_s: float) -> Alignment:
    """Find the most likely alignment of a text.

    A word lasts from the first frame of its first character to the last frame of its last character. A word that the
    head cannot spell fills the gap between its neighbors. If there are too few frames for the text, the words divide
    the clip evenly. Words do not overlap, and no word ends after the clip. Every word lasts at least one frame, unless
    the clip is too short for this.

    Args:
        spelling: the spelling of the text.
        log_probs: ``[T, V]`` of one clip, on any device.
        rate: frames per second.
        duration_s: duration of the clip. The last frame may end later.
    """
    words: list[Word | None] = [None] * len(spelling.words)
    confidence = None
    if spelling.labels and min_frames(spelling.labels) <= len(log_probs):
        from torchaudio.functional import forced_align

        # The alignment runs on the CPU, because torchaudio does not have a kernel for every device.
        target = torch.tensor([spelling.labels], dtype=torch.int32)
        path, scores = forced_align(log_probs.float().cpu()[None], target, blank=BLANK)
        spans = _spans(path[0].tolist(), scores[0].tolist(), spelling.labels)
        confidence = _geometric_mean([best for _, _, best in spans])
        for index, text in enumerate(spelling.words):
            own = [span for span, owner in zip(spans, spelling.owners, strict=True) if owner == index]
            if own:
                probability = _geometric_mean([best for _, _, best in own])
                words[index] = Word(text, own[0][0] / rate, (own[-1][1] + 1) / rate, probability)
    return Alignment(apart(_filled(spelling.words, words, duration_s), 1 / rate, duration_s), confidence)


def evenly_spread(words: Sequence[str], start_s: float, end_s: float) -> tuple[Word, ...]:
    """Return the words with times that divide a span evenly. They have no confidence, because they are not aligned."""
    return _filled(words, [None] * len(words), end_s, start_s)


def shifted(word: Word, by_s: float) -> Word:
    """Return the word with its times shifted by ``by_s``."""
    return replace(word, start_s=word.start_s + by_s, end_s=word.end_s + by_s)


def _spans(path: Sequence[int], scores: Sequence[float], labels: Sequence[int]) -> list[tuple[int, int, float]]:
    """Return the first frame, last frame and best log-probability of each label."""
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
    assert len(spans) == len(labels), "the alignment has one span for each label"
    return spans


def _geometric_mean(log_probs: Sequence[float]) -> float:
    return math.exp(sum(log_probs) / len(log_probs))


def _filled(texts: Sequence[str], words: Sequence[Word | None], end_s: float, start_s: float = 0.0) -> tuple[Word, ...]:
    """Return all words. Adjacent words without times divide the gap between their neighbors evenly."""
    found: list[Word] = []
    index = 0
    while index < len(texts):
        word = words[index]
        if word is not None:
            found.append(word)
            index += 1
            continue
        stop = next((later for later in range(index, len(texts)) if words[later] is not None), len(texts))
        after = words[stop] if stop < len(texts) else None
        begin, end = (found[-1].end_s if found else start_s), (after.start_s if after else end_s)
        step = (end - begin) / (stop - index)
        found += [
            Word(texts[index + offset], begin + step * offset, begin + step * (offset + 1), None)
            for offset in range(stop - index)
        ]
        index = stop
    return tuple(found)


def apart(words: Sequence[Word], least_s: float, end_s: float, start_s: float = 0.0) -> tuple[Word, ...]:
    """Shift the times so that words are within a span and do not overlap.

    Every word lasts at least ``least_s``. If the span is too short for this, every word lasts at least the span's
    duration divided by the number of words.
    """
    least_s = min(least_s, (end_s - start_s) / max(1, len(words)))
    starts, ends, now = [], [], start_s
    for word in words:
        starts.append(max(word.start_s, now))
        ends.append(max(word.end_s, starts[-1] + least_s))
        now = ends[-1]
    now = end_s
    for index in reversed(range(len(words))):
        ends[index] = min(ends[index], now)
        starts[index] = max(start_s, min(starts[index], ends[index] - least_s))
        now = starts[index]
    return tuple(
        replace(word, start_s=begin_s, end_s=stop_s) for word, begin_s, stop_s in zip(words, starts, ends, strict=True)
    )
