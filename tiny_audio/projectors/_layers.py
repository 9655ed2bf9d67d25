"""Layers that several projectors use: stacking, two linear layers, and the norm of the output."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio.projectors import ProjectorConfig, ProjectorContext


def output_norm(config: ProjectorConfig, context: ProjectorContext) -> nn.RMSNorm:
    """Return the last layer of a projector, an RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467).

    The initial gain is ``config.output_rms`` or, if that is None, the RMS of the decoder's token embeddings.
    """
    norm = nn.RMSNorm(context.out_dim, eps=1e-6)
    nn.init.constant_(norm.weight, context.embedding_rms if config.output_rms is None else config.output_rms)
    return norm


def init_normal(tensor: Tensor, std: float) -> None:
    """Draw initial values from a normal distribution with mean 0 and standard deviation ``std``."""
    # Do nothing on the meta device. Otherwise, torch would import its compiler, which takes 2 s.
    if not tensor.is_meta:
        nn.init.normal_(tensor, std=std)


def normalize(norm: nn.RMSNorm | nn.LayerNorm, values: Tensor) -> Tensor:
    """Apply a norm in the precision of its weights. Under autocast, the values may have half precision."""
    normalized: Tensor = norm(values.to(norm.weight.dtype))
    return normalized


def num_windows(num_frames: Tensor, size: int) -> Tensor:
    """Return the number of windows that cover the frames. The last window may be incomplete."""
    return (num_frames + size - 1) // size


def windows(values: Tensor, size: int) -> Tensor:
    """Split ``[B, T, D]`` into windows ``[B, ⌈T/k⌉, k, D]`` of k = ``size`` frames without overlap.

    The last window is padded with zeros.
    """
    values = F.pad(values, (0, 0, 0, -values.shape[1] % size))
    return torch.unflatten(values, 1, (-1, size))


class FeedForward(nn.Module):
    """Linear → optional RMSNorm → activation → linear."""

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        activation: type[nn.Module],
        *,
        bias: bool = True,
        hidden_norm: bool = False,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(in_dim, hidden_dim, bias=bias)
        self.norm = nn.RMSNorm(hidden_dim, eps=1e-6) if hidden_norm else None
        self.activation = activation()
        self.down = nn.Linear(hidden_dim, out_dim, bias=bias)

    def forward(self, values: Tensor) -> Tensor:
        """Map ``[..., in_dim]`` to ``[..., out_dim]``."""
        hidden = self.up(values)
        if self.norm is not None:
            hidden = normalize(self.norm, hidden)
        projected: Tensor = self.down(self.activation(hidden))
        return projected
