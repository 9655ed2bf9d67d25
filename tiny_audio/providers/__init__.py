"""The interface of providers. A provider is an external speech recognizer that transcribes one clip per call."""

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
    """A word and its time in the clip."""

    text: str
    start_s: float
    end_s: float
    confidence: float | None = None
    """From 0 to 1. None if the provider returns no confidences."""


@dataclass(frozen=True)
class ProviderTranscript:
    """A provider's transcript of one clip."""

    text: str
    """Empty only if the provider itself returned an empty transcript."""
    words: tuple[ProviderWord, ...] | None = None
    """None if the provider returns no word times."""


@dataclass(frozen=True)
class Price:
    """The price of an hour of audio, and the source of that number."""

    usd_per_hour: float
    source: str


class ProviderError(RunFailed):
    """One clip was not transcribed. Other clips or a later attempt may succeed."""


class ProviderRefusedError(UserError):
    """No clip can be transcribed: the key was refused, the account is empty, or the model does not exist."""


class ProviderConfig(Config, ABC):
    """Base of every provider's config."""

    name: str
    concurrency: PositiveInt = Field(default=4, json_schema_extra=NO_IDENTITY)
    """Number of requests at a time. Your plan with the provider may limit this number."""
    usd_per_hour: float | None = Field(default=None, ge=0, json_schema_extra=NO_IDENTITY)
    """US dollars for an hour of audio under your plan. If None, the list price is used. If the list price is unknown,
    no cost is reported."""

    def price(self) -> Price | None:
        """Return the price to use in reports, or None if it is unknown."""
        return self.list_price() if self.usd_per_hour is None else Price(self.usd_per_hour, "usd_per_hour")

    @abstractmethod
    def list_price(self) -> Price | None:
        """Return the pay-as-you-go price of the configured model, or None if it is unknown."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """Return a config for tests."""


class Provider(ABC):
    """A recognizer behind an API, or in another package or program."""

    @abstractmethod
    def transcribe(self, audio: bytes) -> ProviderTranscript:
        """Transcribe one clip, encoded by :func:`encode`. Up to ``concurrency`` threads call this at a time.

        Raises:
            ProviderError: this clip was not transcribed, even after retries.
            ProviderRefusedError: no clip will be transcribed.
        """

    @abstractmethod
    def close(self) -> None:
        """Release connections and memory. No method is called afterward."""


PROVIDERS: Registry[ProviderConfig, Provider] = Registry(
    "provider", ProviderConfig, package=__name__, entry_points="tiny_audio.providers"
)
"""Registered providers. Builders take ``(config)`` and raise UserError if a key or a package is missing."""


def encode(waveform: Tensor) -> bytes:
    """Encode a waveform ``[S]`` as FLAC (mono, 16 kHz, 16 bits). Every provider receives the same bytes.

    If a sample is above 1 or below -1, the whole waveform is scaled down, so that no sample is clipped.
    """
    import soundfile

    samples = waveform.numpy()
    peak = float(np.abs(samples).max(initial=0.0))
    file = io.BytesIO()
    soundfile.write(file, samples / peak if peak > 1 else samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
