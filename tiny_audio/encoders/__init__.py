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
"""Changes features between the front end and the layers, such as SpecAugment. Lengths stay the same."""


class EncoderConfig(TransformersPartConfig, ABC):
    """Base of every encoder's config.

    It computes frame counts without a model, so a recipe is checked before anything is downloaded.
    """

    ctc_head: ClassVar[str | None] = None
    """Name of the linear layer that predicts characters in the family's CTC checkpoints. None if there is none."""

    layer: Literal["last", "weighted"] | PositiveInt = "last"
    """The layer whose output is used. ``last``: the last one, with the model's final norm. A number, where 1 is the
    first layer: that layer without a final norm; the layers above it are removed. ``weighted``: a learned weighted sum
    of all layers (Peters et al. 2018)."""

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """The number of encoder frames of a clip with ``num_samples`` samples at 16 kHz."""

    @abstractmethod
    def max_duration_s(self) -> float | None:
        """Duration of the longest clip that the encoder accepts; None if there is no limit."""

    @abstractmethod
    def front_end(self) -> dict[str, Any]:
        """Fields of a checkpoint's ``preprocessor_config.json``, with the values that the encoder's front end uses."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """A config with about 10,000 random parameters, for tests."""


@dataclass(frozen=True)
class EncoderContext:
    """What a builder receives in addition to the config."""

    architecture: dict[str, Any] | None = None
    """:meth:`Encoder.architecture` of an earlier build. If given, it decides the architecture, and no weights are
    read."""


class Encoder(nn.Module, ABC):
    """A speech encoder with its own front end.

    B clips · S samples of the longest clip · F feature frames, C channels · T encoder frames, D channels

    Batch invariance is required: a clip has the same frames alone and padded in a batch with any other clips.
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
        """A JSON object from which the builder can rebuild this encoder without its checkpoint."""

    def forward(self, waveforms: Tensor, lengths: Tensor, transform: FeatureTransform | None = None) -> Frames:
        """Waveforms ``[B, S]``, float32 at 16 kHz, and their ``lengths [B]`` -> frames ``[B, T, D]``."""
        features = self.features(waveforms, lengths)
        return self.encode(transform(features) if transform else features)


ENCODERS: Registry[EncoderConfig, Encoder] = Registry(
    "encoder", EncoderConfig, package=__name__, entry_points="tiny_audio.encoders"
)
"""Registered encoders; builders take ``(config, context: EncoderContext)``."""
