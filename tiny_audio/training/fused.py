"""The decoder's loss without its logits: a part of the positions at a time, by liger-kernel."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from tiny_audio.config import UserError
from tiny_audio.model.model import LinearCrossEntropy


def fused_cross_entropy(device: torch.device) -> LinearCrossEntropy:
    """The head's product and the cross-entropy in one, on a GPU.

    Logits of a long text over a large vocabulary would take gigabytes, once as they are, once as probabilities and once
    as gradients (Hsu et al. 2024, arXiv 2410.10989). Here they exist for as many positions at a time as weigh about
    as much as the hidden states, and are computed again in the backward pass.

    Raises:
        UserError: there is no GPU, or the library is missing.
    """
    if device.type != "cuda":
        raise UserError(
            f"execution.fused_cross_entropy needs a CUDA GPU, and the device is {device.type}; set it to false"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise UserError(
            "execution.fused_cross_entropy needs liger-kernel; pip install 'tiny-audio[liger]', or set it to false"
        )
    return by_liger


def by_liger(hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Losses ``[K]`` of hidden states ``[K, H]`` under a head ``[V, H]``."""
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    nothing_ignored, no_z_loss = -100, 0.0
    losses: Tensor
    losses, *_ = LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, targets, None, None, nothing_ignored, no_z_loss, label_smoothing, "none"
    )
    return losses
