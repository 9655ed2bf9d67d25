"""A SwiGLU block (Shazeer 2020, arXiv 2002.05202) on stacked frames, between two RMSNorms."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio.projectors import PROJECTORS, Frames, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.projectors._layers import init_normal, normalize, num_windows, output_norm, windows


class SwigluConfig(ProjectorConfig):
    """SwiGLU on stacked frames: the projector on the published model card of Tiny Audio.

    SwiGLU is the gated feed-forward block of current language models (Shazeer 2020, arXiv 2002.05202). Here it is
    between two RMSNorms and has no biases. The model card lists 5 stacked frames and 8192 hidden channels. With 1280
    encoder channels and a decoder width of 2048, this projector has 121.6 million parameters. Ultravox stacks 8 frames.
    """

    name: Literal["swiglu"] = "swiglu"
    stack: PositiveInt = 5
    """Number of neighboring encoder frames that are joined into one embedding. 5 on the model card, 8 in
    Ultravox."""
    hidden_dim: PositiveInt = 8192
    """Number of channels of the hidden layer. 8192 on the model card, 2048 in Ultravox."""

    def min_frames(self) -> int:
        """Return the number of frames in a stack."""
        return self.stack

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with 64 hidden channels."""
        return cls(hidden_dim=64)


@PROJECTORS.register
def build_swiglu(config: SwigluConfig, context: ProjectorContext) -> Projector:
    """Build the projector with random weights."""
    return SwigluProjector(config, context)


class SwigluProjector(Projector):
    """Stack k frames → RMSNorm → silu(gate)·up → down → RMSNorm, without biases."""

    def __init__(self, config: SwigluConfig, context: ProjectorContext) -> None:
        super().__init__()
        self.stack = config.stack
        self.norm = nn.RMSNorm(config.stack * context.in_dim, eps=1e-6)
        self.gate = nn.Linear(config.stack * context.in_dim, config.hidden_dim, bias=False)
        self.up = nn.Linear(config.stack * context.in_dim, config.hidden_dim, bias=False)
        self.down = nn.Linear(config.hidden_dim, context.out_dim, bias=False)
        self.output_norm = output_norm(config, context)
        for linear in (self.gate, self.up, self.down):
            init_normal(linear.weight, std=0.02)

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """Return the number of stacks."""
        return num_windows(num_frames, self.stack)

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Map frames ``[B, T, D]`` to embeddings ``[B, ⌈T/k⌉, H]``. The last stack is padded with zeros."""
        # [B, T, D] -> [B, T/k, k·D]
        stacked = normalize(self.norm, windows(frames.zeroed().values, self.stack).flatten(2))
        embeddings = self.down(F.silu(self.gate(stacked)) * self.up(stacked))
        return normalize(self.output_norm, embeddings), self.max_embeddings(frames.lengths)
