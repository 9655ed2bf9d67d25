"""Silence before and after clips."""

from __future__ import annotations

import random

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tiny_audio.data.augmentation.section import Draw, WaveformAugmentation
from tiny_audio.frames import SAMPLE_RATE


class SilenceConfig(WaveformAugmentation):
    """Silence of random length before and after the clip. If all training clips start with speech, a model may fail
    on recordings that start with silence."""

    max_before_s: float = Field(default=0.3, ge=0, le=10)
    """Maximum silence before the clip."""
    max_after_s: float = Field(default=0.3, ge=0, le=10)
    """Maximum silence after the clip."""
    probability: float = Field(default=0.5, gt=0, le=1)
    """Share of the clips that get silence. The other clips stay unchanged, so that the model learns both cases."""

    @model_validator(mode="after")
    def _check_any(self) -> SilenceConfig:
        if not self.max_added_s():
            raise ValueError(
                "max_before_s and max_after_s are both 0, so nothing is added; increase one, or remove the section"
            )
        return self

    def max_added_s(self) -> float:
        """See :meth:`WaveformAugmentation.max_added_s`."""
        return self.max_before_s + self.max_after_s

    def apply(self, waveform: Tensor, draw: Draw) -> Tensor:
        """See :meth:`WaveformAugmentation.apply`. Silence does not make a clip longer than ``max_duration_s``."""
        before_s, after_s = self._silences_s(len(waveform) / SAMPLE_RATE, draw.rng, draw.max_duration_s)
        return torch.nn.functional.pad(waveform, (int(before_s * SAMPLE_RATE), int(after_s * SAMPLE_RATE)))

    def added_s(self, duration_s: float, rng: random.Random, max_duration_s: float) -> float:
        """See :meth:`WaveformAugmentation.added_s`."""
        return sum(self._silences_s(duration_s, rng, max_duration_s))

    def _silences_s(self, duration_s: float, rng: random.Random, max_duration_s: float) -> tuple[float, float]:
        """Draw the silence before and after a clip."""
        before_s, after_s = rng.uniform(0, self.max_before_s), rng.uniform(0, self.max_after_s)
        share = min(1.0, max(0.0, max_duration_s - duration_s) / (before_s + after_s or 1.0))
        return share * before_s, share * after_s
