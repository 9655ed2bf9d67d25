"""Two linear layers on stacked or averaged frames."""

from __future__ import annotations

from torch import Tensor, nn

from tiny_audio.projectors import Frames, Projector, ProjectorConfig, ProjectorContext
from tiny_audio.projectors._layers import FeedForward, normalize, num_windows, output_norm, windows


class StackedProjector(Projector):
    """Stack or average k frames → linear → optional RMSNorm → activation → linear → RMSNorm."""

    def __init__(
        self,
        config: ProjectorConfig,
        context: ProjectorContext,
        *,
        stack: int,
        hidden_dim: int,
        activation: type[nn.Module],
        bias: bool,
        average: bool = False,
        hidden_norm: bool = False,
    ) -> None:
        super().__init__()
        self.stack, self.average = stack, average
        self.feedforward = FeedForward(
            context.in_dim if average else stack * context.in_dim,
            hidden_dim,
            context.out_dim,
            activation,
            bias=bias,
            hidden_norm=hidden_norm,
        )
        self.output_norm = output_norm(config, context)

    def max_embeddings(self, num_frames: Tensor) -> Tensor:
        """Return the number of stacks."""
        return num_windows(num_frames, self.stack)

    def forward(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Map frames ``[B, T, D]`` to embeddings ``[B, ⌈T/k⌉, H]``.

        The last stack is padded with zeros. Averages do not include padding.
        """
        # [B, T, D] -> [B, T/k, k, D]
        merged = windows(frames.zeroed().values, self.stack)
        if self.average:
            sizes = windows(frames.mask()[..., None].to(merged.dtype), self.stack).sum(2)
            merged = merged.sum(2) / sizes.clamp(min=1)
        else:
            merged = merged.flatten(2)
        return normalize(self.output_norm, self.feedforward(merged)), self.max_embeddings(frames.lengths)
