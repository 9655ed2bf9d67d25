"""Pack all clips of a batch into one sequence without padding, in which each clip attends only to itself.

Layers then do not compute padding, and attention can use fast kernels that do not support masks. If all rows begin with
the same tokens, such as the start of the prompt, this shared prefix can be packed only once, with the first row. All
rows then attend to it.
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
"""Attention implementations that support packed rows."""

_LARGEST_HEAD = 256
"""Maximum number of channels per head in ``varlen_attn``, PyTorch's kernel for packed rows. The number must also be a
multiple of 8."""
_CHANGES = ("softcap", "s_aux", "position_bias")
"""Arguments that change attention scores. Some models use them, but the kernel does not support them."""


@dataclass(frozen=True)
class Packing:
    """The positions of a padded batch that are computed, and where each row starts in the packed sequence.

    Dimensions: B rows · L positions of the longest row · P positions of the shared prefix · T positions to compute
    """

    mask: Tensor
    """``[B, L]`` bool, True on real positions."""
    index: Tensor
    """``[T]`` int64, indices of the computed positions in the flattened batch."""
    offsets: Tensor
    """``[B + 1]`` int32, the start of each row in the packed sequence, followed by T."""
    key_offsets: Tensor
    """``[B + 1]`` int32, as ``offsets``, but for a sequence in which each row has its own copy of the shared prefix."""
    longest: int
    """Number of real positions of the longest row."""

    @classmethod
    def of(cls, mask: Tensor, num_shared: int = 0) -> Packing:
        """Return the packing of a batch.

        Args:
            mask: ``[B, L]`` bool. Padding may be on either side.
            num_shared: P, the number of positions at the start that are the same in all rows. These are packed once. If
                P is above 0, padding must be on the right side.
        """
        sizes, computed = mask.sum(1), mask
        key_offsets = offsets = F.pad(sizes.cumsum(0), (1, 0)).int()
        if num_shared:
            computed = mask.clone()
            computed[1:, :num_shared] = False
            offsets = F.pad(computed.sum(1).cumsum(0), (1, 0)).int()
        return cls(mask, computed.flatten().nonzero()[:, 0], offsets, key_offsets, int(sizes.max()))

    def pack(self, values: Tensor) -> Tensor:
        """Pack ``[B, L, ...]`` to ``[1, T, ...]``."""
        return values.flatten(0, 1).index_select(0, self.index)[None]

    def unpack(self, values: Tensor) -> Tensor:
        """Unpack ``[1, T, D]`` to ``[B, L, D]``, with zeros in the padding."""
        batch, size = self.mask.shape
        flat = values.new_zeros(batch * size, values.shape[2]).index_copy(0, self.index, values[0])
        return flat.view(batch, size, -1)

    def positions(self) -> Tensor:
        """Return position ids ``[1, T]`` int64. They start at 0 in the first row, and at P in every other row."""
        return self.pack(self.mask.long().cumsum(1) - 1)

    def attention(self) -> dict[str, Any]:
        """Return the keyword arguments for transformers' layers, named as for Flash Attention 2."""
        lengths = {"cu_seq_lens_q": self.offsets, "cu_seq_lens_k": self.key_offsets}
        return lengths | {"max_length_q": self.longest, "max_length_k": self.longest}


