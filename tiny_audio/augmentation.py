"""Augmentation of training clips, each seeded by the clip and the epoch: workers and restarts change nothing."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, field_validator
from torch import Tensor

from tiny_audio.config import Config
from tiny_audio.frames import Frames


class SpecAugmentConfig(Config):
    """Masks over time and over channels of the encoder's features (Park et al. 2019, arXiv 1904.08779)."""

    num_time_masks: NonNegativeInt = 2
    time_masks_per_s: NonNegativeFloat = 0.0
    """So many more for each second of a clip, at random one more or less: long clips then lose as large a share as
    short ones."""
    max_time_mask_s: PositiveFloat = 0.4
    """Longest time mask."""
    max_time_share: float = Field(default=0.2, gt=0, le=1)
    """No time mask is longer than this share of its clip, so that short words survive."""
    num_channel_masks: NonNegativeInt = 2
    max_channel_share: float = Field(default=0.2, gt=0, le=1)
    """Widest channel mask, as a share of the channels."""


class AugmentationConfig(Config):
    """Off by default: heavy augmentation under a frozen encoder makes most test sets worse."""

    spec_augment: SpecAugmentConfig | None = None
    speed: tuple[PositiveFloat, ...] | None = None
    """Factors to choose from for each clip, such as ``[0.9, 1.0, 1.1]``; pitch moves along (Ko et al. 2015)."""
    noise_snr_db: tuple[float, float] | None = None
    """White noise is added at a ratio drawn from this range, to half of the clips."""

    @field_validator("speed")
    @classmethod
    def _check_speed(cls, speed: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if speed is not None and (not speed or min(speed) < 0.5 or max(speed) > 2):
            raise ValueError(f"needs factors between 0.5 and 2, such as [0.9, 1.0, 1.1], not {list(speed)}")
        return speed

    @field_validator("noise_snr_db")
    @classmethod
    def _check_noise(cls, snr: tuple[float, float] | None) -> tuple[float, float] | None:
        if snr is not None and snr[0] > snr[1]:
            raise ValueError(f"is a range [lowest, highest], and {snr[0]} is above {snr[1]}")
        return snr


def clip_seed(seed: int, epoch: int, clip_id: str, repeat: int = 0) -> int:
    """One number for a clip in an epoch, the same on every machine (Python's own hash is salted).

    Args:
        repeat: how often the clip came before in this epoch.
    """
    again = f"/{repeat}" if repeat else ""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{clip_id}{again}".encode()).digest()[:8], "big")


def augment_waveform(config: AugmentationConfig, waveform: Tensor, seed: int) -> Tensor:
    """Speed and noise on one clip ``[S]``."""
    rng = random.Random(seed)
    factor = rng.choice(config.speed) if config.speed else 1.0
    if factor != 1.0:
        import torchaudio

        # Played as if recorded at another rate; in steps of 1 %, so that the resampler's kernel stays small.
        waveform = torchaudio.functional.resample(waveform, round(factor * 100), 100)
    if config.noise_snr_db and rng.random() < 0.5:
        snr_db = rng.uniform(*config.noise_snr_db)
        noise = torch.randn(waveform.shape, generator=torch.Generator().manual_seed(seed % 2**63))
        waveform = waveform + noise * waveform.pow(2).mean().sqrt() * 10 ** (-snr_db / 20)
    return waveform


@dataclass(frozen=True)
class SpecAugment:
    """The masks of one batch, to be called between the encoder's front end and its layers."""

    config: SpecAugmentConfig
    seeds: Sequence[int]
    """One for each clip."""

    def __call__(self, features: Frames) -> Frames:
        """Masked spots of ``[B, F, C]`` become the clip's mean, which is what says least."""
        config, mask = self.config, features.mask()
        channels = features.values.shape[2]
        kept = torch.ones(features.values.shape, dtype=torch.bool)
        for clip, (seed, length) in enumerate(zip(self.seeds, features.lengths.tolist(), strict=True)):
            rng = random.Random(seed + 1)
            widest = int(min(config.max_time_mask_s * features.rate, config.max_time_share * length))
            num_time_masks = config.num_time_masks
            if config.time_masks_per_s:
                num_time_masks += int(config.time_masks_per_s * length / features.rate + rng.random())
            for _ in range(num_time_masks):
                width = rng.randint(0, widest)
                start = rng.randint(0, length - width)
                kept[clip, start : start + width] = False
            for _ in range(config.num_channel_masks):
                width = rng.randint(0, int(config.max_channel_share * channels))
                start = rng.randint(0, channels - width)
                kept[clip, :, start : start + width] = False
        count = (features.lengths * channels)[:, None, None]
        mean = features.zeroed().values.sum(dim=(1, 2), keepdim=True) / count
        return replace(features, values=torch.where(kept.to(mask.device), features.values, mean))
