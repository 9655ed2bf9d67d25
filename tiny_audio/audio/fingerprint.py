"""Fingerprints of audio: pairs of spectral peaks, which survive compression, noise and changes of level.

The method is from A. Wang, "An industrial-strength audio search algorithm", ISMIR 2003. A landmark is a pair of peaks:
their frequencies and the time between them. Two clips contain the same recording if many of their landmarks match with
the same time offset. Two recordings of the same words do not match.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_WINDOW, _HOP = 1024, 256
_BLOCK_FRAMES = 4096
_LOWEST, _HIGHEST = 16, 240
"""Range of frequency bins: 250 to 3,750 Hz. Telephone audio and audio with a low bit rate still contain this range."""
_NEAR_FRAMES, _NEAR_BINS = 4, 8
"""A peak is the largest value within this many frames and bins on each side."""
_FLOOR_DB = 45.0
"""Peaks more than this many dB below the clip's highest peak are ignored, because noise and compression change them."""
_FAN_OUT = 6
"""Each peak is paired with at most this many of the following peaks."""
_MAX_FRAMES, _MAX_BINS = 63, 127
"""Largest distance between the two peaks of a pair, in frames and in bins."""


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of one clip, in order of time."""

    hashes: NDArray[np.uint32]
    """``[L]``: the two frequencies of each pair and the time between its peaks, packed into one integer."""
    frames: NDArray[np.int32]
    """``[L]``: time of the first peak of each pair, in hops of 16 ms."""

    def __len__(self) -> int:
        return len(self.hashes)


def landmarks(waveform: Tensor) -> Landmarks:
    """Return the landmarks of a clip, which is mono float32 ``[S]`` at 16 kHz. Silence has no landmarks."""
    frames, bins = _peaks(waveform)
    hashes: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    times: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for step in range(1, _FAN_OUT + 1):
        apart, change = frames[step:] - frames[:-step], bins[step:] - bins[:-step]
        kept = (apart > 0) & (apart <= _MAX_FRAMES) & (np.abs(change) <= _MAX_BINS)
        hashes.append(((bins[:-step] << 14) | ((change + _MAX_BINS) << 6) | apart)[kept])
        times.append(frames[:-step][kept])
    found, when = np.concatenate(hashes), np.concatenate(times)
    return Landmarks(found.astype(np.uint32), when.astype(np.int32))


def _peaks(waveform: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the frame and bin of each peak, ordered by frame, then by bin."""
    if len(waveform) < _WINDOW:
        waveform = F.pad(waveform, (0, _WINDOW - len(waveform)))
    window = torch.hann_window(_WINDOW, device=waveform.device)
    num_frames = 1 + (len(waveform) - _WINDOW) // _HOP
    blocks = [  # To save memory, compute the spectrum in blocks, and keep only the needed bins of each block.
        torch.stft(
            waveform[first * _HOP : (min(first + _BLOCK_FRAMES, num_frames) - 1) * _HOP + _WINDOW],
            *(_WINDOW, _HOP),
            window=window,
            center=False,
            return_complex=True,
        )[_LOWEST:_HIGHEST].abs()
        for first in range(0, num_frames, _BLOCK_FRAMES)
    ]
    levels = torch.cat(blocks, dim=1).T  # [T, bins]
    # Pooling over each axis separately gives the same result with a fraction of the work.
    largest = F.max_pool1d(levels, 2 * _NEAR_BINS + 1, stride=1, padding=_NEAR_BINS)
    largest = F.max_pool1d(largest.T, 2 * _NEAR_FRAMES + 1, stride=1, padding=_NEAR_FRAMES).T
    floor = levels.max() * 10 ** (-_FLOOR_DB / 20)
    found = torch.nonzero((levels == largest) & (levels > floor)).cpu().numpy()
    return found[:, 0], found[:, 1]
