"""Strided convolutions over a padded batch. Padding does not change the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio.projectors import Frames
from tiny_audio.projectors._layers import num_windows


def check_kernels(strides: Sequence[int], kernel_sizes: Sequence[int] | None) -> None:
    """Check that there is a kernel for each stride, and that kernels skip no frames. Validators of configs use this.

    Raises:
        ValueError: a kernel is missing or smaller than its stride.
    """
    if kernel_sizes is None:
        return
    if len(kernel_sizes) != len(strides):
        raise ValueError(
            f"kernel_sizes has {len(kernel_sizes)} entries, and strides has {len(strides)}; give one entry of both for "
            "each convolution, or leave kernel_sizes out"
        )
    for kernel, stride in zip(kernel_sizes, strides, strict=True):
        if kernel < stride:
            raise ValueError(
                f"a kernel of {kernel} with stride {stride} would skip frames; set kernel_sizes to at least the strides"
            )


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
        """Reduce frames ``[B, T, D]`` to ``[B, T/strides, C]``. Parts of windows outside of a clip are zeros."""
        for conv, stride in zip(self.convs, self.strides, strict=True):
            assert isinstance(conv, nn.Conv1d)
            kernel, size = conv.kernel_size[0], frames.values.shape[1]
            before = (kernel - stride) // 2
            after = (-(-size // stride) - 1) * stride + kernel - before - size
            # Set padding to zero before every convolution, because biases make it nonzero.
            values = F.pad(frames.zeroed().values.transpose(1, 2), (before, after))
            # [B, D, T] -> [B, T/stride, C]
            values = F.gelu(conv(values)).transpose(1, 2)
            lengths = num_windows(frames.lengths, stride)
            frames = replace(frames, values=values, lengths=lengths, rate=frames.rate / stride, ctc_logits=None)
        return frames
