"""Which layer an encoder puts out: the last one, one by its number, or a learned sum of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tiny_audio.config import UserError
from tiny_audio.encoders import EncoderConfig


def keep_layers(architecture: Any, config: EncoderConfig, path: str) -> tuple[str, ...]:
    """Reduce a transformers config to the layers that ``config.layer`` needs, so that the others are never built.

    Args:
        architecture: the transformers config, which is changed.
        config: what the recipe says.
        path: regular expression of where a checkpoint keeps its layers, such as ``(hubert\\.)?encoder\\.layers``.

    Returns:
        regular expressions of the keys that a checkpoint then has and the model does not.

    Raises:
        UserError: there is no layer with that number.
    """
    depth = architecture.num_hidden_layers
    if not isinstance(config.layer, int):
        return ()
    if config.layer > depth:
        raise UserError(
            f"encoder.layer: this {config.name} has {depth} layers, and no layer {config.layer}; "
            f"give a number from 1 to {depth}, last or weighted"
        )
    architecture.num_hidden_layers = config.layer
    return tuple(rf"{path}\.{index}\..*" for index in range(config.layer, depth))


def check_no_adapter(architecture: Any, config: EncoderConfig) -> None:
    """Reject a checkpoint with an adapter, which lowers the frame rate and changes the width: a projector's task.

    Raises:
        UserError: there are convolutions on top of the layers.
    """
    if getattr(architecture, "add_adapter", False):
        raise UserError(
            f"{config.name if config.init == 'random' else config.pretrained}: add_adapter puts convolutions on top of "
            f"the layers, which {config.name} has no place for; choose a checkpoint without them"
        )


def weighted_layers(config: EncoderConfig, depth: int) -> WeightedLayers | None:
    """The learned sum where ``config.layer`` asks for one."""
    return WeightedLayers(depth) if config.layer == "weighted" else None


class WeightedLayers(nn.Module):
    """Softmax-weighted sum of an encoder's hidden states (Peters et al. 2018, arXiv 1802.05365).

    The sum starts as the mean. Its weights always train: a frozen encoder is what it is for.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(depth + 1))
        """Before the softmax: of the first layer's input, and of each layer's output."""

    def forward(self, layers: nn.ModuleList, run: Callable[[], object]) -> Tensor:
        """Sum ``[B, T, D]`` of what goes into the first of ``layers`` and comes out of each while ``run()`` runs them.

        Hooks see this whatever an architecture does between its layers, and stay outside of gradient checkpoints. The
        sum is kept rather than the states, which would take as much memory as all layers' outputs at once.
        """
        shares = list(self.weights.float().softmax(0))
        terms: list[Tensor] = []

        def add(hidden: Tensor) -> None:
            term = shares.pop(0) * hidden
            terms[:] = [terms[0] + term if terms else term]

        def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            add(inputs[0])

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            add(output[0] if isinstance(output, tuple) else output)

        hooks = [layers[0].register_forward_pre_hook(before)]
        hooks += [layer.register_forward_hook(after) for layer in layers]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
        assert not shares, "every layer runs once: the parts switch layerdrop off"
        return terms[0]
