"""Reverberation with impulse responses from files, or with random impulse responses."""

from __future__ import annotations

import torch
from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor

from tiny_audio.config import NO_IDENTITY, LocalPath
from tiny_audio.data.augmentation.section import Draw, WaveformAugmentation, ascending, rms
from tiny_audio.frames import SAMPLE_RATE

_MAX_DECAY_S = 10.0
"""Maximum reverberation time, about that of a cathedral."""


class ReverberationConfig(WaveformAugmentation):
    """Reverberation: convolution with recorded or simulated impulse responses of rooms (Ko et al., ICASSP 2017)."""

    folder: LocalPath = Field(json_schema_extra=NO_IDENTITY)
    """Folder of audio files, at any depth. Each file is one impulse response. Channels are averaged. A run records the
    names and sizes of the files, because they affect the weights."""
    probability: float = Field(default=0.3, gt=0, le=1)
    """Share of the clips that get reverberation."""

    def apply(self, waveform: Tensor, draw: Draw) -> Tensor:
        """See :meth:`WaveformAugmentation.apply`. Length, loudness and the time of the direct sound stay the same."""
        response = draw.sound(self.folder)
        if response is None:
            return waveform
        arrival = int(response.abs().argmax())  # the direct sound is the loudest
        return _reverberant(waveform, response, arrival)

    def sounds_folder(self) -> str:
        """See :meth:`WaveformAugmentation.sounds_folder`."""
        return self.folder


class SimulatedReverberationConfig(WaveformAugmentation):
    """Reverberation of random rooms, without files: the direct sound, followed by noise that decays exponentially
    (Polack's statistical model of late reverberation, see Habets 2007)."""

    decay_s: tuple[PositiveFloat, PositiveFloat] = (0.1, 0.6)
    """Range of the reverberation time RT60: the time in which sound decays by 60 dB. A living room has about 0.4 s."""
    direct_to_reverberant_db: tuple[float, float] = (0.0, 15.0)
    """Range of the energy ratio of direct sound to reverberation. A speaker far from the microphone has a low ratio."""
    probability: float = Field(default=0.3, gt=0, le=1)
    """Share of the clips that get reverberation."""

    @field_validator("decay_s", "direct_to_reverberant_db")
    @classmethod
    def _check_range(cls, span: tuple[float, float]) -> tuple[float, float]:
        return ascending(span)

    @field_validator("decay_s")
    @classmethod
    def _check_decay(cls, span: tuple[float, float]) -> tuple[float, float]:
        if span[1] > _MAX_DECAY_S:
            raise ValueError(f"must be at most {_MAX_DECAY_S:g} s, not {span[1]:g}")
        return span

    def apply(self, waveform: Tensor, draw: Draw) -> Tensor:
        """See :meth:`WaveformAugmentation.apply`. Length, loudness and the time of the direct sound stay the same."""
        decay_s = draw.rng.uniform(*self.decay_s)
        ratio_db = draw.rng.uniform(*self.direct_to_reverberant_db)
        generator = torch.Generator().manual_seed(draw.rng.getrandbits(63))
        length = max(2, int(decay_s * SAMPLE_RATE))
        # The energy falls by 60 dB, so the amplitude falls by a factor of 1,000.
        tail = torch.randn(length, generator=generator) * torch.logspace(0, -3, length)
        tail[0] = 0.0
        tail *= 10 ** (-ratio_db / 20) / tail.pow(2).sum().sqrt()
        tail[0] = 1.0  # the direct sound
        return _reverberant(waveform, tail, arrival=0)


def _reverberant(waveform: Tensor, response: Tensor, arrival: int) -> Tensor:
    """Convolve with an impulse response whose direct sound is at sample ``arrival``. Keep length and loudness."""
    import torchaudio

    wet = torchaudio.functional.fftconvolve(waveform, response)[arrival : arrival + len(waveform)]
    return wet * (rms(waveform) / rms(wet)) if rms(wet) > 0 else waveform
