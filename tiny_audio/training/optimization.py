"""Build the optimizer, and compute the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from tiny_audio.model.model import TinyAudioModel
from tiny_audio.recipe import Recipe, TrainingConfig


def build_optimizer(model: TinyAudioModel, recipe: Recipe) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov & Hutter 2017) for all trainable weights.

    Each parameter group stores its ``peak`` learning rate. This is the part's ``learning_rate`` if it is set, and
    ``training.learning_rate`` otherwise. Weight decay applies only to parameters with at least two dimensions.
    """
    config = recipe.training
    return torch.optim.AdamW(
        list(_groups(model, recipe)),
        lr=config.learning_rate,
        betas=config.adam_betas,
        eps=config.adam_epsilon,
        fused=True,
    )


def _groups(model: TinyAudioModel, recipe: Recipe) -> Iterator[dict[str, Any]]:
    config = recipe.training
    own = {"encoder": recipe.encoder, "decoder": recipe.decoder}
    settings: dict[tuple[float, float], list[torch.Tensor]] = {}
    for name, tensor in model.named_parameters():
        if not tensor.requires_grad:
            continue
        part = own.get(name.split(".")[0])
        rate = config.learning_rate if part is None or part.learning_rate is None else part.learning_rate
        decay = config.weight_decay if part is None or part.weight_decay is None else part.weight_decay
        settings.setdefault((rate, decay if tensor.ndim >= 2 else 0.0), []).append(tensor)
    for (rate, decay), tensors in settings.items():
        yield {"params": tensors, "weight_decay": decay, "peak": rate}


def learning_rate(config: TrainingConfig, step: int, peak: float | None = None) -> float:
    """Return the learning rate of a step. Steps are counted from 0.

    The rate rises linearly to ``peak`` in the warmup steps, and then follows the schedule. If ``peak`` is None,
    ``config.learning_rate`` is the peak.
    """
    peak = config.learning_rate if peak is None else peak
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return peak
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    share = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    floor = config.final_learning_rate_ratio
    return peak * (floor + (1 - floor) * share)