def register_varlen() -> None:
    """Register ``varlen`` as an attention implementation of transformers."""
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
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int = 0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface: queries ``[1, H, T, D]`` -> ``[1, T, H, D]``.

    Keys and values may have fewer heads than queries. Without ``cu_seq_lens_q``, the rows are padded instead of packed,
    as in generation. The result then equals that of ``attention: sdpa``. If a row has more keys than queries, its first
    keys are those of the shared prefix, which is stored in the first row.

    Raises:
        UserError: the model changes its attention scores in a way that the kernel does not support.
    """
    change = next((name for name in _CHANGES if others.get(name) is not None), None)
    if change is not None:
        raise UserError(f"attention: varlen does not support {change}, which this model uses; set attention: auto")
    causal = bool(module.is_causal if is_causal is None else is_causal)
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        assert causal, "encoders with varlen always pack"
        padded: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
        return padded
    assert not dropout, "the config of a part rejects dropout with varlen"
    assert causal or sliding_window is None, "no encoder that packs has sliding windows"
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        # Norms return full precision, and autocast does not convert the kernel's inputs, so convert them here.
        half = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(half), key.to(half), value.to(half)
    cu_seq_lens_k = cu_seq_lens_q if cu_seq_lens_k is None else cu_seq_lens_k
    in_half = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    # `attend_by_kernel` does not support a shared prefix. Without a shared prefix, both offsets are the same tensor, so
    # `is` replaces a slow comparison of values.
    if in_half and takes_heads(query.shape[3]) and cu_seq_lens_k is cu_seq_lens_q:
        # [1, H, T, D] -> [T, H, D]
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        attended = attend_by_kernel(query, key, value, cu_seq_lens_q, max_length_q, causal, scaling, sliding_window)
        return attended[None], None
    offsets = cu_seq_lens_q, cu_seq_lens_k
    return _attend_row_by_row(query, key, value, *offsets, causal, scaling, sliding_window), None


def takes_heads(size: int) -> bool:
    """Whether the kernel supports heads of ``size`` channels."""
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
    """Call PyTorch's build of Flash Attention 2, in half precision on a GPU: ``[T, H, D]`` -> ``[T, H, D]``."""
    from torch.nn.attention.varlen import varlen_attn

    left = -1 if sliding_window is None else sliding_window - 1  # the kernel does not count the query's own position
    # Repeat the heads of keys and values, because the kernel's documentation does not mention grouped-query attention.
    # With g query heads for each key head: [T, H/g, D] -> [T, H, D]
    shared = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(shared, 1) if shared > 1 else tensor for tensor in (key, value))
    window = (left, 0) if causal else (-1, -1)
    attended = varlen_attn(query, key, value, offsets, offsets, longest, longest, scale=scaling, window_size=window)
    assert isinstance(attended, Tensor)
    return attended


def exclude_rows_from_compilation() -> None:
    """Exclude row-by-row attention from ``torch.compile``, which would compile it again for each number of rows.

    As a decorator, ``torch.compiler.disable`` would import the compiler together with this module. The import takes
    longer than the rest of ``tiny-audio validate``.
    """
    global _attend_row_by_row
    _attend_row_by_row = torch.compiler.disable(_attend_row_by_row)  # type: ignore[no-untyped-call]


def _attend_row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    key_offsets: Tensor,
    causal: bool,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Compute the attention of packed rows with one SDPA call per row: queries ``[1, H, T, D]`` -> ``[1, T, H, D]``.

    Unlike the kernel, this function supports every precision and device, and rows that share a prefix.
    """
    sizes, num_keys = offsets.diff().tolist(), key_offsets.diff().tolist()
    attended = []
    rows = zip(*(torch.split(tensor, sizes, 2) for tensor in (query, key, value)), num_keys, strict=True)
    for q, k, v, all_keys in rows:
        mask, shared = None, all_keys - q.shape[2]
        if shared:
            k, v = torch.cat([key[:, :, :shared], k], 2), torch.cat([value[:, :, :shared], v], 2)
        if shared or (sliding_window is not None and all_keys > sliding_window):
            position = torch.arange(all_keys, device=query.device)
            distance = position[shared:, None] - position
            mask = distance >= 0
            if sliding_window is not None:
                mask &= distance < sliding_window
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
    """Implement transformers' mask interface: no mask for packed rows, SDPA's mask for padded rows.

    Rows are packed if there is no padding mask and the position ids start again within the sequence. For such position
    ids, transformers passes ``allow_is_causal_skip=False``.
    """
    from transformers.masking_utils import sdpa_mask

    if settings.get("attention_mask") is None and not settings.get("allow_is_causal_skip", True):
        return None
    mask: Tensor | None = sdpa_mask(**settings)
    return mask
