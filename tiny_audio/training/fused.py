"""Compute the decoder's loss with liger-kernel, without storing all logits."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from tiny_audio.config import UserError
from tiny_audio.model.splicing import LinearCrossEntropy


def fused_cross_entropy(device: torch.device) -> LinearCrossEntropy:
    """Return a function that computes the language-model head and the cross-entropy in one operation.

    Logits over a large vocabulary, their probabilities and their gradients would take gigabytes. The fused operation
    computes them for one chunk of positions at a time (Hsu et al. 2024, arXiv 2410.10989).

    Raises:
        UserError: the device is not a CUDA GPU, or liger-kernel is missing.
    """
    if device.type != "cuda":
        raise UserError(
            f"execution.fused_cross_entropy needs a CUDA GPU, but the device is {device.type}; set "
            "execution.fused_cross_entropy: false"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise UserError(
            "execution.fused_cross_entropy needs liger-kernel; pip install 'tiny-audio[liger]', or set "
            "execution.fused_cross_entropy: false"
        )
    return by_liger


def by_liger(hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Return the losses ``[K]`` of hidden states ``[K, H]``, given the weights ``[V, H]`` of the head."""
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    ignored_id, z_loss_weight = -100, 0.0  # no target has this id, so no position is ignored
    losses: Tensor
    losses, *_ = LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, targets, None, None, ignored_id, z_loss_weight, label_smoothing, "none"
    )
    return losses
