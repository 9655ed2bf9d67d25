"""Merge LoRA adapters into the base weights (Hu et al. 2021, arXiv 2106.09685, section 4.1)."""

from __future__ import annotations

from typing import Any

import torch

from tiny_audio.model.model import TinyAudioModel
from tiny_audio.pretrained.quantization import dequantize


@torch.no_grad()
def merge_adapters(model: TinyAudioModel) -> int:
    """Replace every layer that has an adapter by an equivalent plain layer, and return the number of these layers.

    Quantized weights are dequantized first. Merged weights have at least single precision, because rounding to half
    precision would remove the small changes of the adapters.
    """
    from peft.tuners.lora import LoraLayer

    dequantize(model.decoder)
    adapted: list[tuple[str, Any]] = [(name, one) for name, one in model.named_modules() if isinstance(one, LoraLayer)]
    for name, layer in adapted:
        plain = layer.get_base_layer()
        layer.to(torch.promote_types(plain.weight.dtype, torch.float32))
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, plain)
    for kind in ("encoder", "decoder"):
        setattr(model.config, kind, {**getattr(model.config, kind), "lora": None})
    model.config.decoder = {**model.config.decoder, "quantization": None}
    return len(adapted)
