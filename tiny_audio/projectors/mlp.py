"""Two linear layers with a GELU, on stacked frames (Voxtral, Liu et al. 2025, arXiv 2507.13264)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveInt
from torch import nn

from tiny_audio.projectors import PROJECTORS, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.projectors._stacked import StackedProjector


class MlpConfig(ProjectorConfig):
    """Two linear layers with a GELU, on stacked frames: Voxtral's and GLM-ASR's projector.

    Voxtral (Liu et al. 2025, arXiv 2507.13264) stacks four frames of Whisper, which has 50 frames per second. Its
    authors find that 12.5 Hz is the best compromise between quality and length. Voxtral Mini 3B has an average WER of
    7.05% on the Open ASR Leaderboard (2026-03). Voxtral's layers have the decoder's width and no biases. GLM-ASR's
    layers are twice as wide and have biases.
    """

    name: Literal["mlp"] = "mlp"
    stack: PositiveInt = 4
    """Number of neighboring encoder frames that are joined into one embedding. 4 in Voxtral and GLM-ASR, which reduces
    50 Hz to 12.5 Hz."""
    hidden_dim: PositiveInt | None = None
    """Number of channels between the two layers. None uses the decoder's width, as in Voxtral. GLM-ASR uses twice the
    decoder's width."""
    bias: bool = False
    """Whether both layers have biases. False in Voxtral, true in GLM-ASR."""

    def min_frames(self) -> int:
        """Return the number of frames in a stack."""
        return self.stack

    @classmethod
    def tiny(cls) -> Self:
        """Return the default config, which is as wide as the decoder."""
        return cls()


@PROJECTORS.register
def build_mlp(config: MlpConfig, context: ProjectorContext) -> Projector:
    """Build the projector with random weights."""
    hidden_dim = context.out_dim if config.hidden_dim is None else config.hidden_dim
    return StackedProjector(
        config, context, stack=config.stack, hidden_dim=hidden_dim, activation=nn.GELU, bias=config.bias
    )
