"""Frozen linear layers in 4 or 8 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), through bitsandbytes."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio.config import UserError, first_line

Quantization = Literal["nf4", "int8"]

REQUIREMENT = "bitsandbytes>=0.50"
_BLOCK = 64
"""Number of weights that share a scale in ``nf4``."""
_NESTED_BLOCK = 256
"""Number of scales that are quantized together in ``nf4``."""


class QuantizedLinear(nn.Module):
    """A frozen linear layer whose weight is stored in few bits, and dequantized for every matrix product.

    ``nf4`` has 4 bits for each weight, and a scale for each block of 64 weights. The scales are quantized to 8 bits.
    ``int8`` has 8 bits for each weight, and one scale in fp32 for each output. Inputs are never quantized, so padding
    and other rows of the batch do not affect a row.

    The state dict has only the bias, because the quantized weight can be computed again from the checkpoint.
    :func:`whole_state` adds the dequantized weights.
    """

    codes: Tensor
    """Quantized weights, as bytes."""
    nested: Tensor
    """Quantized scales of the blocks, as bytes. Only in ``nf4``."""
    scales: Tensor
    """fp32 values, as bytes. ``int8``: the scale of each output. ``nf4``: an offset, then the scales of ``nested``."""
    _typed: Tensor
    """Empty tensor that stores the data type of :attr:`weight`. A conversion of the model also converts this tensor."""

    def __init__(self, layer: nn.Linear, kind: Quantization) -> None:
        super().__init__()
        self.kind, self.in_features, self.out_features = kind, layer.in_features, layer.out_features
        self.bias = layer.bias
        # Scales are kept as bytes, so that a conversion of the model to another type does not round them.
        for name, tensor in _packed(layer.weight.detach(), kind).items():
            tensor = tensor.contiguous().view(torch.uint8).to(layer.weight.device)
            self.register_buffer(name, tensor, persistent=False)
        self.register_buffer("_typed", layer.weight.new_empty(0), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of :attr:`weight`."""
        return self._typed.dtype

    def set_type(self, dtype: torch.dtype) -> None:
        """Set the data type of :attr:`weight`."""
        self._typed = self._typed.to(dtype)

    @property
    def num_weights(self) -> int:
        """Number of weights, without the bias."""
        return self.in_features * self.out_features

    @property
    def weight(self) -> Tensor:
        """The dequantized weight ``[out, in]``, which is computed at every access."""
        shape = (self.out_features, self.in_features)
        if self.codes.is_meta:
            return torch.empty(shape, dtype=self.dtype, device="meta")
        functional = _functional()
        scales = self.scales.view(torch.float32)
        if self.kind == "int8":
            restored: Tensor = functional.int8_vectorwise_dequant(self.codes.view(torch.int8).view(shape), scales)
            return restored.to(self.dtype)
        nested = functional.QuantState(
            scales[1:], code=_nested_codes(scales.device), blocksize=_NESTED_BLOCK, dtype=torch.float32
        )
        dtype = torch.float32 if self.dtype == torch.float64 else self.dtype  # there is no kernel for fp64
        state = functional.QuantState(
            self.nested, shape, blocksize=_BLOCK, quant_type="nf4", dtype=dtype, offset=scales[0], state2=nested
        )
        restored = functional.dequantize_4bit(self.codes, state)
        return restored.to(self.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs ``[..., out]`` for inputs ``[..., in]``."""
        product: Tensor = _Product.apply(inputs, self)
        return product


class _Product(torch.autograd.Function):
    """A linear layer. Autograd does not keep the dequantized weight, so the backward pass dequantizes it again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, inputs.dtype
        return F.linear(inputs, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return (gradient @ ctx.layer.weight.to(gradient.dtype)).to(ctx.dtype), None


def quantize(part: nn.Module, kind: Quantization) -> None:
    """Replace the linear layers that :func:`quantizable` returns by quantized layers, in place. Keep their adapters.

    Weights are quantized in fp32 on the CPU, so that the result does not depend on the machine. On the meta device,
    bitsandbytes is not needed.

    Raises:
        UserError: bitsandbytes is not installed, or there is no linear layer.
    """
    layers = quantizable(part)
    if not layers:
        raise UserError(
            f"decoder.quantization: {kind} applies to linear layers, and this decoder has none (the Conv1D layers of "
            "GPT-2 are not supported); remove quantization"
        )
    if not all(layer.weight.is_meta for layer in layers.values()):
        check_available(kind)
    for path, layer in layers.items():
        assert isinstance(layer, nn.Linear), "a part is quantized once"
        _replace(part, path, QuantizedLinear(layer, kind))


def dequantize(part: nn.Module) -> None:
    """Replace quantized layers in place by linear layers with the dequantized weights."""
    for path, layer in list(quantized_layers(part)):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight, plain.bias = nn.Parameter(layer.weight, requires_grad=False), layer.bias
        _replace(part, path, plain)


def quantizable(part: nn.Module) -> dict[str, nn.Linear | QuantizedLinear]:
    """Return the linear layers that are, or can be, quantized: all except heads and adapters. Keys are paths."""
    from transformers import PreTrainedModel

    # Logits are sensitive to rounding errors in the head. The head also often shares its weight with the embeddings.
    heads = {id(model.get_output_embeddings()) for model in part.modules() if isinstance(model, PreTrainedModel)}
    return {
        path: layer
        for path, layer in part.named_modules()
        if isinstance(layer, nn.Linear | QuantizedLinear)
        and id(layer) not in heads
        and not any(step.startswith("lora_") for step in path.split("."))
    }


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """Yield the paths of quantized layers, and the layers."""
    return ((path, layer) for path, layer in model.named_modules() if isinstance(layer, QuantizedLinear))


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict, with the dequantized weights of quantized layers."""
    return model.state_dict() | {f"{path}.weight": layer.weight for path, layer in quantized_layers(model)}


def check_available(kind: Quantization) -> None:
    """Check that bitsandbytes can be imported.

    Raises:
        UserError: bitsandbytes cannot be imported.
    """
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"decoder.quantization: {kind} needs bitsandbytes, which cannot be imported "
            f"({first_line(error)}); pip install '{REQUIREMENT}'"
        ) from error


def _packed(weight: Tensor, kind: Quantization) -> dict[str, Tensor]:
    """Quantize a weight ``[out, in]``. The keys are the names of the buffers of :class:`QuantizedLinear`."""
    if weight.is_meta:
        return _packed_on_meta(weight, kind)
    functional = _functional()
    weight = weight.cpu().float()
    if kind == "int8":
        codes, scales, _ = functional.int8_vectorwise_quant(weight)
        return {"codes": codes, "scales": scales}
    codes, state = functional.quantize_4bit(weight, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4")
    return {"codes": codes, "nested": state.absmax, "scales": torch.cat([state.offset[None], state.state2.absmax])}


def _packed_on_meta(weight: Tensor, kind: Quantization) -> dict[str, Tensor]:
    def empty(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    if kind == "int8":
        return {"codes": empty(*weight.shape), "scales": empty(len(weight), dtype=torch.float32)}
    blocks = -(-weight.numel() // _BLOCK)
    return {
        "codes": empty(-(-weight.numel() // 2), 1),
        "nested": empty(blocks),
        "scales": empty(1 - (-blocks // _NESTED_BLOCK), dtype=torch.float32),
    }


def _functional() -> Any:
    # With an import statement, transformers would require bitsandbytes for each exported model that contains this file.
    return importlib.import_module("bitsandbytes.functional")


@functools.cache
def _nested_codes(device: torch.device) -> Tensor:
    """Return the 256 values that the quantized scales of ``nf4`` can have, which are constants of bitsandbytes."""
    codes: Tensor = _functional().create_dynamic_map().to(device)
    return codes


def _replace(part: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(part.get_submodule(parent), name, layer)
