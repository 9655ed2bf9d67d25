"""WavLM (Chen et al. 2021, arXiv 2110.13900): masked prediction and denoising, with gated relative positions."""

from __future__ import annotations

from types import MethodType
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_audio.encoders import ENCODERS, Encoder, EncoderContext
from tiny_audio.encoders._waveform import LINEAR_LAYERS, TINY, WaveformConfig, build_waveform_encoder


class WavLMConfig(WaveformConfig):
    """WavLM: convolutions on the waveform, 50 frames per second, clips of any length."""

    # Each attention head of WavLM adds a bias that depends on distance. Flash Attention does not support biases.
    attentions: ClassVar[tuple[str, ...]] = ("sdpa",)
    linear_layers: ClassVar[tuple[str, ...] | None] = (*LINEAR_LAYERS, "gru_rel_pos_linear")

    name: Literal["wavlm"] = "wavlm"
    pretrained: str = "microsoft/wavlm-large"
    """Hub id or local folder of a WavLM checkpoint, with or without a CTC head."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with two layers of 32 channels."""
        return cls(init="random", overrides=TINY, freeze=False)


@ENCODERS.register
def build_wavlm(config: WavLMConfig, context: EncoderContext) -> Encoder:
    """Build WavLM from a checkpoint with or without a CTC head, or with random weights."""
    from transformers import WavLMModel

    # transformers implements only eager attention for WavLM. The loop below replaces the method that computes it.
    encoder = build_waveform_encoder(WavLMModel, config, context, attention="eager")
    for layer in encoder.model.encoder.layers:
        layer.attention.torch_multi_head_self_attention = MethodType(_attend, layer.attention)
    return encoder


def _attend(attention: Any, hidden: Tensor, mask: Tensor | None, bias: Tensor) -> tuple[Tensor, None]:
    """Compute attention on ``hidden [B, T, D]`` with ``bias [B·heads, T, T]``, the gated position bias.

    ``mask [B, T]`` is bool and True on real frames. If it is None, there is no padding.

    transformers' own method passes the projections' weight matrices to a fused function of torch, so LoRA adapters
    would have no effect. The fused function also stores the attention weights of every head.
    """
    batch, size, dim = hidden.shape
    query, key, value = (
        project(hidden).view(batch, size, attention.num_heads, -1).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    bias = bias.view(batch, attention.num_heads, size, size).to(query.dtype)
    if mask is not None:
        bias = bias.masked_fill(~mask[:, None, None], -torch.inf)
    dropout = attention.dropout if attention.training else 0.0
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    return attention.out_proj(attended.transpose(1, 2).reshape(batch, size, dim)), None
