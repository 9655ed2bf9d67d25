"""Settings for the layers of transformers' encoders, and the choice of the output: one layer, or a weighted sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tiny_audio.config import UserError
from tiny_audio.encoders import EncoderConfig


def wav2vec_settings(config: EncoderConfig) -> dict[str, Any]:
    """Return fields of transformers' configs for wav2vec 2.0 and similar encoders: dropout, layerdrop, SpecAugment."""
    names = ("hidden", "activation", "attention", "feat_proj", "final")
    return {
        **{f"{name}_dropout": config.dropout for name in names},
        "layerdrop": 0.0,
        # SpecAugment is configured in the recipe's `augmentation`, in the same way for every encoder.
        "apply_spec_augment": False,
        "mask_time_prob": 0.0,
        "mask_feature_prob": 0.0,
    }


def keep_layers(architecture: Any, config: EncoderConfig, path: str) -> tuple[str, ...]:
    """Reduce a transformers config to the layers that ``config.layer`` needs, so that only these layers are built.

    Args:
        architecture: the transformers config, which is modified.
        path: regular expression for the layers' path in a checkpoint, such as ``(hubert\\.)?encoder\\.layers``.

    Returns:
        Regular expressions for the checkpoint's keys of the removed layers.

    Raises:
        UserError: there is no layer with the number ``config.layer``.
    """
    depth = architecture.num_hidden_layers
    if not isinstance(config.layer, int):
        return ()
    if config.layer > depth:
        raise UserError(
            f"encoder.layer is {config.layer}, but this {config.name} has {depth} layers; "
            f"set layer to a number from 1 to {depth}, to last, or to weighted"
        )
    architecture.num_hidden_layers = config.layer
    return tuple(rf"{path}\.{index}\..*" for index in range(config.layer, depth))


def check_no_adapter(architecture: Any, config: EncoderConfig) -> None:
    """Reject a checkpoint with ``add_adapter``: convolutions on top of the layers, which are not LoRA adapters.

    These convolutions lower the frame rate. In this package, the projector lowers the frame rate.

    Raises:
        UserError: the checkpoint has an adapter.
    """
    if getattr(architecture, "add_adapter", False):
        is_random = config.init == "random"
        raise UserError(
            f"{config.name if is_random else config.pretrained}: add_adapter puts convolutions on top of the layers, "
            f"and {config.name} does not support such convolutions; "
            f"{'remove overrides.add_adapter' if is_random else 'choose a checkpoint without an adapter'}"
        )


def weighted_layers(config: EncoderConfig, depth: int) -> WeightedLayers | None:
    """Return a module that computes a weighted sum of layers if ``config.layer`` is ``weighted``, else None."""
    return WeightedLayers(depth) if config.layer == "weighted" else None


class WeightedLayers(nn.Module):
    """Softmax-weighted sum of an encoder's hidden states (Peters et al. 2018, arXiv 1802.05365).

    All weights are equal at the start of training. The weights are trained even if the encoder is frozen.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(depth + 1))
        """Logits of the softmax: one for the first layer's input, and one for each layer's output."""

    def forward(self, layers: nn.ModuleList, run: Callable[[], object]) -> Tensor:
        """Call ``run()``, and return the weighted sum ``[B, T, D]`` of the first layer's input and all layers' outputs.

        ``run()`` must call each of the ``layers`` once. Hooks on the layers compute the sum. Hooks work for every
        architecture, and they do not run again when gradient checkpointing recomputes a layer. Without gradients, the
        outputs of earlier layers are not kept in memory.
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
        assert not shares, "every layer must run once, so layerdrop must be off"
        return terms[0]
