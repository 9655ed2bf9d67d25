"""Cut long recordings into chunks at pauses, with bounded memory.

A pause is a part of a recording in which :mod:`tiny_audio.inference.voice_activity` finds no speech. If silero-vad is
not installed, a pause is a part in which the audio is soft.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.activity import FRAME, Activity, LearnedActivity, Levels, Loudness, smoothed, speech_level
from tiny_audio.inference.voice_activity import MARGIN_S, silero

PAUSE_S = 0.5
"""A pause of at least this duration ends a chunk. Most pauses between sentences are longer."""
BRIEF_PAUSE_S = 0.1
"""Minimum duration of a brief pause. A chunk that would become too long is cut at a brief pause. The value is the
default of silero-vad's ``min_silence_duration_ms``."""
_MAYBE = 0.1
"""Frames whose probability of speech is below this value can form a pause. Brief pauses are found by level instead."""
_SHORTEST_S = 0.03
"""If a sound between two pauses is shorter than this, it is treated as a click and not as speech."""
_MAX_OVERLAP_S, _MAX_SHARED = 2.0, 0.25
"""Two chunks overlap by at most the first value in seconds, and by at most the second value times the maximum duration
of a chunk."""
_SMOOTHED = 11
"""Number of frames in the moving average that finds the quietest point (0.11 s)."""


def _frames(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE / FRAME)


_PAUSE, _BRIEF_PAUSE, _MARGIN, _SHORTEST = map(_frames, (PAUSE_S, BRIEF_PAUSE_S, MARGIN_S, _SHORTEST_S))


@dataclass(frozen=True)
class ChunkDurations:
    """The durations of chunks."""

    max_s: float
    """A recording of at most this duration is one chunk."""
    longest_s: float
    """Maximum duration of a chunk if the recording is longer than ``max_s``."""
    usual_s: float
    """If a chunk reaches ``longest_s``, it is cut at a brief pause after its first ``usual_s`` seconds, provided that
    there is such a pause."""

    @classmethod
    def up_to(cls, max_s: float) -> ChunkDurations:
        """Return the durations for a model that does not record the durations of its training clips."""
        return cls(max_s, max_s, max_s / 2)


@dataclass(frozen=True)
class Chunk:
    """A part of a recording."""

    start: int
    """Start in samples from the beginning of the recording."""
    waveform: Tensor
    """``[S]`` float32 at 16 kHz."""
    overlap: int = 0
    """Number of samples at the end of this chunk that are repeated at the start of the next chunk."""


def chunk_recording(
    blocks: Iterable[Tensor], durations: ChunkDurations, *, keep_pauses: bool = False
) -> Iterator[Chunk]:
    """Yield the chunks of a recording. If it is longer than ``durations.max_s``, :func:`split_at_pauses` cuts it.

    Args:
        blocks: mono float32 ``[S]`` at 16 kHz, in order.
        durations: the durations of chunks.
        keep_pauses: see :func:`split_at_pauses`.
    """
    iterator, begun, samples = iter(blocks), list[Tensor](), 0
    for block in iterator:
        begun.append(block)
        samples += len(block)
        if samples > durations.max_s * SAMPLE_RATE:
            yield from split_at_pauses(chain(begun, iterator), durations, keep_pauses=keep_pauses)
            return
    if samples:
        yield Chunk(0, torch.cat(begun))


def split_at_pauses(
    blocks: Iterable[Tensor],
    durations: ChunkDurations,
    activity: Activity | None = None,
    *,
    keep_pauses: bool = False,
) -> Iterator[Chunk]:
    """Cut a recording at its pauses, and leave the pauses out.

    A pause of at least 0.5 s always ends a chunk. If a chunk reaches the maximum duration, it is cut at the longest
    brief pause after the usual duration. Without a brief pause, it is cut at a quiet point, and the next chunk begins
    at an earlier quiet point. The two chunks overlap, so that each word near the cut is complete in one of them. The
    chunks do not depend on the sizes of the blocks. Only a few minutes of audio are in memory.

    Args:
        blocks: mono float32 ``[S]`` at 16 kHz, in order.
        durations: the durations of chunks.
        activity: finds the pauses. By default, silero-vad if it is installed, else loudness.
        keep_pauses: keep the pauses. A chunk ends 0.1 s after the start of a pause, and the next chunk begins there.
    """
    activity = activity or _default_activity()
    chunker = _Chunker(int(durations.longest_s * SAMPLE_RATE / FRAME), _frames(durations.usual_s), keep_pauses)
    # Audio that may still be needed, the index of its first sample, and the number of frames whose values are known.
    held, first, judged = torch.zeros(0), 0, 0
    endings: list[Tensor | None] = [None]
    for block in chain(_of_a_second(blocks), endings):
        if block is not None:
            held = torch.cat([held, block])
        for level, probability in activity.end() if block is None else activity.add(block):
            for span in chunker.add_frame(judged, level, probability):
                yield _cut_out(held, first, span)
            judged += 1
        keep = min(chunker.first_needed(judged), judged) * FRAME
        if keep > first:
            held, first = held[keep - first :].clone(), keep
    for span in chunker.end():
        yield _cut_out(held, first, span)


