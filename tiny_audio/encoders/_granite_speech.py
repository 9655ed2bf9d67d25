"""A layer of Granite Speech's Conformer that supports padding.

This module imports transformers, so it is imported only when an encoder is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from tiny_audio.encoders._batch_norm import FixedBatchNorm


class MaskedConformerLayer(GradientCheckpointingLayer):  # type: ignore[misc]  # transformers is untyped here
    """A Conformer layer that uses the modules of a transformers layer and supports a mask.

    The transformers layer has no mask, so padding would change the frames near the end of a clip. The transformers
    layer also does not support gradient checkpointing.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.ff1, self.attn, self.conv, self.ff2 = layer.ff1, layer.attn, layer.conv, layer.ff2
        self.post_norm = layer.post_norm
        self.conv.batch_norm = FixedBatchNorm.of(self.conv.batch_norm)

    def forward(self, hidden: Tensor, mask: Tensor, distances: Tensor) -> Tensor:
        """Run the layer: ``[B, T, D]`` -> ``[B, T, D]``.

        Args:
            mask: ``[B, T]`` bool, True on real frames.
            distances: ``[block size, block size]`` int64, index of the position embedding for each query and key.
        """
        hidden = 0.5 * self.ff1(hidden) + hidden
        hidden = self._attend(hidden, mask, distances) + hidden
        hidden = self._convolve(hidden, mask) + hidden
        hidden = 0.5 * self.ff2(hidden) + hidden
        output: Tensor = self.post_norm(hidden)
        return output

    def _attend(self, hidden: Tensor, mask: Tensor, distances: Tensor) -> Tensor:
        """Compute self-attention within blocks of the same size. The last block is padded to this size."""
        attention = self.attn
        batch, num_frames, _ = hidden.shape
        size = min(attention.context_size, num_frames)
        padding = -num_frames % size
        padded = F.pad(attention.pre_norm(hidden), (0, 0, 0, padding))
        # [B, T, H·d] -> [B·blocks, H, size, d]
        query, key, value = (
            projected.reshape(-1, size, attention.num_heads, attention.dim_head).transpose(1, 2)
            for projected in (attention.to_q(padded), *attention.to_kv(padded).chunk(2, dim=-1))
        )
        positions = attention.rel_pos_emb(distances[:size, :size])
        bias = torch.einsum("bhqd,qkd->bhqk", query, positions) * attention.scale
        # Mask with the smallest finite value, because -inf would give NaN in blocks that contain only padding.
        real = F.pad(mask, (0, padding)).reshape(-1, 1, 1, size)
        bias = bias.masked_fill(~real, torch.finfo(bias.dtype).min)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=attention.scale)
        attended = attended.transpose(1, 2).reshape(batch, num_frames + padding, -1)
        output: Tensor = attention.dropout(attention.to_out(attended[:, :num_frames]))
        return output

    def _convolve(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Run the convolutions.

        The depthwise convolution reads beyond the end of a clip, so its input is set to zero in the padding.
        """
        convolution = self.conv
        # [B, T, D] -> [B, D', T]
        channels = convolution.glu(convolution.up_conv(convolution.norm(hidden).transpose(1, 2)))
        channels = convolution.depth_conv(channels.masked_fill(~mask[:, None], 0))
        channels = convolution.down_conv(convolution.silu(convolution.batch_norm(channels)))
        output: Tensor = convolution.dropout(channels.transpose(1, 2))
        return output
