"""The results of transcription: recordings and their segments."""

from __future__ import annotations

from dataclasses import dataclass

from tiny_audio.inference.filters import Reason
from tiny_audio.inference.word_times import Word


@dataclass(frozen=True)
class Segment:
    """A chunk of a recording and its text."""

    start_s: float
    """From the beginning of the recording."""
    end_s: float
    text: str
    """Empty if nothing was spoken."""
    ctc_text: str | None
    """The CTC head's own greedy text, unfiltered. None without a head, or if the sound is not speech."""
    truncated: bool
    """No end token came within ``max_new_tokens``, so words may be missing."""
    confidence: float | None
    """See :class:`tiny_audio.inference.word_times.Alignment`. None without a CTC head, or without text."""
    words: tuple[Word, ...] | None
    """In the recording's time. None unless word timestamps were requested."""
    suppressed: Reason | None
    """Why the text differs from the decoder's. None if it does not."""

    @property
    def duration_s(self) -> float:
        """Of the chunk."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Transcription:
    """A whole recording."""

    text: str
    """The texts of its segments, separated by spaces."""
    duration_s: float
    segments: tuple[Segment, ...]
    """In order. Stretches without any sound have none."""

    @property
    def truncated(self) -> bool:
        """Whether any segment is truncated."""
        return any(segment.truncated for segment in self.segments)

    @property
    def ctc_text(self) -> str | None:
        """The CTC head's own texts, separated by spaces; None if there are none."""
        texts = [segment.ctc_text for segment in self.segments if segment.ctc_text is not None]
        return " ".join(filter(None, texts)) if texts else None
