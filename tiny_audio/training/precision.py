"""The types that weights have in training."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn


def set_types(model: nn.Module, precision: Literal["fp32", "bf16"], device: torch.device) -> None:
    """fp32 at least, and bf16 for what is frozen, where a GPU computes in it.

    bf16 masters would round small updates of norms to zero; a CPU gains nothing from bf16 weights; and without
    autocast, types may not meet.
    """
    half = precision == "bf16" and device.type == "cuda"
    for tensor in model.parameters():
        if half and not tensor.requires_grad:
            tensor.data = tensor.data.to(torch.bfloat16)
        else:
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))
