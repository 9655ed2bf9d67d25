"""A projector similar to SLAM-LLM's: a strided convolution over the encoder's frames, and then a linear layer."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio.projectors import PROJECTORS, Frames, Projector, ProjectorConfig, ProjectorContext


class StridedConvConfig(ProjectorConfig):
    """Strided convolution over neighboring frames, then a GELU, a linear layer and a norm."""

    name: Literal["strided_conv"] = "strided_conv"
    stride: PositiveInt = 5
    """Encoder frames per embedding. Each embedding is computed from a window of twice as many frames, so neighboring
    windows overlap by half."""
    hidden_dim: PositiveInt = 1024
    """Output channels of the convolution."""

    def min_frames(self) -> int:
        """Return the number of frames in one window."""
        return 2 * self.stride

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with a stride of 3 and 32 channels."""
        return cls(stride=3, hidden_dim=32)


@PROJECTORS.register
def build_strided_conv(config: StridedConvConfig, context: ProjectorContext) -> Projector:
    """Build the projector."""
    gain = config.output_rms if config.output_rms is not None else context.embedding_rms
    return StridedConvProjector(context.in_dim, context.out_dim, config.stride, config.hidden_dim, gain)


class StridedConvProjector(Projector):
    """Conv1d (window 2k, stride k) → GELU → linear → RMSNorm. ``gain`` is the RMS of the embeddings at the start."""

    def __init__(self, in_dim: int, out_dim: int, stride: int, hidden_dim: int, gain: float) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv1d(in_dim, hidden_dim, kernel_size=2 * stride, stride=stride)
        self.down = nn.Linear(hidden_dim, out_dim)
        self.norm = nn.RMSNorm(out_dim, eps=1e-6)
        nn.init.constant_(self.norm.weight, gain)

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """Return the number of embeddings: the number of frames divided by the stride, rounded up."""
        return (num_frames + self.stride - 1) // self.stride

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Map frames ``[B, T, D]`` to embeddings ``[B, ⌈T/k⌉, H]`` with stride k. Frames beyond a clip's end are 0."""
        values = frames.zeroed().values.transpose(1, 2)
        # [B, D, T] -> [B, C, T/k]
        hidden = self.conv(F.pad(values, (0, self.stride + -values.shape[2] % self.stride)))
        embeddings = self.down(F.gelu(hidden).transpose(1, 2))
        # Under autocast, the embeddings are in half precision. The norm's input must have the type of its weights.
        return self.norm(embeddings.to(self.norm.weight.dtype)), self.max_embeddings(frames.lengths)
