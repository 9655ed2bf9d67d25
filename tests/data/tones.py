"""Sine waves to augment."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RATE = 16_000


def tone(seconds: float = 1.0, hz: float = 440.0) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * hz * torch.arange(int(seconds * RATE)) / RATE)
