"""The Projector contract: encoder frames in, audio embeddings for the decoder out."""

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
    """Base of every projector's config."""

    needs_ctc: ClassVar[bool] = False
    """Whether the projector reads ``Frames.ctc_logits``. If so, a recipe must have a ``ctc`` section."""

    name: str
    output_rms: PositiveFloat | None = None
    """Root mean square of the output at the start of training. None uses that of the decoder's token embeddings. An
    output that is 30 times too large or too small costs thousands of steps."""

    @abstractmethod
    def min_frames(self) -> int:
        """The smallest number of encoder frames that a clip should have, such as the size of a stack."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """A small config, for tests."""


@dataclass(frozen=True)
class ProjectorContext:
    """Properties of the encoder and the decoder that a projector connects."""

    in_dim: int
    """Channels of the encoder's frames."""
    out_dim: int
    """Channels of the decoder's embeddings."""
    frame_rate: float
    """Encoder frames per second."""
    embedding_rms: float
    """Root mean square of the decoder's token embeddings."""


class Projector(nn.Module, ABC):
    """Maps encoder frames to the decoder's embedding space. All its parameters train.

    B clips · T encoder frames, D channels · N audio embeddings, H channels

    Batch invariance is required: values beyond a clip's length must not change its embeddings.
    """

    @abstractmethod
    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """Numbers of frames ``[B]`` -> numbers of embeddings ``[B]``, or upper bounds if they depend on the content."""

    @abstractmethod
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Frames ``[B, T, D]`` -> embeddings ``[B, N, H]`` and their ``lengths [B]``."""


PROJECTORS: Registry[ProjectorConfig, Projector] = Registry(
    "projector", ProjectorConfig, package=__name__, entry_points="tiny_audio.projectors"
)
"""Registered projectors; builders take ``(config, context: ProjectorContext)``."""