def _of_a_second(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Join short blocks to blocks of at least a second, because :func:`split_at_pauses` copies all held audio for each
    block."""
    gathered: list[Tensor] = []
    for block in blocks:
        gathered.append(block)
        if sum(map(len, gathered)) >= SAMPLE_RATE:
            yield torch.cat(gathered)
            gathered = []
    if gathered:
        yield torch.cat(gathered)


def _default_activity() -> Activity:
    network = silero()
    return Loudness() if network is None else LearnedActivity(network)


@dataclass(frozen=True)
class _Span:
    """A chunk in frames."""

    start: int
    end: int
    overlap: int = 0
    """Number of frames at the end that are repeated in the next chunk."""


def _cut_out(held: Tensor, first: int, span: _Span) -> Chunk:
    start, end = span.start * FRAME - first, span.end * FRAME - first
    return Chunk(span.start * FRAME, held[start:end].clone(), span.overlap * FRAME)


@dataclass
class _Chunker:
    """Receives frames one by one, and yields chunks. Durations are in frames, and positions are indices of frames."""

    longest: int
    usual: int
    keep_pauses: bool
    start: int | None = None
    """The first frame of the current chunk. None if no chunk is open."""
    last: int = -1
    """The last frame that may be speech."""
    free_from: int = 0
    """The first frame at which the next chunk may start."""
    history: list[tuple[float, float]] = field(default_factory=list)
    """Level and probability of speech of each frame since ``start``."""
    waiting: _Span | None = None
    """The previous chunk, if it overlaps the current chunk. If the current chunk has no speech after the overlap, the
    two chunks are merged."""

    def first_needed(self, judged: int) -> int:
        """Return the first frame that may still become part of a chunk."""
        if self.waiting is not None:
            return self.waiting.start
        return self._start_at(judged) if self.start is None else self.start

    def _start_at(self, index: int) -> int:
        """Return the first frame of a chunk whose first speech is in frame ``index``."""
        return self.free_from if self.keep_pauses else max(self.free_from, index - _MARGIN)

    def add_frame(self, index: int, level: float, probability: float) -> Iterator[_Span]:
        """Add the next frame, and yield the chunks that it completes."""
        active = probability >= _MAYBE
        if self.start is None:
            if not active and not self.keep_pauses:
                return
            self.start = self._start_at(index)
            self.history = [(np.inf, 0.0)] * (index - self.start)
        self.history.append((level, probability))
        if active:
            self.last = index
        has_own_speech = self.last >= (self.start if self.waiting is None else self.waiting.end)
        if index - self.last >= _PAUSE and (has_own_speech or not self.keep_pauses):
            yield from self._close(self.last + 1 + _MARGIN)
        elif len(self.history) >= self.longest:
            yield from self._cut()

    def end(self) -> Iterator[_Span]:
        """Yield the last chunk if it is still open at the end of the recording."""
        if self.start is not None:
            end = self.start + len(self.history)
            yield from self._close(end if self.keep_pauses else min(self.last + 1 + _MARGIN, end))

    def _close(self, end: int) -> Iterator[_Span]:
        assert self.start is not None
        is_new = self.waiting is None or self.last >= self.waiting.end
        is_click = sum(probability >= _MAYBE for _, probability in self.history) < _SHORTEST
        if self.keep_pauses or (is_new and not is_click):
            self.free_from = end
            yield from self._emitted(_Span(self.start, end))
        elif self.waiting is not None:
            # The waiting chunk already contains the speech. Only the margin after the speech may be missing.
            self.free_from = min(max(self.waiting.end, end), self.waiting.start + self.longest)
            yield replace(self.waiting, end=self.free_from, overlap=0)
            self.waiting = None
        self.start = None

    def _cut(self) -> Iterator[_Span]:
        """Cut the chunk at a brief pause, or at a quiet point with an overlap."""
        assert self.start is not None
        pause = self._longest_brief_pause()
        if pause is not None:
            cut = next_start = self._quietest(*pause)
        else:
            overlap = min(_frames(_MAX_OVERLAP_S), int(self.longest * _MAX_SHARED))
            cut = self._quietest(self.longest - overlap // 2, self.longest)
            next_start = self._quietest(cut - overlap, cut - overlap // 2)
        span = _Span(self.start, self.start + cut, cut - next_start)
        yield from self._emitted(span)
        self.history = self.history[next_start:]
        self.start = self.free_from = span.start + next_start
        if not span.overlap and self.last < self.start:
            self.start = None

    def _emitted(self, span: _Span) -> Iterator[_Span]:
        """Yield the waiting chunk, if there is one. Then yield ``span``, or let it wait if it has an overlap."""
        if self.waiting is not None:
            yield self.waiting
        self.waiting = span if span.overlap else None
        if not span.overlap:
            yield span

    def _longest_brief_pause(self) -> tuple[int, int] | None:
        """Return the start and the end of the longest brief pause that ends after the usual duration.

        Both are indices in the history. Brief pauses are found by level, because silero-vad reacts too slowly.
        """
        levels = self._smooth_levels(_SMOOTHED // 2)
        threshold = speech_level(levels[np.isfinite(levels)])
        pauses, index = [], 0
        # A kept pause can be very long. Use only its part after the usual duration, so that the chunk is not too short.
        first = self.usual if self.keep_pauses else 1
        for is_speech, group in itertools.groupby((levels > threshold).tolist()):
            begin, index = index, index + len(list(group))
            if not is_speech and index - begin >= _BRIEF_PAUSE and index > self.usual:
                pauses.append((max(begin, first), index))
        return max(pauses, key=lambda pause: pause[1] - pause[0], default=None)

    def _quietest(self, begin: int, end: int) -> int:
        """Return the index of the quietest frame between ``begin`` and ``end`` in the history, after smoothing."""
        return max(1, begin + int(self._smooth_levels(_SMOOTHED)[begin:end].argmin()))

    def _smooth_levels(self, num_frames: int) -> Levels:
        """Return the levels of the history, smoothed over ``num_frames`` (an odd number)."""
        return smoothed(np.array([level for level, _ in self.history]), num_frames)
