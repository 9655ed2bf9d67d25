"""The Encoder contract: raw waveforms in, frames out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import PositiveInt
from torch import Tensor, nn

from tiny_audio.frames import Frames
from tiny_audio.pretrained.config import TransformersPartConfig
from tiny_audio.registry import Registry

FeatureTransform = Callable[[Frames], Frames]
"""Changes features between the front end and the layers, such as SpecAugment; keeps lengths."""


class EncoderConfig(TransformersPartConfig, ABC):
    """Base of every encoder's config.

    A recipe is checked with its frame counts before anything is fetched.
    """

    ctc_head: ClassVar[str | None] = None
    """Name of the linear layer in the family's CTC checkpoints that spells characters; None where there is none."""

    layer: Literal["last", "weighted"] | PositiveInt = "last"
    """Which layer's output to put out: the last one's, normalized as the model does; that of the layer with a number
    (1 is the first), the layers above it left out; or the learned weighted sum of all (Peters et al. 2018)."""

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Encoder frames of a clip of ``num_samples`` samples at 16 kHz."""

    @abstractmethod
    def max_duration_s(self) -> float | None:
        """Longest clip that the encoder can take; None where there is no limit."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """A config of some 10,000 random parameters, for tests."""


@dataclass(frozen=True)
class EncoderContext:
    """What a builder gets besides the config."""

    architecture: dict[str, Any] | None = None
    """:meth:`Encoder.architecture` of an earlier build; the encoder is then built so, with no weights read."""


class Encoder(nn.Module, ABC):
    """A speech encoder with its own front end.

    B clips · S samples of the longest clip · F feature frames, C channels · T encoder frames, D channels

    Batch invariance is the contract: a clip's frames are the same alone and padded beside any other.
    """

    dim: int
    """D."""
    frame_rate: float
    """Encoder frames per second."""

    @abstractmethod
    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Samples ``[B]`` -> encoder frames ``[B]``, at least 1."""

    @abstractmethod
    def features(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        """The front end: ``waveforms [B, S]`` and ``lengths [B]`` in samples -> features ``[B, F, C]``."""

    @abstractmethod
    def encode(self, features: Frames) -> Frames:
        """The layers: features ``[B, F, C]`` -> frames ``[B, T, D]``."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """JSON from which :class:`EncoderContext` rebuilds this encoder without its checkpoint."""

    def forward(self, waveforms: Tensor, lengths: Tensor, transform: FeatureTransform | None = None) -> Frames:
        """Waveforms ``[B, S]``, float32 at 16 kHz, and their ``lengths [B]`` -> frames ``[B, T, D]``."""
        features = self.features(waveforms, lengths)
        return self.encode(transform(features) if transform else features)


ENCODERS: Registry[EncoderConfig, Encoder] = Registry(
    "encoder", EncoderConfig, package=__name__, entry_points="tiny_audio.encoders"
)
"""Registered encoders; builders take ``(config, context: EncoderContext)``."""
