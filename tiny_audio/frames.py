"""Frames: a padded batch of vectors in time, such as features and encoder outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
"""Hz of every waveform in this package."""


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """True where a position is real: ``lengths [B]`` -> bool ``[B, size]``."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


@dataclass(frozen=True)
class Frames:
    """A padded batch of vectors in time.

    B clips · T frames of the longest clip · D channels · V CTC labels
    """

    values: Tensor
    """``[B, T, D]``. Values beyond a clip's length are undefined and must not be read."""
    lengths: Tensor
    """``[B]`` int64, the number of frames of each clip."""
    rate: float
    """Frames per second."""
    ctc_logits: Tensor | None = None
    """``[B, T, V]``; None without a CTC head."""

    def row(self, index: int) -> Frames:
        """One clip, without its padding."""
        rows, size = slice(index, index + 1), int(self.lengths[index])
        logits = None if self.ctc_logits is None else self.ctc_logits[rows, :size]
        return Frames(self.values[rows, :size], self.lengths[rows], self.rate, logits)

    def mask(self) -> Tensor:
        """Bool ``[B, T]``, True on real frames."""
        return length_mask(self.lengths, self.values.shape[1])

    def zeroed(self) -> Frames:
        """The same frames with zeros beyond each length, for layers that read across the end of a clip."""
        return replace(self, values=self.values.masked_fill(~self.mask()[..., None], 0))
