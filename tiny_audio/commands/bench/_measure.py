"""Random input for a projector, and the peak memory of a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from tiny_audio.frames import Frames

_NUM_LABELS = 29  # CTC labels: the blank, a to z, space, apostrophe


def random_frames(batch_size: int, num_frames: int, dim: int, rate: float, device: torch.device) -> Frames:
    """Return random frames ``[B, T, D]`` without padding.

    ``rate`` is in frames per second. From one frame to the next, the most probable CTC label changes with
    probability 0.5.
    """
    values = torch.randn(batch_size, num_frames, dim, device=device)
    changes = torch.rand(batch_size, num_frames, device=device) < 0.5
    labels = changes.cumsum(1) % _NUM_LABELS
    logits = F.one_hot(labels, _NUM_LABELS).float()
    lengths = torch.full((batch_size,), num_frames, device=device)
    return Frames(values, lengths, rate, logits)


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Return the peak of allocated memory during ``step``, minus the memory that was allocated before ``step``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        step()
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
