"""Cut long recordings into chunks at pauses. Pauses are found by loudness. The memory needed is bounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiny_audio.frames import SAMPLE_RATE

FRAME = SAMPLE_RATE // 100
"""Samples in an analysis frame of 10 ms."""

PAUSE_S = 0.5
"""Minimum duration of a pause that ends a chunk. Pauses between sentences are longer, and pauses between words are
shorter."""
MARGIN_S = 0.1
"""Duration of the part of a pause that is kept at each end of a chunk, because it may contain soft consonants."""
_SHORTEST_S = 0.03
"""A sound between two pauses is treated as a click, not as speech, if it is shorter than this."""
_STRETCH = 3000
"""Number of frames in a stretch, which has one threshold. The threshold is computed from the stretch and from the same
number of frames before and after it."""
# Number of frames in the moving average that smooths powers (50 ms).
_SMOOTHED = 5
_PAUSE, _MARGIN, _SHORTEST = (round(s * SAMPLE_RATE / FRAME) for s in (PAUSE_S, MARGIN_S, _SHORTEST_S))

_QUIETEST_DB = -110.0
"""Minimum level of a frame, so that digital silence has a finite level. It is below the noise of 16-bit samples."""
_ABOVE_FLOOR_DB, _BELOW_SPEECH_DB, _RANGE_DB = 8.0, 45.0, 10.0
"""A frame is speech if it is at least ``_ABOVE_FLOOR_DB`` above the noise floor and at most ``_BELOW_SPEECH_DB`` below
the loudest frames. If the difference between the noise floor and the loudest frames is small, any frame that is at most
``_RANGE_DB`` below the loudest frames is speech."""

Levels = NDArray[np.float64]


@dataclass(frozen=True)
class Chunk:
    """A part of a recording."""

    start: int
    """Start in samples from the beginning of the recording."""
    waveform: Tensor
    """``[S]`` float32 at 16 kHz."""


def chunk_recording(blocks: Iterable[Tensor], max_duration_s: float) -> Iterator[Chunk]:
    """Yield a recording of at most ``max_duration_s`` as one chunk, or the chunks of a longer recording.

    Args:
        blocks: mono float32 ``[S]`` at 16 kHz, in order.
        max_duration_s: maximum duration of a chunk.
    """
    iterator, begun, samples = iter(blocks), list[Tensor](), 0
    for block in iterator:
        begun.append(block)
        samples += len(block)
        if samples > max_duration_s * SAMPLE_RATE:
            yield from split_at_pauses(chain(begun, iterator), max_duration_s)
            return
    if samples:
        yield Chunk(0, torch.cat(begun))


def split_at_pauses(blocks: Iterable[Tensor], max_duration_s: float) -> Iterator[Chunk]:
    """Cut a recording at its pauses, and leave the pauses out.

    If there is no pause for ``max_duration_s``, the recording is cut at the softest moment of the second half of that
    time. The chunks do not depend on how the recording is divided into blocks. Only a few minutes of audio are in
    memory.

    Args:
        blocks: mono float32 ``[S]`` at 16 kHz, in order.
        max_duration_s: maximum duration of a chunk.
    """
    chunker = _Chunker(int(max_duration_s * SAMPLE_RATE / FRAME))
    held, first = torch.zeros(0), 0  # audio that may still be needed, and the index of its first sample
    powers, first_power = np.zeros(0), 0  # powers that may still be needed, and the index of their first frame
    measured = judged = 0
    endings: list[Tensor | None] = [None]
    for block in chain(blocks, endings):
        if block is not None:
            held = torch.cat([held, block])
        new = held[max(0, measured * FRAME - 1 - first) :]
        powers = np.concatenate([powers, _powers(new, has_previous=measured > 0, ended=block is None)])
        measured = first_power + len(powers)
        while measured - judged >= 2 * _STRETCH or (block is None and judged < measured):
            stop = min(judged + _STRETCH, measured)
            smooth = _levels(powers[: judged + 2 * _STRETCH - first_power])
            speech_db = _threshold(smooth)
            for index in range(judged, stop):
                level = float(smooth[index - first_power])
                for start, end in chunker.add_frame(index, level, level > speech_db):
                    yield _cut_out(held, first, start, end)
            judged = stop
            dropped = max(first_power, judged - _STRETCH)
            powers, first_power = powers[dropped - first_power :], dropped
            keep = min(chunker.first_needed(judged), judged) * FRAME - 1
            if keep > first:
                held, first = held[keep - first :].clone(), keep
    for start, end in chunker.end():
        yield _cut_out(held, first, start, end)


def _cut_out(held: Tensor, first: int, start: int, end: int) -> Chunk:
    return Chunk(start * FRAME, held[start * FRAME - first : end * FRAME - first].clone())


def _powers(audio: Tensor, *, has_previous: bool, ended: bool) -> Levels:
    """Return the mean square of each frame, after a pre-emphasis that attenuates rumble.

    Args:
        audio: samples of the frames. If ``has_previous`` is True, the sample before the first frame comes first.
        has_previous: whether ``audio`` begins with the sample before the first frame.
        ended: whether the recording has ended, so that an incomplete last frame is padded with zeros.
    """
    samples = audio.double().numpy()
    sharpened = samples[1:] - 0.97 * samples[:-1]
    if not has_previous:
        sharpened = np.concatenate([samples[:1] * 0.03, sharpened])
    if ended:
        sharpened = np.pad(sharpened, (0, -len(sharpened) % FRAME))
    whole = sharpened[: len(sharpened) // FRAME * FRAME].reshape(-1, FRAME)
    return np.asarray((whole**2).mean(1))


def _levels(powers: Levels) -> Levels:
    """Return the levels in decibels relative to full scale, smoothed over 50 ms."""
    smooth = np.convolve(powers, np.ones(_SMOOTHED) / _SMOOTHED, "same")
    return np.asarray(10 * np.log10(np.maximum(smooth, 10 ** (_QUIETEST_DB / 10))))


def _threshold(levels: Levels) -> float:
    """Return the level above which a frame is speech."""
    floor, loud = np.percentile(levels, [10, 99])
    return float(min(max(floor + _ABOVE_FLOOR_DB, loud - _BELOW_SPEECH_DB), loud - _RANGE_DB))


@dataclass
class _Chunker:
    """Receives frames one by one, and yields chunks as (first frame, end)."""

    longest: int
    start: int | None = None
    last: int = 0
    """The last frame with speech."""
    free_from: int = 0
    """The end of the previous chunk."""
    history: list[tuple[float, bool]] = field(default_factory=list)
    """Level of each frame since ``start``, and whether the frame is speech."""

    def first_needed(self, judged: int) -> int:
        """Return the first frame that may still become part of a chunk."""
        return max(self.free_from, judged - _MARGIN) if self.start is None else self.start

    def add_frame(self, index: int, level: float, active: bool) -> Iterator[tuple[int, int]]:
        """Add the next frame, and yield a chunk if this frame closes it."""
        if self.start is None:
            if not active:
                return
            self.start = max(self.free_from, index - _MARGIN)
            self.history = [(np.inf, False)] * (index - self.start)
        self.history.append((level, active))
        if active:
            self.last = index
        if index - self.last >= _PAUSE:
            yield from self._close(self.last + 1 + _MARGIN)
        elif len(self.history) >= self.longest:
            yield from self._cut()

    def end(self) -> Iterator[tuple[int, int]]:
        """Yield the last chunk if it is still open at the end of the recording."""
        if self.start is not None:
            yield from self._close(min(self.last + 1 + _MARGIN, self.start + len(self.history)))

    def _close(self, end: int) -> Iterator[tuple[int, int]]:
        assert self.start is not None
        if sum(active for _, active in self.history) >= _SHORTEST:
            self.free_from = end
            yield self.start, end
        self.start = None

    def _cut(self) -> Iterator[tuple[int, int]]:
        """Cut the chunk at the softest moment of its second half."""
        assert self.start is not None
        levels = np.array([level for level, _ in self.history[self.longest // 2 :]])
        smooth = np.convolve(levels, np.ones(11) / 11, "valid") if len(levels) >= 11 else levels
        offset = self.longest // 2 + int(smooth.argmin()) + (len(levels) - len(smooth)) // 2
        self.free_from = cut = self.start + max(1, offset)
        yield self.start, cut
        self.history = self.history[cut - self.start :]
        self.start = cut if any(active for _, active in self.history) else None
