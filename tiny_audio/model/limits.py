"""Compute the duration of the longest clip that the encoder and the decoder of a model accept."""

from __future__ import annotations

import torch

from tiny_audio.encoders import EncoderConfig
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.projectors import Projector

_STEPS_PER_S = 10
"""Resolution of the search for the longest clip: steps of 0.1 s."""


def num_embeddings(encoder: EncoderConfig, projector: Projector, duration_s: float) -> int:
    """Return the maximum number of audio embeddings of a clip of the given duration."""
    return int(projector.max_embeddings(torch.tensor([encoder.num_frames(int(duration_s * SAMPLE_RATE))])))


def longest_clip_s(
    encoder: EncoderConfig, projector: Projector, max_positions: int | None, num_text_ids: int, at_most_s: float
) -> float:
    """Return the duration of the longest clip that the model accepts, in seconds.

    If not even a clip of 0.1 s fits, the result is 0.1.

    Args:
        encoder: the encoder's config, completed by ``with_architecture`` if the encoder comes from a checkpoint.
        projector: the projector, on any device.
        max_positions: maximum number of positions of the decoder. None if there is no limit.
        num_text_ids: number of positions that prompt and transcript need.
        at_most_s: upper bound of the result.
    """
    longest_s = min(encoder.max_duration_s() or at_most_s, at_most_s)
    if max_positions is None:
        return longest_s
    room = max_positions - num_text_ids
    if num_embeddings(encoder, projector, longest_s) <= room:
        return longest_s
    steps = range(1, int(longest_s * _STEPS_PER_S))
    fitting = (step for step in reversed(steps) if num_embeddings(encoder, projector, step / _STEPS_PER_S) <= room)
    return next(fitting, 1) / _STEPS_PER_S
