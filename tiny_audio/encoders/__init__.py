"""The interface of encoders, which turn raw waveforms into frames."""

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
"""A function that changes the features between the front end and the layers, such as SpecAugment. It must not change
the number of frames of a clip."""


class EncoderConfig(TransformersPartConfig, ABC):
    """Base of every encoder's config. Each family of encoders, such as Whisper, has its own config class.

    A config computes frame counts without a model, so that a recipe can be checked before anything is downloaded.
    """

    ctc_head: ClassVar[str | None] = None
    """Name of the linear layer that predicts characters in the family's CTC checkpoints. None if the family has no
    such layer."""

    layer: Literal["last", "weighted"] | PositiveInt = "last"
    """The layer whose output is used. ``last``: the last layer, followed by the model's final norm. A number, such as
    ``12``: the 12th layer, without a final norm. Later layers are removed. ``weighted``: a learned weighted sum of the
    first layer's input and the outputs of all layers (Peters et al. 2018)."""

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Return the number of encoder frames of a clip with ``num_samples`` samples at 16 kHz."""

    @abstractmethod
    def max_duration_s(self) -> float | None:
        """Return the maximum duration of a clip that the encoder accepts, in seconds. None if there is no limit."""

    @abstractmethod
    def front_end(self) -> dict[str, Any]:
        """Return the settings of the front end, named as in a checkpoint's ``preprocessor_config.json``."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """Return the config of a very small encoder with random weights, for tests."""


@dataclass(frozen=True)
class EncoderContext:
    """The second argument of a builder, after the config. A builder is a function that returns an encoder."""

    architecture: dict[str, Any] | None = None
    """The architecture of an encoder that was built before, from :meth:`Encoder.architecture`. If given, the encoder is
    rebuilt with this architecture, and no weights are read."""


class Encoder(nn.Module, ABC):
    """A speech encoder with its own front end, which computes features from waveforms.

    Dimensions: B clips · S samples of the longest clip · F feature frames, C channels · T encoder frames, D channels

    Batch invariance is required: a clip's frames must be the same alone and in a padded batch with other clips.
    """

    dim: int
    """Number of channels of a frame, D."""
    frame_rate: float
    """Encoder frames per second."""

    @abstractmethod
    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return the number of encoder frames of each clip, at least 1: ``num_samples [B]`` -> ``[B]``."""

    @abstractmethod
    def features(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        """Run the front end: ``waveforms [B, S]`` and ``lengths [B]`` in samples -> features ``[B, F, C]``."""

    @abstractmethod
    def encode(self, features: Frames) -> Frames:
        """Run the layers: features ``[B, F, C]`` -> frames ``[B, T, D]``."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """Return a JSON object from which the builder can rebuild this encoder without its checkpoint."""

    def forward(self, waveforms: Tensor, lengths: Tensor, transform: FeatureTransform | None = None) -> Frames:
        """Encode float32 ``waveforms [B, S]`` at 16 kHz, with ``lengths [B]`` in samples, to frames ``[B, T, D]``."""
        features = self.features(waveforms, lengths)
        return self.encode(transform(features) if transform else features)


ENCODERS: Registry[EncoderConfig, Encoder] = Registry(
    "encoder", EncoderConfig, package=__name__, entry_points="tiny_audio.encoders"
)
"""Registered encoders. Builders have the arguments ``(config, context: EncoderContext)``."""
