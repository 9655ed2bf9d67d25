"""Two linear layers on stacked or averaged frames (Voxtral, Liu et al. 2025, arXiv 2507.13264)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt
from torch import nn

from tiny_audio.config import LATER
from tiny_audio.projectors import PROJECTORS, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.projectors._stacked import StackedProjector


class MlpConfig(ProjectorConfig):
    """Two linear layers on stacked or averaged frames: the projector of most current models.

    Voxtral (Liu et al. 2025, arXiv 2507.13264) stacks four frames of Whisper, which has 50 frames per second. Voxtral's
    authors find that 12.5 embeddings per second are the best compromise between quality and sequence length. Voxtral
    Mini 3B has an average WER of 7.05% on the Open ASR Leaderboard (2026-03). The defaults of this projector are those
    of Voxtral. Other models differ in a few fields. GLM-ASR has ``bias: true`` and a ``hidden_dim`` of twice the
    decoder's width. The Tiny Audio model of 2026 has ``hidden_norm: true`` and ``hidden_dim: 2048``. With 1280 encoder
    channels and a decoder width of 1024, its projector has 12.6 million parameters. MOSS-Transcribe-Diarize (arXiv
    2601.01554) has ``activation: silu, bias: true`` and, unlike this projector, a LayerNorm at the output. Audio
    Flamingo 3 (arXiv 2507.08128) has ``merge: average, stack: 2, bias: true``. Unlike this projector, it averages the
    frames before the encoder's last norm.
    """

    name: Literal["mlp"] = "mlp"
    stack: PositiveInt = 4
    """Number of neighboring encoder frames that are joined into one embedding. 4 in Voxtral and most other models,
    which reduces 50 Hz to 12.5 Hz."""
    merge: Literal["concatenate", "average"] = Field(default="concatenate", json_schema_extra=LATER)
    """How frames are joined. With ``average``, the first layer has fewer parameters, but the order of the frames within
    a stack is lost."""
    hidden_dim: PositiveInt | None = None
    """Number of channels between the two layers. If None, it is the decoder's width, as in Voxtral."""
    hidden_norm: bool = Field(default=False, json_schema_extra=LATER)
    """Whether there is an RMSNorm between the first layer and the activation."""
    activation: Literal["gelu", "silu"] = Field(default="gelu", json_schema_extra=LATER)
    """Function between the two layers."""
    bias: bool = False
    """Whether both layers have biases."""

    def min_frames(self) -> int:
        """Return the number of frames in a stack."""
        return self.stack

    @classmethod
    def tiny(cls) -> Self:
        """Return the default config. Its number of hidden channels is the decoder's width."""
        return cls()


@PROJECTORS.register
def build_mlp(config: MlpConfig, context: ProjectorContext) -> Projector:
    """Build the projector with random weights."""
    hidden_dim = context.out_dim if config.hidden_dim is None else config.hidden_dim
    return StackedProjector(
        config,
        context,
        stack=config.stack,
        average=config.merge == "average",
        hidden_dim=hidden_dim,
        hidden_norm=config.hidden_norm,
        activation={"gelu": nn.GELU, "silu": nn.SiLU}[config.activation],
        bias=config.bias,
    )
