"""Find utterances in a running stream by voice activity. Memory and the duration of an utterance are bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.chunking import Chunk
from tiny_audio.inference.voice_activity import CONTINUE, FRAME, MARGIN_S, START

BRIEF_PAUSE_S = 0.2
"""A pause of at least this duration ends an utterance that has reached half of the maximum duration."""
_SHORTEST_S = 0.06
"""Minimum seconds of speech in an utterance. A sound with less speech is treated as a click and left out."""
_SMOOTHED = 3
"""Number of frames in the moving average that finds the softest moment."""
_MARGIN, _SHORTEST, _BRIEF_PAUSE = (round(s * SAMPLE_RATE) for s in (MARGIN_S, _SHORTEST_S, BRIEF_PAUSE_S))


class VoiceActivity(Protocol):
    """Computes each frame's probability of speech. An example is ``SpeechProbabilities`` with one frame per step."""

    def add(self, samples: Tensor) -> list[float]:
        """Add ``samples [S]``, and return the probability of each frame of 512 samples that is now complete."""
        ...


class Utterances:
    """Cuts a stream into utterances.

    An utterance ends after a pause of ``pause_s``. Once it has reached half of ``longest_s``, a pause of
    :data:`BRIEF_PAUSE_S` is enough. If there is no such pause before ``longest_s``, the utterance is cut at the softest
    moment of its second half. The rest begins the next utterance, so no speech is lost. The utterances do not depend on
    the sizes of the blocks.

    Args:
        activity: finds the speech. It must not be shared with other streams.
        longest_s: maximum duration of an utterance.
        pause_s: a pause of at least this duration ends an utterance.
    """

    def __init__(self, activity: VoiceActivity, *, longest_s: float, pause_s: float) -> None:
        self._activity = activity
        self._longest, self._pause = int(longest_s * SAMPLE_RATE), int(pause_s * SAMPLE_RATE)
        self._held, self._first = torch.zeros(0), 0  # audio that may still be needed, and the index of its first sample
        self._judged = 0  # number of samples whose speech probability is known
        self._free_from = 0  # the end of the previous utterance
        self._start: int | None = None
        self._speech_end = 0
        self._active: list[bool] = []  # for each frame of the utterance: whether it is speech

    @property
    def num_samples(self) -> int:
        """Samples received."""
        return self._first + len(self._held)

    @property
    def pause(self) -> int:
        """Number of samples since the last speech; 0 outside an utterance."""
        return 0 if self._start is None else self._judged - self._speech_end

    @property
    def open(self) -> Chunk | None:
        """The received audio of the utterance that is being spoken, without the pause at its end.

        None if no utterance is being spoken.
        """
        if self._start is None or not self._is_speech(self._active):
            return None
        return self._cut_out(self._start, min(self._speech_end + _MARGIN, self._judged))

    def add(self, block: Tensor) -> list[Chunk]:
        """Add samples, and return the utterances that end in them.

        Args:
            block: mono float32 ``[S]`` at 16 kHz.
        """
        self._held = torch.cat([self._held, block])
        ended = []
        for probability in self._activity.add(block):
            self._judged += FRAME
            chunk = self._add_frame(probability)
            if chunk is not None:
                ended.append(chunk)
        needed = max(self._free_from, self._judged - _MARGIN) if self._start is None else self._start
        if needed > self._first:
            self._held, self._first = self._held[needed - self._first :].clone(), needed
        return ended

    def end(self) -> list[Chunk]:
        """Return the utterance that is still open at the end of the stream, if there is one."""
        if self._start is None:
            return []
        chunk = self._close(min(self._speech_end + _MARGIN, self.num_samples))
        return [] if chunk is None else [chunk]

    def _add_frame(self, probability: float) -> Chunk | None:
        begin, end = self._judged - FRAME, self._judged
        if self._start is None:
            if probability < START:
                return None
            self._start, self._active = max(self._free_from, begin - _MARGIN), []
        self._active.append(probability >= CONTINUE)
        if self._active[-1]:
            self._speech_end = end
        is_long = 2 * (end - self._start) >= self._longest
        if end - self._speech_end >= (min(self._pause, _BRIEF_PAUSE) if is_long else self._pause):
            return self._close(min(self._speech_end + _MARGIN, end))
        return self._cut() if end + FRAME - self._start > self._longest else None

    def _close(self, end: int) -> Chunk | None:
        assert self._start is not None
        chunk = self._cut_out(self._start, end) if self._is_speech(self._active) else None
        self._start, self._free_from = None, end
        return chunk

    def _cut(self) -> Chunk | None:
        """End the utterance at the softest moment of its second half, and begin the next one there."""
        assert self._start is not None
        num_frames = (self._judged - self._start) // FRAME // 2
        begin = self._judged - num_frames * FRAME
        half = self._held[begin - self._first : self._judged - self._first]
        powers = half.reshape(num_frames, FRAME).square().mean(1)
        size = min(_SMOOTHED, num_frames)
        softest = int(powers.unfold(0, size, 1).mean(1).argmin()) + size // 2
        cut = begin + softest * FRAME + FRAME // 2
        after = self._active[len(self._active) - num_frames + softest :]
        chunk = self._close(cut)
        if any(after):
            self._start, self._active = cut, after
        return chunk

    def _is_speech(self, active: Sequence[bool]) -> bool:
        return sum(active) * FRAME >= _SHORTEST

    def _cut_out(self, start: int, end: int) -> Chunk:
        return Chunk(start, self._held[start - self._first : end - self._first].clone())
