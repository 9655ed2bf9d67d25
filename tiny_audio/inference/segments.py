"""The results of transcription: the text of a recording, and the texts of its segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiny_audio.inference.filters import EMPTY_BECAUSE, Reason
from tiny_audio.inference.word_times import Word


@dataclass(frozen=True)
class Segment:
    """A chunk of a recording and its text."""

    start_s: float
    """Start in seconds from the beginning of the recording."""
    end_s: float
    text: str
    """Text of the chunk. Empty if no speech was found."""
    ctc_text: str | None
    """The CTC head's own greedy text, unfiltered. None if the model has no CTC head or the sound is not speech."""
    truncated: bool
    """Whether the decoder generated ``max_new_tokens`` tokens without an end token. If so, words may be missing."""
    confidence: float | None
    """See :class:`tiny_audio.inference.word_times.Alignment`. None if the model has no CTC head or there is no text."""
    words: tuple[Word, ...] | None
    """Words with times in seconds from the beginning of the recording. None unless word timestamps were requested."""
    suppressed: Reason | None
    """Why the text differs from the decoder's text, or why the chunk was not decoded. None if neither applies."""

    @property
    def duration_s(self) -> float:
        """Duration of the chunk."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Transcription:
    """The transcription of a whole recording."""

    text: str
    """The texts of its segments, separated by spaces."""
    duration_s: float
    segments: tuple[Segment, ...]
    """Segments in order. Pauses of a long recording have no segment."""
    warning: str | None = None
    """A warning that the text is unreliable. None unless the recording is far shorter than the training clips."""

    @classmethod
    def of(cls, segments: Sequence[Segment], duration_s: float, warning: str | None = None) -> Transcription:
        """Return the transcription of a recording that has these segments."""
        return cls(" ".join(segment.text for segment in segments if segment.text), duration_s, tuple(segments), warning)

    @property
    def why_empty(self) -> str | None:
        """The reason why there is no text, as a phrase. None if there is text."""
        if self.text:
            return None
        if not self.segments:
            return "no speech was found"
        reasons = dict.fromkeys(segment.suppressed for segment in self.segments)
        return "; ".join("the model wrote nothing" if reason is None else EMPTY_BECAUSE[reason] for reason in reasons)

    @property
    def suppressed(self) -> str | None:
        """The durations of the segments whose text was suppressed, by reason, such as ``2.5 s: the audio is silent``.

        None if no text was suppressed. Also None if there is no text at all, because :attr:`why_empty` has the reasons.
        """
        seconds: dict[Reason, float] = {}
        for segment in self.segments:
            if self.text and not segment.text and segment.suppressed is not None:
                seconds[segment.suppressed] = seconds.get(segment.suppressed, 0.0) + segment.duration_s
        return "; ".join(f"{value:.1f} s: {EMPTY_BECAUSE[reason]}" for reason, value in seconds.items()) or None

    @property
    def truncated(self) -> bool:
        """Whether any segment is truncated."""
        return any(segment.truncated for segment in self.segments)

    @property
    def ctc_text(self) -> str | None:
        """The CTC head's own texts, separated by spaces. None if no segment has one."""
        texts = [segment.ctc_text for segment in self.segments if segment.ctc_text is not None]
        return " ".join(filter(None, texts)) if texts else None
