"""Resample audio to 16 kHz, as a whole waveform or block by block."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import torch

from tiny_audio.frames import SAMPLE_RATE

_FILTER_WIDTH = 8
"""Half the width of the resampling filter, in samples of the lower rate: 6 in torchaudio, plus a margin of 2."""


def _ratio(rate: int) -> Fraction:
    # The numerator of the ratio is the filter's number of phases. For 44,101 Hz, the exact numerator is 16,000. So many
    # phases would need gigabytes, so the ratio is rounded.
    return Fraction(SAMPLE_RATE, rate).limit_denominator(1_000)


def resampled(waveform: torch.Tensor, rate: int) -> torch.Tensor:
    """Resample a waveform ``[samples]`` to 16 kHz."""
    if rate == SAMPLE_RATE:
        return waveform
    import torchaudio

    ratio = _ratio(rate)
    waveform_16k: torch.Tensor = torchaudio.functional.resample(waveform, ratio.denominator, ratio.numerator)
    return waveform_16k


def resampled_blocks(blocks: Iterator[torch.Tensor], rate: int) -> Iterator[torch.Tensor]:
    """Resample block by block. The joined result equals :func:`resampled` of the joined blocks."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    ratio = _ratio(rate)
    period, made = ratio.denominator, ratio.numerator  # `period` samples become `made` samples
    # Number of samples that the filter needs on each side, rounded up to whole periods.
    reach = -(-(_FILTER_WIDTH * max(1, -(-period // made)) + 1) // period) * period
    held = torch.zeros(0)
    before = 0  # number of samples at the start of `held` whose result was yielded; the filter still needs them
    for block in blocks:
        held = torch.cat([held, block])
        after = (len(held) - reach) // period * period
        if after <= before:
            continue
        yield resampled(held, rate)[before // period * made : after // period * made]
        kept = max(0, after - reach)
        held, before = held[kept:], after - kept
    if len(held):
        yield resampled(held, rate)[before // period * made :]
