"""Strided convolutions over a padded batch. Padding does not change the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio.projectors import Frames, ProjectorConfig
from tiny_audio.projectors._layers import num_windows


class ConvolutionsConfig(ProjectorConfig):
    """Base of the configs of projectors that begin with strided convolutions."""

    strides: tuple[PositiveInt, ...] = Field(min_length=1, max_length=8)
    """Stride of each convolution, in order. The product of the strides is the number of frames per embedding."""
    kernel_sizes: tuple[PositiveInt, ...] | None = None
    """Kernel size of each convolution, in frames. If None, it equals the stride, so that each frame contributes to
    exactly one embedding."""

    @model_validator(mode="after")
    def _kernels_fit(self) -> Self:
        if self.kernel_sizes is None:
            return self
        if len(self.kernel_sizes) != len(self.strides):
            raise ValueError(
                f"kernel_sizes has {len(self.kernel_sizes)} entries, and strides has {len(self.strides)}; give "
                "both one entry per convolution, or leave kernel_sizes out"
            )
        for kernel, stride in zip(self.kernel_sizes, self.strides, strict=True):
            if kernel < stride:
                raise ValueError(
                    f"a kernel of {kernel} with stride {stride} would skip frames; set each kernel size to at least "
                    "its stride"
                )
        return self

    def min_frames(self) -> int:
        """Return the number of frames per embedding."""
        return math.prod(self.strides)


class StridedConvs(nn.Module):
    """A sequence of convolutions with GELU. Each convolution reduces T frames to ⌈T/stride⌉ frames."""

    def __init__(self, in_dim: int, dim: int, strides: Sequence[int], kernel_sizes: Sequence[int] | None) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(dim if index else in_dim, dim, kernel, stride)
            for index, (kernel, stride) in enumerate(zip(kernel_sizes or strides, strides, strict=True))
        )
        self.strides = tuple(strides)

    def num_outputs(self, num_frames: Tensor) -> Tensor:
        """Return the numbers of output frames ``[B]`` for the numbers of input frames ``[B]``."""
        for stride in self.strides:
            num_frames = num_windows(num_frames, stride)
        return num_frames

    def forward(self, frames: Frames) -> Frames:
        """Reduce frames ``[B, T, D]`` to ``[B, ⌈T/s⌉, C]``, where s is the product of the strides."""
        for conv, stride in zip(self.convs, self.strides, strict=True):
            assert isinstance(conv, nn.Conv1d)
            kernel, size = conv.kernel_size[0], frames.values.shape[1]
            before = (kernel - stride) // 2
            after = (-(-size // stride) - 1) * stride + kernel - before - size
            # Set padding to zero before every convolution, because the bias of the previous convolution is added to it.
            values = F.pad(frames.zeroed().values.transpose(1, 2), (before, after))
            # [B, D, T] -> [B, T/stride, C]
            values = F.gelu(conv(values)).transpose(1, 2)
            lengths = num_windows(frames.lengths, stride)
            frames = replace(frames, values=values, lengths=lengths, rate=frames.rate / stride, ctc_logits=None)
        return frames
