"""Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762), optionally with rotary positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio.projectors._layers import init_normal


def check_heads(dim: int, num_heads: int) -> None:
    """Raise ValueError if the width is not a multiple of the number of heads."""
    if dim % num_heads:
        raise ValueError(
            f"dim {dim} is not a multiple of num_heads {num_heads}; set dim to a multiple, such as "
            f"{(dim // num_heads + 1) * num_heads}"
        )


def initialize(module: nn.Module) -> None:
    """Initialize a linear layer as in BERT: normal weights with standard deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear):
        init_normal(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention."""

    def __init__(
        self, dim: int, num_heads: int, *, key_dim: int | None = None, dropout: float = 0.0, rotary: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.rotary = rotary
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(key_dim or dim, dim)
        self.value = nn.Linear(key_dim or dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend to the keys, and return ``[B, Q, D]``.

        Args:
            queries: ``[B, Q, D]``, or ``[1, Q, D]`` if all clips have the same queries.
            keys: ``[B, K, C]``.
            mask: bool ``[B, K]``, True for keys that queries may attend to. Each row has at least one True. If None,
                queries may attend to all keys.
        """
        query, key, value = (
            # [B, T, D] -> [B, heads, T, D/heads]
            torch.unflatten(layer(values), -1, (self.num_heads, -1)).transpose(1, 2)
            for layer, values in ((self.query, queries), (self.key, keys), (self.value, keys))
        )
        if self.rotary:
            query, key = rotated(query), rotated(key)
        found = F.scaled_dot_product_attention(
            query.expand(len(key), -1, -1, -1),
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        output: Tensor = self.output(found.transpose(1, 2).flatten(2))
        return output


def rotated(values: Tensor) -> Tensor:
    """Apply rotary positions (Su et al. 2021, arXiv 2104.09864) to ``[B, heads, T, C]``. C must be even."""
    half = values.shape[-1] // 2
    positions = torch.arange(values.shape[-2], device=values.device, dtype=torch.float32)
    frequencies = 10_000 ** (-torch.arange(half, device=values.device, dtype=torch.float32) / half)
    # Angles are computed in fp32, because bf16 cannot represent position 257.
    angles = positions[:, None] * frequencies
    cos, sin = angles.cos().to(values.dtype), angles.sin().to(values.dtype)
    first, second = values[..., :half], values[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
