"""Two linear layers on stacked frames. Activation, width and biases differ between papers."""

from __future__ import annotations

from torch import Tensor, nn

from tiny_audio.projectors import Frames, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.projectors._layers import FeedForward, normalize, num_windows, output_norm, windows


class StackedProjector(Projector):
    """Stack k frames → linear → activation → linear → RMSNorm."""

    def __init__(
        self,
        config: ProjectorConfig,
        context: ProjectorContext,
        *,
        stack: int,
        hidden_dim: int,
        activation: type[nn.Module],
        bias: bool,
    ) -> None:
        super().__init__()
        self.stack = stack
        self.feedforward = FeedForward(stack * context.in_dim, hidden_dim, context.out_dim, activation, bias=bias)
        self.output_norm = output_norm(config, context)

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """Return the number of stacks. The last stack may be incomplete."""
        return num_windows(num_frames, self.stack)

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Map frames ``[B, T, D]`` to embeddings ``[B, ⌈T/k⌉, H]``. The last stack is padded with zeros."""
        # [B, T, D] -> [B, T/k, k·D]
        stacked = windows(frames.zeroed().values, self.stack).flatten(2)
        return normalize(self.output_norm, self.feedforward(stacked)), self.max_embeddings(frames.lengths)
