"""Live text of a running stream: blocks of audio in, partial and final texts out.

This module uses no network, threads or clocks. The caller transcribes the audio:

    stream = LiveStream(Utterances(activity, longest_s=15.0, pause_s=0.5))
    for block in microphone:
        stream.add(block)
        while (job := stream.next_job()) is not None:
            stream.finish(job, transcriber.transcribe([job.chunk.waveform])[0])
        for event in stream.take_events():
            print(event.text)
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from torch import Tensor

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.chunking import Chunk
from tiny_audio.inference.segments import Transcription
from tiny_audio.inference.utterances import Utterances
from tiny_audio.inference.word_times import Word, shifted

LONGEST_UTTERANCE_S = 15.0
"""Maximum duration of an utterance. The final text of a longer utterance would come late. Its partial texts would be
slow, because each of them is decoded from the start of the utterance."""
ENDPOINT_PAUSE_S = 0.5
"""A pause of at least this duration ends an utterance."""
PARTIAL_INTERVAL_S = 0.4
"""Minimum duration of new audio between two partial texts."""
EARLY_PAUSE_S = 0.2
"""After a pause of this duration, the utterance is decoded immediately. If the pause becomes long enough to end the
utterance, the result becomes the final text."""


@dataclass(frozen=True)
class Partial:
    """The text of an utterance that is being spoken. It may change."""

    utterance: int
    """Index of the utterance."""
    start_s: float
    """Start of the utterance in seconds from the beginning of the stream."""
    stable: str
    """The words at the start of ``text`` that are the same as in the previous partial text."""
    text: str


@dataclass(frozen=True)
class Final:
    """The text of a whole utterance. It never changes."""

    utterance: int
    start_s: float
    end_s: float
    text: str
    """The text that ``Transcriber.transcribe`` gives for this utterance. Empty if the sound was not speech."""
    words: tuple[Word, ...] | None
    """Words with times in seconds from the beginning of the stream. None unless word timestamps were requested."""


@dataclass(frozen=True)
class Job:
    """An utterance that the caller has to decode (transcribe)."""

    utterance: int
    chunk: Chunk
    final: bool
    """Whether the utterance has ended."""


class LiveStream:
    """Turns one stream into partial and final texts.

    There is at most one job at a time. Utterances that have ended are decoded first. After a partial text, the stream
    waits for at least :data:`PARTIAL_INTERVAL_S`, and for at least as long as the decoding of this text took. Then it
    decodes the next partial text. A pause of :data:`EARLY_PAUSE_S` ends the wait. Events are in the order of their
    utterances.

    Args:
        utterances: finds the utterances. It must not be shared with other streams.
    """

    def __init__(self, utterances: Utterances) -> None:
        self._utterances = utterances
        self._ended: deque[Chunk] = deque()  # utterances that have ended but have no final text yet
        self._index = 0  # index of the utterance whose final text is next
        self._job: Job | None = None  # the unfinished job
        self._decoded: tuple[Chunk, Transcription] | None = None  # the last finished job
        self._partial: Partial | None = None  # the last decoding of the utterance that is being spoken
        self._job_started = self._partial_finished = self._partial_took = 0  # counted in received samples
        self._events: list[Partial | Final] = []

    @property
    def duration_s(self) -> float:
        """Seconds of audio received."""
        return self._utterances.num_samples / SAMPLE_RATE

    @property
    def waiting_s(self) -> float:
        """Seconds of audio in utterances that have ended but have no final text yet."""
        return sum(len(chunk.waveform) for chunk in self._ended) / SAMPLE_RATE

    def add(self, block: Tensor) -> None:
        """Add mono float32 samples ``[S]`` at 16 kHz."""
        self._ended += self._utterances.add(block)
        self._finalize()

    def end(self) -> None:
        """End the stream. The last utterance becomes final."""
        self._ended += self._utterances.end()
        self._finalize()

    def next_job(self) -> Job | None:
        """Return the next job. None if there is nothing to decode, or the last job is not finished."""
        if self._job is not None:
            return None
        if self._ended:
            self._job = Job(self._index, self._ended[0], final=True)
        else:
            chunk = self._utterances.open
            if chunk is not None and self._is_due(chunk):
                self._job = Job(self._index, chunk, final=False)
        self._job_started = self._utterances.num_samples
        return self._job

    def finish(self, job: Job, transcription: Transcription) -> None:
        """Add the transcription of a job's waveform."""
        assert job is self._job
        self._job, self._decoded = None, (job.chunk, transcription)
        if not job.final:
            self._partial_finished = self._utterances.num_samples
            self._partial_took = self._partial_finished - self._job_started
            if not self._ended:
                self._add_partial(job, transcription)
        self._finalize()

    def take_events(self) -> list[Partial | Final]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    def _is_due(self, chunk: Chunk) -> bool:
        """Whether it is time for a new partial text."""
        if self._decoded is not None and _is_same(chunk, self._decoded[0]):
            return False
        if self._utterances.pause >= EARLY_PAUSE_S * SAMPLE_RATE:
            return True
        waited = self._utterances.num_samples - max(self._partial_finished, chunk.start)
        return waited >= max(PARTIAL_INTERVAL_S * SAMPLE_RATE, self._partial_took)

    def _add_partial(self, job: Job, transcription: Transcription) -> None:
        before, text = self._partial, transcription.text
        agreed = common_words(before.text, text) if before is not None else ""
        self._partial = Partial(job.utterance, job.chunk.start / SAMPLE_RATE, agreed, text)
        if self._partial != before and (text or before is not None):
            self._events.append(self._partial)

    def _finalize(self) -> None:
        """Add the final texts of utterances that have ended and were decoded, in order."""
        while self._ended and self._decoded is not None and _is_same(self._ended[0], self._decoded[0]):
            chunk, transcription = self._ended.popleft(), self._decoded[1]
            start_s, duration_s = chunk.start / SAMPLE_RATE, len(chunk.waveform) / SAMPLE_RATE
            self._events.append(
                Final(self._index, start_s, start_s + duration_s, transcription.text, _words(transcription, start_s))
            )
            self._index, self._partial = self._index + 1, None


def common_words(first: str, second: str) -> str:
    """Return the words at the start of the second text that are also at the start of the first text.

    >>> common_words("turn the light", "turn the lights off")
    'turn the'
    """
    end = 0
    for word, found in zip(first.split(), re.finditer(r"\S+", second), strict=False):
        if word != found[0]:
            break
        end = found.end()
    return second[:end]


def _is_same(chunk: Chunk, other: Chunk) -> bool:
    return chunk.start == other.start and len(chunk.waveform) == len(other.waveform)


def _words(transcription: Transcription, start_s: float) -> tuple[Word, ...] | None:
    """Return the words of all segments, with times from the beginning of the stream."""
    if any(segment.words is None for segment in transcription.segments):
        return None
    return tuple(shifted(word, start_s) for segment in transcription.segments for word in segment.words or ())
