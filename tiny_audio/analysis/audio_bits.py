"""Bits from audio: how much less probable the reference becomes if the model gets the audio of another clip.

The decoder of a recognizer is a language model. If it does not use the audio, because it is not trained enough or the
speech is unfamiliar, it writes fluent sentences that nobody spoke. The loss of such a decoder on the reference is about
the same with any audio. To detect such decoders, the loss with the clip's own audio is compared with the loss with the
audio of another clip of similar duration:

    ``bits from audio = (loss with another clip's audio - loss with the clip's own audio) / ln 2 / tokens``

Losses are teacher-forced, in nats, and summed over all label tokens of the clips. ``tokens`` is the number of these
tokens, including the end tokens. A model that ignores the audio, including its duration, gets 0. The value is not
mutual information. It can exceed the information in the text: if a good model gets the audio of another clip, it
expects other words, and gives the reference a very low probability. Values of decoders with different tokenizers cannot
be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiny_audio.analysis.significance import Groups, ratio_interval

FEW_BITS = 0.5
"""If the lower end of the 95 % interval of the bits per token is below this value, a warning says that the model may
hardly use the audio.

The value separates two groups of models that ``benchmarks/use_of_audio.py`` measures. In the first group, the WER was
low (9.7 and 13.5 %), and the lower end was 4.2 or more. In the second group, the WER was 99 % or more, or the projector
was untrained, and the lower end was at most 0.49. A model of the second group can get more than 0 bits, because the
number of audio embeddings reveals the duration of the clip."""

BITS = ("bits_from_audio", "bits_from_audio_interval", "reference_loss", "reference_loss_with_other_audio")
"""Keys of the scores that are logged during training."""


@dataclass(frozen=True)
class ClipLosses:
    """Teacher-forced losses of one clip's reference, in nats, summed over its tokens."""

    tokens: int
    """Number of label tokens, including the end token."""
    loss: float
    """Loss with the clip's own audio."""
    other_loss: float
    """Loss with the audio of another clip."""


def score_bits(losses: Sequence[ClipLosses], *, groups: Groups = None, num_bootstrap: int = 1000) -> dict[str, Any]:
    """Return the scores of a set: bits per token with their interval, and both losses per token in nats.

    If there are no losses, return no scores.

    Args:
        losses: the losses of the measured clips.
        groups: see :func:`tiny_audio.analysis.scoring.score`.
        num_bootstrap: number of resamples for the interval.
    """
    if not losses:
        return {}
    tokens = np.array([clip.tokens for clip in losses])
    bits = np.array([clip.other_loss - clip.loss for clip in losses]) / math.log(2)
    total = int(tokens.sum())
    return {
        "bits_from_audio": float(bits.sum()) / total,
        "bits_from_audio_interval": list(ratio_interval(bits, tokens, groups=groups, num_draws=num_bootstrap)),
        "bits_from_audio_clips": len(losses),
        "reference_loss": sum(clip.loss for clip in losses) / total,
        "reference_loss_with_other_audio": sum(clip.other_loss for clip in losses) / total,
    }


def ignores_audio(scores: Mapping[str, Any]) -> bool:
    """Whether the lower end of the interval of the bits per token is below :data:`FEW_BITS`. False if not measured."""
    interval = scores.get("bits_from_audio_interval")
    return interval is not None and interval[0] < FEW_BITS


def progress_text(scores: Mapping[str, Any]) -> str:
    """Return the bits per token, to be appended to a log line. Return an empty string if they were not
    measured."""
    bits = scores.get("bits_from_audio")
    if bits is None:
        return ""
    doubt = " (the model may hardly use the audio)" if ignores_audio(scores) else ""
    return f", {bits:.2f} bits per token from the audio{doubt}"
