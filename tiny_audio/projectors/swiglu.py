"""Stacked frames through a SwiGLU block (Shazeer 2020, arXiv 2002.05202), normalised on both sides."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio.projectors import PROJECTORS, Frames, Projector, ProjectorConfig, ProjectorContext


class SwigluConfig(ProjectorConfig):
    """SwiGLU on stacked frames: the Tiny Audio model card's projector."""

    name: Literal["swiglu"] = "swiglu"
    stack: PositiveInt = 5
    """Neighbouring encoder frames that are joined into one embedding."""
    hidden_dim: PositiveInt = 8192
    """Channels between the two linear layers."""

    def min_frames(self) -> int:
        """One full stack."""
        return self.stack

    @classmethod
    def tiny(cls) -> Self:
        """64 hidden channels."""
        return cls(hidden_dim=64)


@PROJECTORS.register
def build_swiglu(config: SwigluConfig, context: ProjectorContext) -> Projector:
    """Build it between the two widths."""
    gain = config.output_rms if config.output_rms is not None else context.embedding_rms
    return SwigluProjector(context.in_dim, context.out_dim, config.stack, config.hidden_dim, gain)


class SwigluProjector(Projector):
    """Stack k frames → RMSNorm → silu(gate)·up → down → RMSNorm, without biases."""

    def __init__(self, in_dim: int, out_dim: int, stack: int, hidden_dim: int, gain: float) -> None:
        super().__init__()
        self.stack = stack
        self.norm = nn.RMSNorm(stack * in_dim, eps=1e-6)
        self.gate = nn.Linear(stack * in_dim, hidden_dim, bias=False)
        self.up = nn.Linear(stack * in_dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, out_dim, bias=False)
        self.output_norm = nn.RMSNorm(out_dim, eps=1e-6)
        for linear in (self.gate, self.up, self.down):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.constant_(self.output_norm.weight, gain)

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """One per started stack."""
        return (num_frames + self.stack - 1) // self.stack

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Frames ``[B, T, D]`` -> embeddings ``[B, ⌈T/k⌉, H]``; the last stack is filled up with zeros."""
        values = frames.zeroed().values
        values = F.pad(values, (0, 0, 0, -values.shape[1] % self.stack))
        # [B, T, D] -> [B, T/k, k·D]
        # Norms run in their own precision: under autocast the frames may come in half.
        stacked = self.norm(torch.unflatten(values, 1, (-1, self.stack)).flatten(2).to(self.norm.weight.dtype))
        embeddings = self.down(F.silu(self.gate(stacked)) * self.up(stacked))
        return self.output_norm(embeddings.to(self.output_norm.weight.dtype)), self.max_embeddings(frames.lengths)
