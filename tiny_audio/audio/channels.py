"""Mix several channels to one, and check the samples."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from tiny_audio.audio.errors import AudioError, warn_once
from tiny_audio.config import UserError

MAX_CHANNELS = 64
MAX_AMPLITUDE = 65_536.0
"""Largest allowed absolute value of a sample. It is above 1 because some float files use the scale of 16-bit samples.
Much larger values could overflow in later computations."""
_CANCELED = 0.5
"""Channels cancel each other if the quotient ``energy(sum of the channels) / sum(energy of each channel)`` is below
this value. The quotient is 1 for independent channels, more for similar channels, and 0 for two channels of opposite
phase."""
_WINDOW, _STEP = 4_096, 4
"""Channels are compared in windows of 4,096 samples per channel. The comparison uses the differences between every
fourth sample: ``x[4 * (n + 1)] - x[4 * n]``."""
_FLOOR = 1e-4
"""A window counts only if its energy is at least this fraction of the strongest window's energy."""
_CHANNEL_NAMES = {"left": 1, "right": 2}


def parse_channel(channel: str) -> int:
    """Return the number of a channel, counted from 1.

    Args:
        channel: a number, ``left`` or ``right``.

    Raises:
        UserError: the channel is not ``left``, ``right`` or a number from 1 to 64.
    """
    number = _CHANNEL_NAMES.get(channel.lower()) or (int(channel) if channel.isdecimal() else 0)
    if not 1 <= number <= MAX_CHANNELS:
        raise UserError(f"channel {channel!r} is unknown; give left, right, or a number from 1 to {MAX_CHANNELS}")
    return number


class DownMix:
    """Mix blocks to one channel: the mean of all channels, or a chosen channel.

    If channels have opposite phases, such as those of a balanced cable, their mean is almost silent. Where channels
    cancel each other, the strongest channel is used instead.

    Args:
        name: the name of the recording in messages.
        channel: the channel to use, counted from 1. If None, the mean is used.
    """

    def __init__(self, name: str, channel: int | None = None) -> None:
        self._name, self._channel = name, channel

    def __call__(self, block: torch.Tensor) -> torch.Tensor:
        """Mix a block ``[frames, channels]`` to ``[frames]``.

        Raises:
            AudioError: there is no such channel, or a sample is NaN, infinite or out of range.
        """
        self.check(block)
        channels = block.shape[1]
        if self._channel is not None:
            if self._channel > channels:
                has = f"has {channels} channel{'s' * (channels > 1)}"
                raise AudioError(
                    "no_such_channel",
                    f"{self._name}: {has}; channel {self._channel} does not exist",
                )
            return block[:, self._channel - 1]
        if channels == 1:
            return block[:, 0]
        mean = block @ block.new_full((channels,), 1 / channels)
        canceled, energies = _canceled(block)
        if not bool(canceled.any()):
            return mean
        stronger = int(energies[canceled].sum(dim=0).argmax())
        warn_once(
            f"{self._name}: its channels have opposite phases and cancel each other; channel {stronger + 1} is used"
            + ("" if bool(canceled.all()) else " where they cancel")
        )
        # Use the strongest channel in canceled windows and adjacent windows. Fade at the borders to avoid clicks.
        share = F.max_pool1d(canceled.float()[None, None], 3, stride=1, padding=1)
        share = F.interpolate(share, size=len(canceled) * _WINDOW, mode="linear")[0, 0, : len(block)]
        return torch.lerp(mean, block[:, stronger], share)

    def check(self, block: torch.Tensor) -> None:
        """Check samples before mixing and resampling, which would spread a bad sample to other samples.

        Raises:
            AudioError: a sample is NaN, infinite or out of range.
        """
        low, high = (float(bound) for bound in torch.aminmax(block))  # NaN if a sample is NaN
        if not math.isfinite(high - low):
            raise AudioError("non_finite", f"{self._name}: contains NaN or infinite samples")
        if max(high, -low) > MAX_AMPLITUDE:
            raise AudioError(
                "out_of_range", f"{self._name}: contains samples above {MAX_AMPLITUDE:,.0f} times full scale"
            )


def _canceled(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the windows in which the channels cancel each other, and the energies of all windows and channels.

    Args:
        block: ``[frames, channels]``.

    Returns:
        ``[windows]`` of bool, and ``[windows, channels]``.
    """
    frames, channels = block.shape
    # Compare changes between samples, not the samples themselves. All channels may have the same hum or constant
    # offset, which would make the samples look similar.
    changes = block[_STEP::_STEP] - block[:-_STEP:_STEP]
    windows = -(-frames // _WINDOW)
    changes = F.pad(changes, (0, 0, 0, windows * (_WINDOW // _STEP) - len(changes))).view(windows, -1, channels)
    products = changes.mT @ changes  # [windows, channels, channels]
    energies = products.diagonal(dim1=1, dim2=2)
    whole, joint = energies.sum(dim=1), products.sum(dim=(1, 2))
    return (joint < _CANCELED * whole) & (whole > _FLOOR * whole.max()), energies
