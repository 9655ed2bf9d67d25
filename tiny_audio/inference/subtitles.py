"""Write timed words as subtitles: readable cues in SubRip (.srt) or WebVTT (.vtt) format."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tiny_audio.inference.segments import Segment
from tiny_audio.inference.word_times import Word

# Maximum number of characters in a line, and of lines in a cue.
LINE_CHARACTERS, LINES = 42, 2
LONGEST_S, SHORTEST_S = 7.0, 1.0
"""Maximum and minimum duration of a cue. A cue that is too short is extended, but not into the next cue."""
_SENTENCE_END = re.compile(r"[.?!…][\"'”’)]*$")
_PAUSE_S = 0.7
"""A new cue starts after a pause of at least this duration."""


@dataclass(frozen=True)
class Cue:
    """A text on the screen, with the times when it appears and disappears."""

    start_s: float
    end_s: float
    text: str
    """At most two lines. A line is longer than ``LINE_CHARACTERS`` only if it consists of one long word."""


def cues(segments: Iterable[Segment], *, each_word: bool = False) -> list[Cue]:
    """Return the cues of a recording, in order and without overlaps.

    Args:
        segments: segments of one recording. If a segment has no word times, they are estimated from the lengths of its
            words.
        each_word: create a cue for every word.
    """
    found: list[Cue] = []
    for segment in segments:
        words = segment.words or _spread(segment)
        groups = ([word] for word in words) if each_word else _groups(words)
        found += (Cue(group[0].start_s, group[-1].end_s, _lines(group)) for group in groups)
    # A cue ends no later than the next cue starts. Shift cues that start less than a millisecond after the previous
    # cue, so that every cue lasts at least a millisecond.
    for index, cue in enumerate(found[1:], start=1):
        earliest = found[index - 1].start_s + 0.001
        if cue.start_s < earliest:
            found[index] = Cue(earliest, max(cue.end_s, earliest), cue.text)
    return [
        _shown(cue, found[index + 1].start_s if index + 1 < len(found) else None) for index, cue in enumerate(found)
    ]


def as_srt(shown: Sequence[Cue]) -> str:
    """Return the text of a .srt file."""
    return "\n".join(
        f"{index}\n{_time(cue.start_s, ',')} --> {_time(cue.end_s, ',')}\n{_without_arrow(cue.text)}\n"
        for index, cue in enumerate(shown, 1)
    )


def as_vtt(shown: Sequence[Cue]) -> str:
    """Return the text of a .vtt file."""
    blocks = (
        f"{_time(cue.start_s, '.')} --> {_time(cue.end_s, '.')}\n{html.escape(cue.text, quote=False)}\n"
        for cue in shown
    )
    return "\n".join(["WEBVTT\n", *blocks])


def _spread(segment: Segment) -> tuple[Word, ...]:
    texts = segment.text.split()
    per_character = (segment.end_s - segment.start_s) / max(1, sum(len(text) + 1 for text in texts))
    words, position = [], segment.start_s
    for text in texts:
        end = position + per_character * (len(text) + 1)
        words.append(Word(text, position, end, None))
        position = end
    return tuple(words)


def _groups(words: Iterable[Word]) -> Iterator[list[Word]]:
    """Yield the words of each cue."""
    group: list[Word] = []
    for word in words:
        if group and not (
            len(_wrapped([*group, word])) <= LINES
            and word.end_s - group[0].start_s <= LONGEST_S
            and word.start_s - group[-1].end_s < _PAUSE_S
            and not _SENTENCE_END.search(group[-1].text)
        ):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _wrapped(words: Iterable[Word], width: int = LINE_CHARACTERS) -> list[str]:
    text = " ".join(word.text for word in words)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _lines(words: Sequence[Word]) -> str:
    """Wrap the words into as few lines as possible, with similar lengths."""
    lines = _wrapped(words)
    widths = range(max(len(word.text) for word in words), LINE_CHARACTERS)
    return "\n".join(next((narrow for width in widths if len(narrow := _wrapped(words, width)) == len(lines)), lines))


def _shown(cue: Cue, following_s: float | None) -> Cue:
    """Return the cue with at least the minimum duration, but end it no later than the next cue starts."""
    end = max(cue.end_s, cue.start_s + SHORTEST_S)
    if following_s is not None:
        end = min(end, following_s)
    # Parsers reject a cue with the same start and end.
    return Cue(cue.start_s, max(end, cue.start_s + 0.001), cue.text)


def _time(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{mark}{milliseconds % 1000:03d}"


def _without_arrow(text: str) -> str:
    return text.replace("-->", "→")
