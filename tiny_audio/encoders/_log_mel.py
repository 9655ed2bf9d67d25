"""Log-mel features of Whisper. Other encoders use them with a few changes.

Dimensions: B clips · S samples · F mel frames
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tiny_audio.frames import SAMPLE_RATE

WINDOW = 400
"""Length of the analysis window in samples, 25 ms."""
HOP = 160
"""Samples between mel frames, 10 ms."""
LEAST = -10.0
"""log10 of the lowest allowed power. Lower powers are raised to this value."""
RANGE = 8.0
"""log10 of the largest allowed ratio between a clip's maximum and minimum power, 80 dB. Powers more than 80 dB below
the maximum are raised to this limit."""


def reflect(waveforms: Tensor, lengths: Tensor, margin: int) -> Tensor:
    """Extend both ends of each clip by ``margin`` reflected samples: ``[B, S]`` -> ``[B, S' + 2·margin]``.

    S' is the largest of ``lengths``. For a single clip, ``torch.stft`` with ``center=True`` does the same. In a batch,
    it would reflect the padding of shorter clips. In the result, the values after the second margin of a shorter clip
    have no meaning.
    """
    position = torch.arange(-margin, int(lengths.max()) + margin, device=waveforms.device)
    last = (lengths - 1).clamp(min=1)[:, None]
    # If a clip is reflected repeatedly at both ends, the result has a period of 2·last samples.
    position = position % (2 * last)
    return waveforms.gather(1, torch.where(position > last, 2 * last - position, position))


def log_mel(audio: Tensor, filters: Tensor, least: float = LEAST) -> Tensor:
    """Compute log10 of the power in each mel bin: ``[B, S]`` -> ``[B, F, mels]``.

    Args:
        audio: waveforms that are already extended at both ends, because this function adds no padding.
        filters: ``[bins, mels]``. The Fourier transform has 2·(bins - 1) samples.
        least: see ``LEAST``.
    """
    num_fft = 2 * (len(filters) - 1)
    window = torch.hann_window(WINDOW, dtype=audio.dtype, device=audio.device)
    spectrum = torch.stft(audio, num_fft, HOP, WINDOW, window=window, center=False, return_complex=True)
    power = spectrum.abs() ** 2
    # [B, bins, F] -> [B, F, mels]; without autocast, so that features are the same in training and inference
    with torch.autocast(power.device.type, enabled=False):
        return torch.einsum("bif,im->bfm", power, filters.to(power)).clamp(min=10**least).log10()


def limit_range(mel: Tensor, mask: Tensor) -> Tensor:
    """Raise features ``[B, F, mels]`` to at least 80 dB below the maximum of their clip.

    The maximum is taken over the frames for which ``mask [B, F]`` is True.
    """
    loudest = mel.masked_fill(~mask[..., None], LEAST).amax(dim=(1, 2), keepdim=True)
    return torch.maximum(mel, loudest - RANGE)


def front_end(num_mels: int) -> dict[str, Any]:
    """Return the settings of Whisper's front end, for :meth:`tiny_audio.encoders.EncoderConfig.front_end`."""
    return {"sampling_rate": SAMPLE_RATE, "n_fft": WINDOW, "hop_length": HOP, "feature_size": num_mels}


@lru_cache(maxsize=4)
def mel_filters(num_mels: int, num_fft: int = WINDOW, *, slaney: bool = True) -> Tensor:
    """Return mel filters ``[bins, mels]``. Modules do not store them as buffers, so checkpoints do not contain them.

    Args:
        num_fft: number of samples of the Fourier transform.
        slaney: use the mel scale and the filter normalization of Slaney's toolbox, as in Whisper. If False, use HTK's
            mel scale without normalization.
    """
    import torchaudio

    norm, scale = ("slaney", "slaney") if slaney else (None, "htk")
    with torch.device("cpu"):  # even if the model is built on the meta device
        filters: Tensor = torchaudio.functional.melscale_fbanks(
            num_fft // 2 + 1, 0.0, SAMPLE_RATE / 2, num_mels, SAMPLE_RATE, norm=norm, mel_scale=scale
        )
    return filters
