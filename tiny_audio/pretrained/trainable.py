"""Prepare a transformers model for training: frozen weights, LoRA adapters, gradient checkpointing."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from tiny_audio.config import UserError
from tiny_audio.pretrained.config import LoraConfig, TransformersPartConfig
from tiny_audio.registry import did_you_mean


def prepare_training(model: nn.Module, part: TransformersPartConfig) -> None:
    """Freeze weights, turn gradient checkpointing on, and add adapters, as the part's config requires.

    Call this once per build, before trained weights are loaded, because adapters add modules to the model.

    Raises:
        UserError: a LoRA target matches no linear layer.
    """
    if part.freeze:
        model.requires_grad_(False)
    if part.gradient_checkpointing:
        # Reentrant checkpointing requires an input with a gradient, but frozen embeddings have no gradient.
        cast("Any", model).activation_checkpointing_enable({"use_reentrant": False})
    if part.lora is not None:
        inject_lora(model, part.lora)


def inject_lora(model: nn.Module, lora: LoraConfig) -> None:
    """Add the adapters in place, without peft's wrapper. In the state dict, only the keys of adapted layers change.

    Raises:
        UserError: a target matches no linear layer.
    """
    linear = [f".{path}" for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in lora.targets:
        if not any(path.endswith(f".{target}") for path in linear):
            names = {path.rsplit(".", 1)[-1] for path in linear}
            raise UserError(f"lora.targets: no linear layer is called {target!r}; {did_you_mean(target, names)}")
    import peft

    adapters = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        use_dora=lora.dora,
        use_rslora=lora.rslora,
    )
    peft.inject_adapter_in_model(adapters, model)


@torch.no_grad()
def reset_magnitudes(model: nn.Module) -> None:
    """Set the magnitudes of new DoRA adapters to the norms of the frozen weights' rows, in fp32.

    New adapters then do not change the outputs. peft already computes the norms when it adds the adapters, but other
    weights may be loaded afterwards. Norms in half precision would change the outputs by up to 0.4%.
    """
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for magnitude in layer.lora_magnitude_vector.values():
                magnitude.weight.data = layer.get_base_layer().weight.float().norm(dim=1)
