"""Noise at a random signal-to-noise ratio: recorded noise and white noise."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from pydantic import Field, field_validator
from torch import Tensor

from tiny_audio.config import NO_IDENTITY, LocalPath
from tiny_audio.data.augmentation.section import Draw, WaveformAugmentation, ascending, rms


class AddedNoise(WaveformAugmentation, ABC):
    """Base class of the sections that add noise at a random signal-to-noise ratio."""

    snr_db: tuple[float, float]
    """Minimum and maximum signal-to-noise ratio. A ratio between them is drawn for each clip."""

    @field_validator("snr_db")
    @classmethod
    def _check_snr(cls, snr: tuple[float, float]) -> tuple[float, float]:
        return ascending(snr)

    @abstractmethod
    def noise(self, length: int, draw: Draw) -> Tensor | None:
        """Return noise ``[length]`` of any loudness, which :meth:`apply` scales. Return None to add no noise."""

    def apply(self, waveform: Tensor, draw: Draw) -> Tensor:
        """See :meth:`WaveformAugmentation.apply`. Noise that consists of zeros changes nothing."""
        snr_db = draw.rng.uniform(*self.snr_db)
        noise = self.noise(len(waveform), draw)
        if noise is None:
            return waveform
        own = rms(noise)
        return waveform + (noise * (draw.loudness / own * 10 ** (-snr_db / 20)) if own else noise)


class NoiseConfig(AddedNoise):
    """Recorded noise, such as MUSAN (Snyder et al. 2015, arXiv 1510.08484). A random part of a random file is added."""

    folder: LocalPath = Field(json_schema_extra=NO_IDENTITY)
    """Folder of audio files, at any depth. A run records the names and sizes of the files, because they affect the
    weights."""
    snr_db: tuple[float, float] = (5.0, 25.0)
    """Minimum and maximum signal-to-noise ratio. A ratio between them is drawn for each clip."""
    probability: float = Field(default=0.5, gt=0, le=1)
    """Share of the clips that get noise."""

    def noise(self, length: int, draw: Draw) -> Tensor | None:
        """See :meth:`AddedNoise.noise`. A sound that is shorter than the clip is looped."""
        start = draw.rng.random()
        sound = draw.sound(self.folder)
        if sound is None:
            return None
        if len(sound) >= length:
            first = int(start * (len(sound) - length + 1))
            return sound[first : first + length]
        turned = sound.roll(-int(start * len(sound)))
        return turned.repeat(-(-length // len(sound)))[:length]

    def sounds_folder(self) -> str:
        """See :meth:`WaveformAugmentation.sounds_folder`."""
        return self.folder


class WhiteNoiseConfig(AddedNoise):
    """White noise: all frequencies have equal power."""

    snr_db: tuple[float, float] = (15.0, 40.0)
    """Minimum and maximum signal-to-noise ratio. A ratio between them is drawn for each clip."""
    probability: float = Field(default=0.5, gt=0, le=1)
    """Share of the clips that get white noise."""

    def noise(self, length: int, draw: Draw) -> Tensor:
        """See :meth:`AddedNoise.noise`."""
        return torch.randn(length, generator=torch.Generator().manual_seed(draw.seed % 2**63))
