"""Set the data types of weights and arithmetic in training."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from tiny_audio.pretrained.quantization import quantized_layers
from tiny_audio.recipe import Recipe, TrainingConfig
from tiny_audio.runtime.device import frozen_type, set_tf32

Precision = Literal["fp32", "bf16"]


def set_types(model: nn.Module, precision: Precision, device: torch.device) -> None:
    """Cast frozen weights to :func:`frozen_type`, and all other weights to at least fp32.

    Trainable weights stay in fp32, because bf16 would round small updates to zero.
    """
    frozen = frozen_type(precision, device.type)
    for tensor in model.parameters():
        if frozen == torch.bfloat16 and not tensor.requires_grad:
            tensor.data = tensor.data.to(frozen)
        else:
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))
    for _, layer in quantized_layers(model):
        layer.set_type(frozen)
    if precision == "bf16":
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in model.modules():
            # By default, peft casts the adapter's input to fp32, and autocast casts it back to bf16. Skip both casts.
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False


def set_precision(model: nn.Module, training: TrainingConfig, device: torch.device) -> None:
    """Set the types of weights and arithmetic that training uses on the device."""
    set_tf32(training.tf32)
    set_types(model, training.precision, device)


def place(model: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Cast a model to the data types of training, and move it to the device."""
    set_precision(model, recipe.training, device)
    model.to(device)


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return a context that computes in bf16 if ``precision`` is ``bf16``.

    A model with both fp32 and bf16 weights needs this context.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
