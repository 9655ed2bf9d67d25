"""torch.compile on the layers of encoder and decoder, which changes neither keys nor exports."""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import AbstractContextManager

import torch
from torch import nn

from tiny_audio.config import UserError


def compile_layers(model: nn.Module, device: torch.device) -> int:
    """Compile each layer in place, and say how many there are; equal layers share one compilation.

    Layers rather than the whole model: between them are lengths that decide on control flow. Sizes are dynamic, since
    hardly two batches have the same.

    Raises:
        UserError: this machine lacks what compiling needs.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"execution.compile needs a C++ compiler on a CPU, and there is no {compiler}; install one, or set "
            "execution.compile: false"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("execution.compile needs Triton on a GPU; pip install triton, or set execution.compile: false")
    layers = [
        module
        for module in model.modules()
        # The convolutions of a front end are of this class too, and no two of them are alike.
        if isinstance(module, GradientCheckpointingLayer)
        and any(isinstance(inner, nn.Linear) for inner in module.modules())
    ]
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


def uncompiled() -> AbstractContextManager[None]:
    """Where compiled layers run as they are written: generation, with caches that grow, would compile them anew."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
