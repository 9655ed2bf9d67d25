"""Apply torch.compile to the layers of encoder and decoder. This changes neither state dict keys nor exports."""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import AbstractContextManager

import torch
from torch import nn

from tiny_audio.config import UserError
from tiny_audio.pretrained.packing import exclude_rows_from_compilation


def compile_layers(model: nn.Module, device: torch.device) -> int:
    """Compile each layer in place, and return the number of layers. Layers of the same kind share one compilation.

    Only layers are compiled, because the control flow between layers depends on lengths. Sizes are dynamic, because
    they differ between batches.

    Raises:
        UserError: a C++ compiler (needed on a CPU) or Triton (needed on a GPU) is missing.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"execution.compile needs a C++ compiler on a CPU, but there is no {compiler}; install one, or set "
            "execution.compile: false"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("execution.compile needs Triton on a GPU; pip install triton, or set execution.compile: false")
    layers = [
        module
        for module in model.modules()
        # Skip the convolutions of front ends. Each has a different shape, so each would need its own compilation.
        if isinstance(module, GradientCheckpointingLayer)
        and any(isinstance(inner, nn.Linear) for inner in module.modules())
    ]
    exclude_rows_from_compilation()
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


def uncompiled() -> AbstractContextManager[None]:
    """Return a context in which compiled layers run in eager mode.

    Use this context for generation. The key-value cache grows, so compiled layers would be recompiled at each step.
    """
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
