"""Stacked frames through a GELU layer as wide as the decoder (Voxtral, Liu et al. 2025, arXiv 2507.13264)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveInt
from torch import nn

from tiny_audio.projectors import PROJECTORS, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.projectors._stacked import StackedProjector


class MlpConfig(ProjectorConfig):
    """Two linear layers with a GELU, on stacked frames: Voxtral's and GLM-ASR's projector.

    Voxtral (Liu et al. 2025, arXiv 2507.13264) finds 12.5 Hz, four frames of Whisper's 50, the best bargain between
    quality and length; its Mini of 3B averages 7.05 % WER on the Open ASR Leaderboard (2026-03). Its layers are as wide
    as the decoder and without biases; GLM-ASR's are twice as wide, with biases.
    """

    name: Literal["mlp"] = "mlp"
    stack: PositiveInt = 4
    """Neighboring encoder frames that are joined into one embedding: 4 in Voxtral and GLM-ASR, 12.5 Hz from 50."""
    hidden_dim: PositiveInt | None = None
    """Channels between the two layers; None is the decoder's width, as in Voxtral. GLM-ASR has twice that."""
    bias: bool = False
    """Biases in both layers: without in Voxtral, with in GLM-ASR."""

    def min_frames(self) -> int:
        """One full stack."""
        return self.stack

    @classmethod
    def tiny(cls) -> Self:
        """As it is: as wide as its decoder."""
        return cls()


@PROJECTORS.register
def build_mlp(config: MlpConfig, context: ProjectorContext) -> Projector:
    """Build it between the two widths."""
    hidden_dim = context.out_dim if config.hidden_dim is None else config.hidden_dim
    return StackedProjector(
        config, context, stack=config.stack, hidden_dim=hidden_dim, activation=nn.GELU, bias=config.bias
    )
