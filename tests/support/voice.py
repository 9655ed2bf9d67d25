"""Voice activity by loudness, for audio that consists of noise bursts and pauses."""

from __future__ import annotations

import torch
from torch import Tensor

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.voice_activity import FRAME


class Loudness:
    """Returns a speech probability of 1 for frames louder than -40 dB, and 0 for other frames."""

    def __init__(self) -> None:
        self._held = torch.zeros(0)

    def add(self, samples: Tensor) -> list[float]:
        held = torch.cat([self._held, samples])
        whole = len(held) // FRAME * FRAME
        self._held = held[whole:].clone()
        return (held[:whole].reshape(-1, FRAME).square().mean(1) > 1e-4).double().tolist()


def bursts(*durations_s: float) -> Tensor:
    """Return a pause, a burst of noise, a pause, and so on, with these durations."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(round(sum(durations_s) * SAMPLE_RATE), generator=generator)
    parts = noise.split([round(duration * SAMPLE_RATE) for duration in durations_s])
    return torch.cat([part * (index % 2) for index, part in enumerate(parts)])
