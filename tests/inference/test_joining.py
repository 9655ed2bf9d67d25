"""Segments of overlapping chunks are joined without lost or repeated words."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tiny_audio.inference.chunking import Chunk
from tiny_audio.inference.joining import Joiner, join, joined
from tiny_audio.inference.segments import Segment
from tiny_audio.inference.word_times import Word, evenly_spread


def segment(words: list[tuple[str, float]], start_s: float, end_s: float, *, aligned: bool = True) -> Segment:
    """Return a segment of words. Each word has its start, and lasts 0.3 s.

    Without ``aligned``, the given starts are ignored, and the words are spread evenly over the segment.
    """
    texts = [text for text, _ in words]
    timed = (
        tuple(Word(text, at, at + 0.3, 0.9) for text, at in words) if aligned else evenly_spread(texts, start_s, end_s)
    )
    return Segment(start_s, end_s, " ".join(texts), " ".join(texts), False, None, timed, None)


def timed(words: str) -> list[tuple[str, float]]:
    """Parse words and their starts, written as ``word@seconds``."""
    return [(text, float(start_s)) for text, start_s in (word.split("@") for word in words.split())]


def text_of(first: Segment, second: Segment) -> str:
    before, after = join(first, second)
    assert before.end_s == after.start_s
    assert before.words is not None
    assert after.words is not None
    for one in (before, after):
        assert one.text == " ".join(word.text for word in one.words or ())
        assert all(one.start_s <= word.start_s < word.end_s <= one.end_s for word in one.words or ())
    return f"{before.text} {after.text}".strip()


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        # Both chunks contain the words of the overlap.
        ("turn@3.0 the@3.4 lights@3.7", "the@3.42 lights@3.72 on@4.1", "turn the lights on"),
        # The first chunk ends within a word, and the second chunk begins within a word.
        ("turn@3.0 the@3.4 lie@3.7", "urn@3.1 the@3.4 lights@3.7", "turn the lights"),
        # A word that the speaker repeats is kept each time.
        ("one@2.9 one@3.2 one@3.5 two@3.8", "one@3.21 one@3.5 two@3.8 two@4.1", "one one one two two"),
        # Two equal words at different times are two spoken words.
        ("no@3.0 yes@3.6", "yes@3.6 no@4.0", "no yes no"),
        # If there is no common word, the texts are joined in the middle of the overlap.
        ("a@2.0 b@3.0 x@3.6", "y@3.1 c@3.6 d@4.1", "a b c d"),
        ("Lights,@3.3", "lights@3.3 on.@3.8", "Lights, on."),
        ("", "on@3.4", "on"),
        ("on@3.4", "", "on"),
        ("", "", ""),
    ],
)
def test_words_of_an_overlap_occur_once(first: str, second: str, text: str) -> None:
    assert text_of(segment(timed(first), 0.0, 4.0), segment(timed(second), 3.0, 5.0)) == text


def test_a_text_cut_anywhere_is_joined_exactly() -> None:
    words = ["zero", "two", "two", "seven", "nine", "nine", "nine", "four", "one", "one", "two", "eight"]
    for jitter in range(20):
        rng = random.Random(jitter)
        times = [0.5 * index for index in range(len(words))]
        cut = rng.randrange(2, len(words) - 2)
        first = [(word, at + rng.uniform(-0.08, 0.08)) for word, at in zip(words, times, strict=True)][: cut + 1]
        second = [(word, at + rng.uniform(-0.08, 0.08)) for word, at in zip(words, times, strict=True)][cut - 1 :]
        # Chunks start and end between words.
        begin_s, end_s = times[cut - 1] - 0.1, times[cut] + 0.4
        found = text_of(segment(first, -0.1, end_s), segment(second, begin_s, 7.0))
        assert found.split() == words


@pytest.mark.parametrize("cut", range(4, 10))
def test_without_an_alignment_texts_are_joined_at_their_longest_common_words(cut: int) -> None:
    words = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "lay", "on", "the", "rug", "all", "day"]
    first = segment([(word, 0.0) for word in words[: cut + 2]], 0.0, 0.4 * (cut + 2), aligned=False)
    second = segment([(word, 0.0) for word in words[cut - 1 :]], 0.4 * (cut - 1), 6.4, aligned=False)
    assert text_of(first, second).split() == words


def test_every_word_has_a_duration_wherever_texts_are_joined() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        # The times are spread evenly and not aligned. So `join` may match two words whose times differ by the whole
        # overlap of 2 s.
        first, second = (
            segment([(rng.choice("abcd"), 0.0) for _ in range(rng.choice((3, 10, 40)))], *span, aligned=False)
            for span in ((0.0, 15.0), (13.0, 28.0))
        )
        text_of(first, second)


@pytest.mark.parametrize("without_text", [(), (0,), (1,), (0, 1)])
def test_texts_of_the_ctc_head_are_joined(without_text: tuple[int, ...]) -> None:
    segments = [
        segment([("turn", 3.0), ("the", 3.4), ("lights", 3.7)], 2.0, 4.0),
        segment([("the", 3.4), ("lights", 3.7), ("on", 4.1)], 3.0, 5.0),
    ]
    for index in without_text:
        segments[index] = replace(segments[index], text="", words=())
    first, second = join(*segments)
    assert f"{first.ctc_text} {second.ctc_text}".split() == ["turn", "the", "lights", "on"]


def test_a_segment_waits_only_for_a_chunk_that_overlaps() -> None:
    chunks = [Chunk(0, torch.zeros(64_000), 16_000), Chunk(48_000, torch.zeros(32_000)), Chunk(80_000, torch.zeros(9))]
    segments = [
        segment([("a", 1.0), ("b", 3.3)], 0.0, 4.0),
        segment([("b", 3.3), ("c", 4.5)], 3.0, 5.0),
        segment([("d", 5.0)], 5.0, 6.0),
    ]
    joiner = Joiner(keep_words=False)
    found = [[one.text for one in joiner.add(*pair)] for pair in zip(chunks, segments, strict=True)]
    assert found == [[], ["a b", "c"], ["d"]]
    assert list(joiner.end()) == []
    assert all(one.words is None for one in joined(chunks, segments, keep_words=False))
    cut_off = Joiner(keep_words=True)
    assert list(cut_off.add(chunks[0], segments[0])) == []
    assert list(cut_off.end()) == segments[:1]
