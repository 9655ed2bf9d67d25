"""Subtitles are readable, and other programs can parse the SRT and WebVTT files."""

from __future__ import annotations

import html
import itertools
from pathlib import Path

import pytest

from tiny_audio.inference.segments import Segment
from tiny_audio.inference.subtitles import LINE_CHARACTERS, LONGEST_S, as_srt, as_vtt, cues
from tiny_audio.inference.word_times import Word

HARD = "Tom & Jerry <i>said</i> --> 3 < 4, then went on and on, about nothing. Really? Yes: 100 % of it! Ünïcode…"


def segment(text: str, start_s: float, end_s: float, *, timed: bool = True) -> Segment:
    texts = text.split()
    step = (end_s - start_s) / max(1, len(texts))
    words = tuple(
        Word(word, start_s + step * index, start_s + step * (index + 0.9), 0.5) for index, word in enumerate(texts)
    )
    return Segment(start_s, end_s, text, None, False, 0.5, words if timed else None, None)


def talk(*, timed: bool = True) -> list[Segment]:
    words = " ".join(f"word{number}" for number in range(60))
    parts = [(words, 0.0, 24.0), ("hi", 25.0, 25.1), ("you", 25.2, 25.3), ("", 30.0, 31.0), (HARD, 4000.0, 4020.0)]
    return [segment(*part, timed=timed) for part in parts]


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("each_word", [True, False])
def test_other_parsers_read_every_word(tmp_path: Path, timed: bool, each_word: bool) -> None:
    pysubs2, webvtt = pytest.importorskip("pysubs2"), pytest.importorskip("webvtt")
    segments = talk(timed=timed)
    words = " ".join(part.text for part in segments).split()
    shown = cues(segments, each_word=each_word)
    (tmp_path / "talk.srt").write_text(as_srt(shown), encoding="utf-8")
    (tmp_path / "talk.vtt").write_text(as_vtt(shown), encoding="utf-8")
    srt = pysubs2.load(str(tmp_path / "talk.srt"), format_="srt", keep_html_tags=True)
    vtt = webvtt.read(str(tmp_path / "talk.vtt"))
    words_in_srt = ["→" if word == "-->" else word for word in words]
    assert html.unescape(" ".join(caption.text for caption in vtt)).split() == words
    assert [len(srt), len(vtt)] == [len(shown), len(shown)]
    assert " ".join(event.plaintext for event in srt).split() == words_in_srt
    for event, caption, cue in zip(srt, vtt, shown, strict=True):
        assert event.start / 1000 == pytest.approx(cue.start_s, abs=0.001)
        assert caption.start_in_seconds == int(cue.start_s + 0.0005)


@pytest.mark.parametrize("timed", [True, False])
def test_cues_are_readable(timed: bool) -> None:
    shown = cues(talk(timed=timed))
    for cue in shown:
        lines = cue.text.split("\n")
        assert len(lines) <= 2
        assert all(0 < len(line) <= LINE_CHARACTERS for line in lines)
        assert 0 < cue.end_s - cue.start_s <= LONGEST_S
    assert all(before.end_s <= after.start_s for before, after in itertools.pairwise(shown))
    texts = [cue.text for cue in shown]
    assert "hi" in texts, "a cue must end at the end of a segment"
    assert any(text.endswith("nothing.") for text in texts), "a cue must end at the end of a sentence"


def test_short_cues_are_shown_longer_if_there_is_time() -> None:
    hi, you = cues([segment("hi", 1.0, 1.1), segment("you", 1.4, 1.5)])
    assert (hi.end_s, you.end_s) == (pytest.approx(1.4), pytest.approx(2.4))


def test_lines_are_balanced_and_long_words_are_not_split() -> None:
    (cue,) = cues([segment("five words that need another line than the first", 0.0, 5.0)])
    first, second = cue.text.split("\n")
    assert abs(len(first) - len(second)) < 10
    (cue,) = cues([segment("x" * 60, 0.0, 2.0)])
    assert cue.text == "x" * 60


def test_a_cue_starts_after_a_pause() -> None:
    words = (Word("a", 0.0, 0.5, None), Word("b", 1.5, 2.0, None))
    part = Segment(0.0, 2.0, "a b", None, False, None, words, None)
    assert [cue.text for cue in cues([part])] == ["a", "b"]


def test_words_without_duration_do_not_overlap() -> None:
    words = tuple(
        Word(text, start, end, 1.0) for text, start, end in (("a", 1.0, 1.0), ("b", 1.0, 1.0), ("c", 1.0, 1.5))
    )
    found = cues([Segment(0.0, 2.0, "a b c", None, False, 1.0, words, None)], each_word=True)
    assert [cue.text for cue in found] == ["a", "b", "c"]
    assert all(cue.start_s < cue.end_s for cue in found)
    assert all(later.start_s >= earlier.end_s for earlier, later in itertools.pairwise(found))


def test_times_can_have_hours_and_texts_can_be_empty() -> None:
    assert "01:06:40,000 --> " in as_srt(cues([segment("late", 4000.0, 4002.0)]))
    assert "01:06:40.000 --> 01:06:41.800" in as_vtt(cues([segment("late", 4000.0, 4002.0)]))
    assert as_srt(cues([])) == ""
    assert as_vtt(cues([])) == "WEBVTT\n"
