"""Emulate two ways in which PyTorch changes a model's calls on a device: autocast, and the choice of fused kernels.

On the meta device, which a dry run uses, PyTorch makes neither change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from tiny_audio.pretrained.packing import attend_by_kernel

# Functions that autocast runs in half precision (lowered) and in fp32 (raised). The lists are those of
# ATen/autocast_mode.h, limited to functions that models call.
# fmt: off
_LOWERED = (
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "prelu", "addmm", "addmv", "matmul",
    "__matmul__", "__rmatmul__", "einsum", "mm", "mv", "linear", "addbmm", "baddbmm", "bmm",
    "scaled_dot_product_attention",
)
_RAISED_ON_CUDA = (
    "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "pow", "__pow__", "__rpow__", "softplus",
    "layer_norm", "group_norm", "cosine_similarity", "nll_loss", "kl_div", "l1_loss", "mse_loss",
    "binary_cross_entropy_with_logits", "dist", "cdist", "logsumexp", "norm", "softmax", "log_softmax", "cumsum",
    "cumprod", "sum", "prod", "cross_entropy", "ctc_loss",
)
_RAISED_ON_CPU = ("stft", "nll_loss", "ctc_loss", "mse_loss", "kl_div", "l1_loss", "prod", "cdist")
# fmt: on


class AutocastEmulation(TorchFunctionMode):
    """Inside its ``with`` block, changes function calls as PyTorch would change them on a real device.

    Args:
        device: the device to emulate.
        autocast: the data type of matrix products under autocast. If None, autocast is off.
    """

    def __init__(self, device: Literal["cuda", "cpu"], autocast: torch.dtype | None) -> None:
        super().__init__()
        self._device = device
        self._type = autocast
        self._lowered = frozenset(_LOWERED if autocast else ())
        self._raised = frozenset(() if autocast is None else _RAISED_ON_CUDA if device == "cuda" else _RAISED_ON_CPU)
        self._switched_off = 0
        self._weights: dict[int, Tensor] = {}
        self._keeps_weights = True

    def __enter__(self) -> AutocastEmulation:
        super().__enter__()  # type: ignore[no-untyped-call]
        # Some layers use torch.autocast to disable autocast. torch.autocast rejects the meta device, so replace it.
        self._autocast = torch.autocast
        torch.autocast = lambda *_, enabled=True, **__: _Region(self, enabled)  # type: ignore[assignment, misc]
        return self

    def __exit__(self, *exception: Any) -> None:
        torch.autocast = self._autocast  # type: ignore[misc]
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def leave_autocast(self) -> None:
        """Release the cast copies of weights, as PyTorch does at the end of autocast.

        The autograd graph still has the copies that the backward pass needs.
        """
        self._weights.clear()

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of ``loss``.

        ``loss.backward()`` cannot be used. PyTorch turns this mode off inside ``backward``, so layers that are
        recomputed in the backward pass would not be emulated.
        """
        self._keeps_weights = False  # each recomputed layer enters autocast again, and casts its weights again
        engine = torch.autograd.Variable._execution_engine
        engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), accumulate_grad=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": "cpu"}  # on the meta device, the tensor would lose its values
        name = func.__name__
        if name in self._lowered and not self._switched_off:
            args, kwargs = _cast(self._lower, args, kwargs)
        elif name in self._raised and not self._switched_off:
            args, kwargs = _cast(_raise, args, kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if self._device == "cuda" and func is F.rms_norm:
            return _rms_norm(*args, **kwargs)
        if self._device == "cuda" and func is F.dropout:
            return _dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _lower(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype == self._type:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad and self._keeps_weights):
            return tensor.to(self._type)
        # As in autocast, all calls share one copy of a weight.
        if id(tensor) not in self._weights:
            self._weights[id(tensor)] = tensor.to(self._type)
        return self._weights[id(tensor)]

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Run fused attention.

        Fused kernels save queries, keys, values, the result and one number per query for the backward pass, but no
        scores.
        """
        trains_bias = attn_mask is not None and attn_mask.requires_grad
        if self._device == "cpu" and (dropout_p or trains_bias):  # no fused kernel for CPUs supports these
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            # Fused kernels add the mask to the scores, so every layer creates and keeps a floating-point mask.
            attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device)
        if attn_mask is not None and trains_bias:
            bias = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
            efficient = torch.ops.aten._scaled_dot_product_efficient_attention
            attended: Tensor = efficient(query, key, value, bias, True, 0.0, is_causal, scale=scale)[0]
            return attended
        return _fused(query, key, value, is_causal, attn_mask=attn_mask, scale=scale)


class _Region:
    """Emulates ``with torch.autocast(…, enabled=…)``."""

    def __init__(self, emulation: AutocastEmulation, enabled: bool) -> None:
        self._autocast = emulation
        self._step = 0 if enabled else 1

    def __enter__(self) -> None:
        self._autocast._switched_off += self._step

    def __exit__(self, *_: Any) -> None:
        self._autocast._switched_off -= self._step


def use_flash_attention(part: nn.Module) -> None:
    """Emulate Flash Attention 2 and ``attention: varlen`` in a part's transformers models, without flash-attn.

    Attention skips padding, so no layer creates or keeps a mask.
    """
    name = "dry_run"  # if the name had "flash" in it, transformers would look for the package flash-attn
    AttentionInterface.register(name, _flash_attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    for module in part.modules():
        if isinstance(module, PreTrainedModel):
            module.set_attn_implementation(name)


def _flash_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **__: Any,
) -> Any:
    if cu_seq_lens_q is None:  # the rows are padded; in a real run, transformers removes the padding here
        # [B, H, T, D] -> [B, T, H, D]
        return _fused(query, key, value).transpose(1, 2), None
    # [1, H, T, D] -> [T, H, D]. The sliding window is left out, because it does not affect sizes.
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    attended = attend_by_kernel(query, key, value, cu_seq_lens_q, max_length_q, module.is_causal, scaling, None)
    return attended[None], None


def _fused(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, **settings: Any) -> Tensor:
    # All fused kernels save the same tensors. Use the CPU's kernel, which also works on machines without a GPU.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attended: Tensor = kernel(query, key, value, 0.0, is_causal, **settings)[0]
    return attended


def _cast(cast: Callable[[Tensor], Tensor], args: Any, kwargs: Any) -> tuple[Any, Any]:
    return (
        tuple(cast(value) if isinstance(value, Tensor) else value for value in args),
        {key: cast(value) if isinstance(value, Tensor) else value for key, value in kwargs.items()},
    )


def _raise(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Any:
    return torch.ops.aten._fused_rms_norm(input, list(normalized_shape), weight, eps)[0]


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Run dropout as on a GPU: the saved mask has one byte per element. On a CPU, it has one float per element."""
    return torch.native_dropout(input, p, training)[0] if p and training else input
