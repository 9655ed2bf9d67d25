"""Adapters folded into the weights that they adapt (Hu et al. 2021, arXiv 2106.09685, section 4.1)."""

from __future__ import annotations

from typing import Any

import torch

from tiny_audio.model.model import TinyAudioModel

_ADAPTER = "default"
"""What peft calls the only one there is."""


@torch.no_grad()
def merge_adapters(model: TinyAudioModel) -> int:
    """Replace every adapted layer by a plain one that computes the same; gives how many there were.

    A merged weight has full precision: in half, the adapter's small change would be rounded away.
    """
    from peft.tuners.lora import LoraLayer

    adapted: list[tuple[str, Any]] = [(name, one) for name, one in model.named_modules() if isinstance(one, LoraLayer)]
    for name, layer in adapted:
        plain = layer.get_base_layer()
        layer.to(torch.promote_types(plain.weight.dtype, torch.float32))
        plain.weight.data += layer.get_delta_weight(_ADAPTER)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, plain)
    for kind in ("encoder", "decoder"):
        setattr(model.config, kind, {**getattr(model.config, kind), "lora": None})
    return len(adapted)
