"""Strided convolutions, then two linear layers, as in SLAM-LLM and WeST."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from tiny_audio.projectors import PROJECTORS, Frames, Projector, ProjectorContext
from tiny_audio.projectors._convolution import ConvolutionsConfig, StridedConvs
from tiny_audio.projectors._layers import FeedForward, normalize, output_norm


class ConvConfig(ConvolutionsConfig):
    """Strided convolutions, then two linear layers: a learned reduction of the frame rate.

    SLAM-LLM has one convolution whose kernel size equals its stride. WeST has two convolutions with stride 2. If a
    kernel size is larger than its stride, neighboring embeddings share frames. Even a total stride of nearly one second
    can work (arXiv 2307.11795), so it is worthwhile to compare several strides.
    """

    name: Literal["conv"] = "conv"
    strides: tuple[PositiveInt, ...] = Field(default=(5,), min_length=1, max_length=8)
    """Stride of each convolution, in order. The product of the strides is the number of frames per embedding. ``[5]``
    in SLAM-LLM, ``[2, 2]`` in WeST."""
    kernel_sizes: tuple[PositiveInt, ...] | None = None
    """Kernel size of each convolution, in frames. If None, it equals the stride, so that each frame contributes to
    exactly one embedding. In other models, kernel size 3 with stride 2 is common."""
    channels: PositiveInt | None = None
    """Number of channels of the convolutions. If None, it is the encoder's width, as in SLAM-LLM."""
    hidden_dim: PositiveInt = 2048
    """Number of channels between the two linear layers. 2048 in SLAM-LLM."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config of two convolutions with overlapping windows and 32 channels."""
        return cls(strides=(2, 3), kernel_sizes=(3, 4), channels=32, hidden_dim=64)


@PROJECTORS.register
def build_conv(config: ConvConfig, context: ProjectorContext) -> Projector:
    """Build the projector with random weights."""
    return ConvProjector(config, context)


class ConvProjector(Projector):
    """(Conv1d → GELU) × n → linear → GELU → linear → RMSNorm."""

    def __init__(self, config: ConvConfig, context: ProjectorContext) -> None:
        super().__init__()
        channels = context.in_dim if config.channels is None else config.channels
        self.convs = StridedConvs(context.in_dim, channels, config.strides, config.kernel_sizes)
        self.feedforward = FeedForward(channels, config.hidden_dim, context.out_dim, nn.GELU)
        self.output_norm = output_norm(config, context)

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """Return the number of frames after the last convolution."""
        return self.convs.num_outputs(num_frames)

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Map frames ``[B, T, D]`` to embeddings ``[B, ⌈T/s⌉, H]``, where s is the product of the strides."""
        shortened: Frames = self.convs(frames)
        return normalize(self.output_norm, self.feedforward(shortened.values)), shortened.lengths
