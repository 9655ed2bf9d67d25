"""Frames: a padded batch of vector sequences over time, such as mel features and encoder outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
"""Sampling rate of every waveform in this package, in Hz."""


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return a bool mask ``[B, size]`` from ``lengths [B]``: True on real positions, False on padding."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


@dataclass(frozen=True)
class Frames:
    """A padded batch of vector sequences over time.

    B clips · T frames of the longest clip · D channels · V CTC labels
    """

    values: Tensor
    """``[B, T, D]``. Values beyond a clip's length are undefined and must not be read."""
    lengths: Tensor
    """``[B]`` int64, the number of frames of each clip."""
    rate: float
    """Frames per second."""
    ctc_logits: Tensor | None = None
    """``[B, T, V]``, the logits of the CTC head. None if the model has no CTC head."""

    def row(self, index: int) -> Frames:
        """Return one clip without its padding."""
        rows, size = slice(index, index + 1), int(self.lengths[index])
        logits = None if self.ctc_logits is None else self.ctc_logits[rows, :size]
        return Frames(self.values[rows, :size], self.lengths[rows], self.rate, logits)

    def mask(self) -> Tensor:
        """Return a bool mask ``[B, T]``, True on real frames."""
        return length_mask(self.lengths, self.values.shape[1])

    def zeroed(self) -> Frames:
        """Return the same frames with zeros in the padding, for layers that read beyond the end of a clip."""
        return replace(self, values=self.values.masked_fill(~self.mask()[..., None], 0))
