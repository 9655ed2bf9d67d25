"""The Provider contract: a recognizer that is not ours, asked for one clip at a time."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import Field, PositiveInt
from torch import Tensor

from tiny_audio.config import NO_IDENTITY, Config, RunFailed, UserError
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.registry import Registry


@dataclass(frozen=True)
class ProviderWord:
    """A word and where it is."""

    text: str
    start_s: float
    end_s: float
    confidence: float | None = None
    """From 0 to 1, where the provider says it."""


@dataclass(frozen=True)
class ProviderTranscript:
    """What a provider heard in a clip."""

    text: str
    """Empty only where the provider itself says that it heard nothing."""
    words: tuple[ProviderWord, ...] | None = None
    """None where the provider gives no times."""


@dataclass(frozen=True)
class Price:
    """What an hour of audio costs, and how that is known."""

    usd_per_hour: float
    source: str


class ProviderError(RunFailed):
    """There is no transcript of this clip; another may fare better, and so may this one at another time."""


class ProviderRefusedError(UserError):
    """No clip will be transcribed: a refused key, an empty account, a model or an address that is not there."""


class ProviderConfig(Config, ABC):
    """Base of every provider's config."""

    name: str
    concurrency: PositiveInt = Field(default=4, json_schema_extra=NO_IDENTITY)
    """Clips that are asked for at a time; keep to what your plan allows."""
    usd_per_hour: float | None = Field(default=None, ge=0, json_schema_extra=NO_IDENTITY)
    """US dollars for an hour of audio, as your plan has it. None takes the list price, where it is known."""

    def price(self) -> Price | None:
        """What is reckoned with; None where nobody knows."""
        return self.list_price() if self.usd_per_hour is None else Price(self.usd_per_hour, "usd_per_hour")

    @abstractmethod
    def list_price(self) -> Price | None:
        """Pay-as-you-go price of what is configured, with its source; None where it is not known."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """For tests."""


class Provider(ABC):
    """A recognizer behind an API, or another program's."""

    @abstractmethod
    def transcribe(self, audio: bytes) -> ProviderTranscript:
        """What is said in a clip, see :func:`encode`. Called from ``concurrency`` threads at a time.

        Raises:
            ProviderError: there is no transcript, after all tries that make sense.
            ProviderRefusedError: there will be none of any clip.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what is held; nothing is asked afterward."""


PROVIDERS: Registry[ProviderConfig, Provider] = Registry(
    "provider", ProviderConfig, package=__name__, entry_points="tiny_audio.providers"
)
"""Registered providers; builders take ``(config)``, and raise UserError where a key or a package is missing."""


def encode(waveform: Tensor) -> bytes:
    """A waveform ``[S]`` as FLAC, mono, 16 kHz, 16 bits: what every provider is sent, so that all hear the same.

    A waveform that is louder than full scale is made quieter as a whole, since it would be clipped.
    """
    import soundfile

    samples = waveform.numpy()
    peak = float(np.abs(samples).max(initial=0.0))
    file = io.BytesIO()
    soundfile.write(file, samples / peak if peak > 1 else samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
