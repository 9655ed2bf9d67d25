"""The optimiser, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from tiny_audio.recipe import TrainingConfig


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over all that trains (Loshchilov & Hutter 2017), matrices decayed, vectors not."""
    trainable = [tensor for tensor in model.parameters() if tensor.requires_grad]
    groups = [
        {"params": [tensor for tensor in trainable if tensor.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [tensor for tensor in trainable if tensor.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.adam_betas,
        eps=config.adam_epsilon,
        fused=True,
    )


def learning_rate(config: TrainingConfig, step: int) -> float:
    """For step 0, 1, …: a linear warmup, then the schedule down to its final share."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    share = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    floor = config.final_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * share)
