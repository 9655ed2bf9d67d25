"""The interface of projectors. A projector maps encoder frames to audio embeddings for the decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import PositiveFloat
from torch import Tensor, nn

from tiny_audio.config import Config
from tiny_audio.frames import Frames
from tiny_audio.registry import Registry

__all__ = ["PROJECTORS", "Frames", "Projector", "ProjectorConfig", "ProjectorContext"]


class ProjectorConfig(Config, ABC):
    """Base class of all projectors' configs."""

    needs_ctc: ClassVar[bool] = False
    """Whether the projector reads ``Frames.ctc_logits``. If so, a recipe must have a ``ctc`` section."""

    name: str
    output_rms: PositiveFloat | None = None
    """Root mean square of the output at the start of training. If None, it is the root mean square of the decoder's
    token embeddings. If the output is 30 times too large or too small, training takes thousands of steps longer."""

    @abstractmethod
    def min_frames(self) -> int:
        """Return the smallest number of encoder frames that a clip should have, such as the size of a stack."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """Return a small config for tests."""


@dataclass(frozen=True)
class ProjectorContext:
    """Properties of the encoder and the decoder that a projector connects."""

    in_dim: int
    """Number of channels of the encoder's frames."""
    out_dim: int
    """Number of channels of the decoder's embeddings."""
    frame_rate: float
    """Encoder frames per second."""
    embedding_rms: float
    """Root mean square of the decoder's token embeddings."""


class Projector(nn.Module, ABC):
    """Maps encoder frames to the decoder's embedding space. All its parameters are trainable.

    Dimensions: B clips · T encoder frames, D channels · N audio embeddings, H channels

    Batch invariance is required: values after the end of a clip must not change its embeddings.
    """

    @abstractmethod
    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """Return the numbers of embeddings ``[B]`` for the numbers of frames ``[B]``.

        If the numbers of embeddings depend on the content of the frames, return upper bounds.
        """

    @abstractmethod
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Map frames ``[B, T, D]`` to embeddings ``[B, N, H]``, and return them with their ``lengths [B]``."""


PROJECTORS: Registry[ProjectorConfig, Projector] = Registry(
    "projector", ProjectorConfig, package=__name__, entry_points="tiny_audio.projectors"
)
"""Registered projectors. Builders have the arguments ``(config, context: ProjectorContext)``."""
