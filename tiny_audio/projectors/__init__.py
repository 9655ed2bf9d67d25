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
    """Whether it reads ``Frames.ctc_logits``, so that a recipe must have a ``ctc`` section."""

    name: str
    output_rms: PositiveFloat | None = None
    """Root mean square of the first embeddings it puts out; None is that of the decoder's own token embeddings.
    An output 30 times too loud or too quiet costs thousands of steps."""

    @abstractmethod
    def min_frames(self) -> int:
        """Fewest encoder frames of a clip that make sense for it, such as the number that it stacks."""

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
    """The bridge, and the part that always trains.

    B clips · T encoder frames, D channels · N audio embeddings, H channels

    Batch invariance is the contract: frames beyond a clip's length must not change its embeddings.
    """

    @abstractmethod
    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """Frames ``[B]`` -> embeddings ``[B]``: the number, or an upper bound where it depends on the content."""

    @abstractmethod
    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Frames ``[B, T, D]`` -> embeddings ``[B, N, H]`` and their ``lengths [B]``."""


PROJECTORS: Registry[ProjectorConfig, Projector] = Registry(
    "projector", ProjectorConfig, package=__name__, entry_points="tiny_audio.projectors"
)
"""Registered projectors; builders take ``(config, context: ProjectorContext)``."""
