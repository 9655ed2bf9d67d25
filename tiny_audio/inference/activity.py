"""Compute each frame's level and speech probability. The probability comes from silero-vad or from the loudness."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference import voice_activity
from tiny_audio.inference.voice_activity import SileroNetwork, SpeechProbabilities

FRAME = SAMPLE_RATE // 100
"""Samples in an analysis frame of 10 ms."""
_SECTION = 30 * SAMPLE_RATE // FRAME
"""Number of frames in a section of 30 s. All frames of a section share one loudness threshold. It is computed from the
levels of this section and of its two neighbors."""
_SMOOTHED = 5
"""Number of frames in the moving average that smooths powers (50 ms)."""
_QUIETEST_DB = -110.0
"""Minimum level of a frame. Without a minimum, the level of digital silence would be minus infinity. The value is below
the noise of 16-bit samples."""
_ABOVE_FLOOR_DB, _BELOW_SPEECH_DB, _RANGE_DB = 8.0, 45.0, 10.0
"""The speech threshold is ``_ABOVE_FLOOR_DB`` above the noise floor, which is the 10th percentile of the levels. The
threshold is limited to a range, from ``_BELOW_SPEECH_DB`` to ``_RANGE_DB`` below the 99th percentile of the levels."""

Levels = NDArray[np.float64]
Frames = list[tuple[float, float]]
"""For each frame: level in decibels relative to full scale, and probability of speech."""


class Activity(Protocol):
    """Computes the :data:`Frames` of a recording in blocks. The result does not depend on the sizes of the blocks."""

    def add(self, block: Tensor) -> Frames:
        """Add a block (mono float32 ``[S]`` at 16 kHz), and return the frames whose values are now known."""

    def end(self) -> Frames:
        """Return the remaining frames. An incomplete last frame is padded with zeros."""


class LearnedActivity:
    """Takes the probability of speech from silero-vad.

    A frame's values are known after at most about a second of later audio.
    """

    def __init__(self, network: SileroNetwork) -> None:
        self._powers, self._probabilities = _Powers(), SpeechProbabilities(network)
        # Powers of the frames whose probability is not known yet, and the index of the first of these frames.
        self._waiting, self._next = np.zeros(0), 0
        # silero-vad's probabilities that may still be needed, and the index of the first of them.
        self._known, self._first = np.zeros(0), 0

    def add(self, block: Tensor) -> Frames:
        """See :class:`Activity`."""
        return self._frames(self._powers.add(block), self._probabilities.add(block))

    def end(self) -> Frames:
        """See :class:`Activity`."""
        probabilities = self._probabilities.end()
        last = float(np.concatenate([[0.0], self._known, probabilities])[-1])
        found = self._frames(self._powers.end(), probabilities)
        # An incomplete last frame is padded to 10 ms, so its middle may come after silero-vad's last frame. If so, use
        # the probability of silero-vad's last frame.
        return found + [(level, last) for level in _decibels(self._waiting).tolist()]

    def _frames(self, powers: Levels, probabilities: list[float]) -> Frames:
        """Return the frames whose probability is known.

        Each frame gets the probability of the silero-vad frame (32 ms) that contains its middle.
        """
        self._waiting = np.concatenate([self._waiting, powers])
        self._known = np.concatenate([self._known, probabilities])
        middles = (self._next + np.arange(len(self._waiting))) * FRAME + FRAME // 2
        owners = middles // voice_activity.FRAME - self._first
        each = self._known[owners[owners < len(self._known)]]
        levels, self._waiting = _decibels(self._waiting[: len(each)]), self._waiting[len(each) :]
        self._next += len(each)
        used = min(self._next * FRAME // voice_activity.FRAME - self._first, len(self._known))
        self._known, self._first = self._known[used:], self._first + used
        return list(zip(levels.tolist(), each.tolist(), strict=True))


class Loudness:
    """Gives a frame the speech probability 1 if it is louder than the background, else 0.

    This class is used if silero-vad is not installed. A frame's values are known after at most a minute of later audio.
    """

    def __init__(self) -> None:
        self._measured = _Powers()
        self._powers, self._first = np.zeros(0), 0  # powers that may still be needed, and the index of the first one
        self._judged = 0  # number of frames whose values were returned

    def add(self, block: Tensor) -> Frames:
        """See :class:`Activity`."""
        self._powers = np.concatenate([self._powers, self._measured.add(block)])
        found: Frames = []
        while self._first + len(self._powers) - self._judged >= 2 * _SECTION:
            found += self._next_section()
        return found

    def end(self) -> Frames:
        """See :class:`Activity`."""
        self._powers = np.concatenate([self._powers, self._measured.end()])
        found: Frames = []
        while self._judged < self._first + len(self._powers):
            found += self._next_section()
        return found

    def _next_section(self) -> Frames:
        stop = min(self._judged + _SECTION, self._first + len(self._powers))
        seen = self._powers[: self._judged + 2 * _SECTION - self._first]
        levels = _decibels(np.convolve(seen, np.ones(_SMOOTHED) / _SMOOTHED, "same"))
        threshold, own = speech_level(levels), levels[self._judged - self._first : stop - self._first]
        self._judged = stop
        dropped = max(self._first, stop - _SECTION)
        self._powers, self._first = self._powers[dropped - self._first :], dropped
        return [(level, float(level > threshold)) for level in own.tolist()]


class _Powers:
    """Computes the mean square of each frame, after a pre-emphasis filter that attenuates low frequencies."""

    def __init__(self) -> None:
        self._held: Levels = np.zeros(0)
        """The last sample of the previous frame, which the filter needs, and the samples of an incomplete frame."""

    def add(self, block: Tensor) -> Levels:
        """Return the powers of the frames that this block completes."""
        samples = block.detach().cpu().double().numpy()
        if not len(self._held) and len(samples):
            samples = np.concatenate([samples[:1], samples])
        self._held = np.concatenate([self._held, samples])
        num_frames = max(0, len(self._held) - 1) // FRAME
        used, self._held = self._held[: num_frames * FRAME + 1], self._held[num_frames * FRAME :]
        return np.asarray(((used[1:] - 0.97 * used[:-1]).reshape(-1, FRAME) ** 2).mean(1)) if num_frames else used[:0]

    def end(self) -> Levels:
        """Return the power of an incomplete last frame, if there is one."""
        rest = self._held[1:] - 0.97 * self._held[:-1] if len(self._held) > 1 else self._held[:0]
        return np.array([(rest**2).sum() / FRAME]) if len(rest) else rest


def levels_of(waveform: Tensor) -> Levels:
    """Return the level of each frame of a waveform ``[S]``. An incomplete last frame is padded with zeros."""
    powers = _Powers()
    return _decibels(np.concatenate([powers.add(waveform), powers.end()]))


def _decibels(powers: Levels) -> Levels:
    return np.asarray(10 * np.log10(np.maximum(powers, 10 ** (_QUIETEST_DB / 10))))


def smoothed(levels: Levels, num_frames: int) -> Levels:
    """Return the moving average of levels over an odd number of frames."""
    padded = np.pad(levels, num_frames // 2, mode="edge")
    return np.asarray(np.convolve(padded, np.ones(num_frames) / num_frames, "valid"))


def speech_level(levels: Levels) -> float:
    """Return the level above which a frame counts as speech, from the levels of the frames around it."""
    floor, loud = np.percentile(levels, [10, 99])
    return float(min(max(floor + _ABOVE_FLOOR_DB, loud - _BELOW_SPEECH_DB), loud - _RANGE_DB))
