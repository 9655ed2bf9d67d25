"""Packed rows: all clips of a batch in one sequence without padding, each of which attends to itself alone.

Padding then costs nothing in any layer, and attention needs no mask, which the fast kernels refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_audio.config import UserError

VARLEN = "varlen"
PACKED = (VARLEN, "flash_attention_2")
"""Attention implementations that read packed rows."""

_LARGEST_HEAD = 256
"""Channels of a head, at most and in multiples of 8, that the kernel takes."""
_CHANGES = ("softcap", "s_aux", "position_bias")
"""What some models do to their scores, and the kernel cannot."""


@dataclass(frozen=True)
class Packing:
    """Where the real positions of a padded batch are.

    B rows · L positions of the longest · T real positions of all rows
    """

    mask: Tensor
    """``[B, L]`` bool, True on real positions."""
    index: Tensor
    """``[T]`` int64, the real positions in the flattened batch."""
    offsets: Tensor
    """``[B + 1]`` int32, where each row starts among the T, and T."""
    longest: int
    """Real positions of the longest row."""

    @classmethod
    def of(cls, mask: Tensor) -> Packing:
        """From the bool mask ``[B, L]`` of a batch, wherever its padding is."""
        sizes = mask.sum(1)
        offsets = F.pad(sizes.cumsum(0), (1, 0)).int()
        return cls(mask, mask.flatten().nonzero()[:, 0], offsets, int(sizes.max()))

    def pack(self, values: Tensor) -> Tensor:
        """``[B, L, ...]`` -> ``[1, T, ...]``."""
        return values.flatten(0, 1).index_select(0, self.index)[None]

    def unpack(self, values: Tensor) -> Tensor:
        """``[1, T, D]`` -> ``[B, L, D]`` with zeros in the padding."""
        batch, size = self.mask.shape
        flat = values.new_zeros(batch * size, values.shape[2]).index_copy(0, self.index, values[0])
        return flat.view(batch, size, -1)

    def positions(self) -> Tensor:
        """``[1, T]`` int64, which restart at 0 with every row."""
        return self.pack(self.mask.long().cumsum(1) - 1)

    def attention(self) -> dict[str, Any]:
        """What transformers' layers hand on to the attention, by the names that Flash Attention 2 has there."""
        lengths = {"cu_seq_lens_q": self.offsets, "cu_seq_lens_k": self.offsets}
        return lengths | {"max_length_q": self.longest, "max_length_k": self.longest}


def register_varlen() -> None:
    """Make ``varlen`` an attention implementation of transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(VARLEN, attend)
    AttentionMaskInterface.register(VARLEN, _mask)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: queries ``[1, H, T, D]`` -> ``[1, T, H, D]``, keys may have fewer heads.

    Rows that come without lengths are padded ones of a decoder, as in generation, and attend as under SDPA.

    Raises:
        UserError: the model changes its scores in a way that the kernel cannot.
    """
    change = next((name for name in _CHANGES if others.get(name) is not None), None)
    if change is not None:
        raise UserError(f"attention: varlen cannot attend with the {change} of this model; set attention: auto")
    causal = bool(module.is_causal if is_causal is None else is_causal)
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        assert causal, "encoders that pack do so always"
        padded: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
        return padded
    assert not dropout, "a part's config refuses dropout under varlen"
    assert causal or sliding_window is None, "no encoder that packs has windows"
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        # Autocast does not know the kernel, and norms put out full precision.
        half = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(half), key.to(half), value.to(half)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and takes_heads(query.shape[3]):
        # [1, H, T, D] -> [T, H, D]
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        attended = attend_by_kernel(query, key, value, cu_seq_lens_q, max_length_q, causal, scaling, sliding_window)
        return attended[None], None
    return _attend_row_by_row(query, key, value, cu_seq_lens_q, causal, scaling, sliding_window), None


def takes_heads(size: int) -> bool:
    """Whether the kernel takes heads of so many channels."""
    return size % 8 == 0 and size <= _LARGEST_HEAD


def attend_by_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    longest: int,
    causal: bool,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """PyTorch's own build of Flash Attention 2, in half precision on a GPU: ``[T, H, D]`` -> ``[T, H, D]``."""
    from torch.nn.attention.varlen import varlen_attn

    left = -1 if sliding_window is None else sliding_window - 1  # beside the position itself
    # [T, H/g, D] -> [T, H, D]: the kernel promises nothing about heads that share keys
    shared = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(shared, 1) if shared > 1 else tensor for tensor in (key, value))
    window = (left, 0) if causal else (-1, -1)
    attended = varlen_attn(query, key, value, offsets, offsets, longest, longest, scale=scaling, window_size=window)
    assert isinstance(attended, Tensor)
    return attended


def _attend_row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    causal: bool,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """The same in any precision on any device: a call of SDPA for each row."""
    sizes = offsets.diff().tolist()
    attended = []
    for q, k, v in zip(*(torch.split(tensor, sizes, 2) for tensor in (query, key, value)), strict=True):
        size = q.shape[2]
        mask = None
        if sliding_window is not None and size > sliding_window:
            position = torch.arange(size, device=query.device)
            distance = position[:, None] - position
            mask = (distance >= 0) & (distance < sliding_window)
        attended.append(
            F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=causal and mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    # [1, H, T, D] -> [1, T, H, D]
    return torch.cat(attended, dim=2).transpose(1, 2)


def _mask(**settings: Any) -> Tensor | None:
    """transformers' mask interface: none for packed rows, SDPA's for padded ones.

    Packed rows show in positions that restart, under which no causal mask may be skipped, and in the absence of a mask
    of the padding.
    """
    from transformers.masking_utils import sdpa_mask

    if settings.get("attention_mask") is None and not settings.get("allow_is_causal_skip", True):
        return None
    mask: Tensor | None = sdpa_mask(**settings)
    return mask
