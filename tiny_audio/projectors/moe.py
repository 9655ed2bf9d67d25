"""Strided convolutions, then a dense mixture of small experts (MOSA, Li et al. 2025, arXiv 2508.18998)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from tiny_audio.projectors import PROJECTORS, Frames, Projector, ProjectorContext
from tiny_audio.projectors._convolution import ConvolutionsConfig, StridedConvs
from tiny_audio.projectors._layers import FeedForward, normalize, output_norm


class MoeConfig(ConvolutionsConfig):
    """Dense mixture of experts on convolved frames: all experts run, and a router weighs their outputs.

    In MOSA (Li et al. 2025, arXiv 2508.18998), the experts are simple two-layer adapters. The router can give an expert
    a high weight for several languages, or for only one. On average over eight languages, MOSA reports a 15.4% lower
    WER than its baseline with one adapter. With 60% of the baseline's parameters, the WER is 13.3% lower. The paper has
    no results for models with only one language.
    """

    name: Literal["moe"] = "moe"
    strides: tuple[PositiveInt, ...] = Field(default=(2, 2), min_length=1, max_length=8)
    """Stride of each convolution before the experts. The product of the strides is the number of frames per embedding,
    which is 4 in MOSA."""
    num_experts: int = Field(default=4, ge=2, le=256)
    """Number of experts, each with two linear layers and a ReLU. 4 in MOSA. All experts run for every embedding, so
    the time grows with the number of experts. For a single expert, use the projector ``conv``."""
    hidden_dim: PositiveInt = 2048
    """Number of channels between the two layers of each expert."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config of three experts with 32 hidden channels."""
        return cls(num_experts=3, hidden_dim=32)


@PROJECTORS.register
def build_moe(config: MoeConfig, context: ProjectorContext) -> Projector:
    """Build the projector with random weights."""
    return MoeProjector(config, context)


class MoeProjector(Projector):
    """(Conv1d → GELU) × n → experts, weighted by softmax(router) → RMSNorm."""

    def __init__(self, config: MoeConfig, context: ProjectorContext) -> None:
        super().__init__()
        dim = context.in_dim
        self.convs = StridedConvs(dim, dim, config.strides, config.kernel_sizes)
        self.router = nn.Linear(dim, config.num_experts)
        self.experts = nn.ModuleList(
            FeedForward(dim, config.hidden_dim, context.out_dim, nn.ReLU) for _ in range(config.num_experts)
        )
        self.output_norm = output_norm(config, context)

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """Return the number of frames after the last convolution."""
        return self.convs.num_outputs(num_frames)

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Map frames ``[B, T, D]`` to embeddings ``[B, ⌈T/s⌉, H]``, where s is the product of the strides."""
        shortened: Frames = self.convs(frames)
        # [B, N, D] -> weights [B, N, experts], in fp32 so that they sum to 1
        shares = self.router(shortened.values).float().softmax(-1)
        mixed = sum(shares[..., index, None] * expert(shortened.values) for index, expert in enumerate(self.experts))
        assert isinstance(mixed, Tensor)
        return normalize(self.output_norm, mixed), shortened.lengths
