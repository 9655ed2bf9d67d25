"""Where a long recording is cut into pieces that a model takes: at pauses, found by loudness, in bounded memory."""

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
"""Samples of a frame, 10 ms."""

PAUSE_S = 0.5
"""A pause as long as this ends a piece: sentences are apart by more, words by less."""
MARGIN_S = 0.1
"""What stays of a pause on either side of it: sounds too soft to count as speech lie there."""
_SHORTEST_S = 0.03
"""Less sound than this between two pauses is a click."""
_STRETCH = 3000
"""Frames that get one threshold, from what is heard in them and in as many before and after."""
_SMOOTHED = 5
_PAUSE, _MARGIN, _SHORTEST = (round(s * SAMPLE_RATE / FRAME) for s in (PAUSE_S, MARGIN_S, _SHORTEST_S))

_QUIETEST_DB = -110.0
"""Below the noise of 16-bit samples."""
_ABOVE_FLOOR_DB, _BELOW_SPEECH_DB, _RANGE_DB = 8.0, 45.0, 10.0
"""Speech is so much above the noise, or at most so much below the loudest; where these are closer than the last, no
pause can be told from speech, and all counts as speech."""

Levels = NDArray[np.float64]


@dataclass(frozen=True)
class Piece:
    """A part of a recording."""

    start: int
    """In samples from the beginning of the recording."""
    waveform: Tensor
    """``[S]`` float32 at 16 kHz."""


def split(blocks: Iterable[Tensor], longest_s: float) -> Iterator[Piece]:
    """Cut a recording at its pauses, and leave them out; where none comes for ``longest_s``, at the softest moment.

    The pieces are the same however the recording is divided into blocks, of which some minutes are held at most.

    Args:
        blocks: mono float32 ``[S]`` at 16 kHz, in order.
        longest_s: of a piece.
    """
    pieces = _Pieces(int(longest_s * SAMPLE_RATE / FRAME))
    held, first = torch.zeros(0), 0  # the audio that may still be needed, and the number of its first sample
    powers, before = np.zeros(0), 0  # the same of frames
    measured = judged = 0
    endings: list[Tensor | None] = [None]
    for block in chain(blocks, endings):
        if block is not None:
            held = torch.cat([held, block])
        new = held[max(0, measured * FRAME - 1 - first) :]
        powers = np.concatenate([powers, _powers(new, has_previous=measured > 0, ended=block is None)])
        measured = before + len(powers)
        while measured - judged >= 2 * _STRETCH or (block is None and judged < measured):
            stop = min(judged + _STRETCH, measured)
            smooth = _levels(powers[: judged + 2 * _STRETCH - before])
            speech_db = _threshold(smooth)
            for index in range(judged, stop):
                level = float(smooth[index - before])
                for start, end in pieces.hear(index, level, level > speech_db):
                    yield _piece(held, first, start, end)
            judged = stop
            dropped = max(before, judged - _STRETCH)
            powers, before = powers[dropped - before :], dropped
            keep = min(pieces.needed(judged), judged) * FRAME - 1
            if keep > first:
                held, first = held[keep - first :].clone(), keep
    for start, end in pieces.end():
        yield _piece(held, first, start, end)


def _piece(held: Tensor, first: int, start: int, end: int) -> Piece:
    return Piece(start * FRAME, held[start * FRAME - first : end * FRAME - first].clone())


def _powers(audio: Tensor, *, has_previous: bool, ended: bool) -> Levels:
    """Mean square of each frame with the low frequencies taken down, where rumble is; a sample before the first frame
    comes along where there is one."""
    samples = audio.double().numpy()
    sharpened = samples[1:] - 0.97 * samples[:-1]
    if not has_previous:
        sharpened = np.concatenate([samples[:1] * 0.03, sharpened])
    if ended:
        sharpened = np.pad(sharpened, (0, -len(sharpened) % FRAME))
    whole = sharpened[: len(sharpened) // FRAME * FRAME].reshape(-1, FRAME)
    return np.asarray((whole**2).mean(1))


def _levels(powers: Levels) -> Levels:
    """Decibels below full scale, over 50 ms."""
    smooth = np.convolve(powers, np.ones(_SMOOTHED) / _SMOOTHED, "same")
    return np.asarray(10 * np.log10(np.maximum(smooth, 10 ** (_QUIETEST_DB / 10))))


def _threshold(levels: Levels) -> float:
    """Above it is speech."""
    floor, loud = np.percentile(levels, [10, 99])
    return float(min(max(floor + _ABOVE_FLOOR_DB, loud - _BELOW_SPEECH_DB), loud - _RANGE_DB))


@dataclass
class _Pieces:
    """Frames, one by one -> pieces as (first frame, end)."""

    longest: int
    start: int | None = None
    last: int = 0
    """The last frame with speech."""
    free_from: int = 0
    """Where the piece before ended."""
    history: list[tuple[float, bool]] = field(default_factory=list)
    """Level and activity of each frame since ``start``."""

    def needed(self, judged: int) -> int:
        """The first frame that may still become part of a piece."""
        return max(self.free_from, judged - _MARGIN) if self.start is None else self.start

    def hear(self, index: int, level: float, active: bool) -> Iterator[tuple[int, int]]:
        """One frame on; gives the piece that it closes."""
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
        """The piece that the end closes."""
        if self.start is not None:
            yield from self._close(min(self.last + 1 + _MARGIN, self.start + len(self.history)))

    def _close(self, end: int) -> Iterator[tuple[int, int]]:
        assert self.start is not None
        if sum(active for _, active in self.history) >= _SHORTEST:
            self.free_from = end
            yield self.start, end
        self.start = None

    def _cut(self) -> Iterator[tuple[int, int]]:
        assert self.start is not None
        levels = np.array([level for level, _ in self.history[self.longest // 2 :]])
        smooth = np.convolve(levels, np.ones(11) / 11, "valid") if len(levels) >= 11 else levels
        offset = self.longest // 2 + int(smooth.argmin()) + (len(levels) - len(smooth)) // 2
        self.free_from = cut = self.start + max(1, offset)
        yield self.start, cut
        self.history = self.history[cut - self.start :]
        self.start = cut if any(active for _, active in self.history) else None


def whole_or_split(blocks: Iterable[Tensor], whole_s: float, longest_s: float) -> Iterator[Piece]:
    """A recording of at most ``whole_s`` as it is; a longer one by :func:`split`."""
    iterator, begun, samples = iter(blocks), list[Tensor](), 0
    for block in iterator:
        begun.append(block)
        samples += len(block)
        if samples > whole_s * SAMPLE_RATE:
            yield from split(chain(begun, iterator), longest_s)
            return
    if samples:
        yield Piece(0, torch.cat(begun))
