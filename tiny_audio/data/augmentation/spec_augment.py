"""SpecAugment: masks over time and channels of features."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from tiny_audio.data.augmentation.section import FeatureAugmentation
from tiny_audio.frames import Frames


class SpecAugmentConfig(FeatureAugmentation):
    """Masks over time and over channels of the encoder's features (Park et al. 2019, arXiv 1904.08779)."""

    num_time_masks: NonNegativeInt = 2
    """Number of time masks for each clip."""
    time_masks_per_s: NonNegativeFloat = 0.0
    """Number of additional time masks per second of a clip, so that long and short clips are masked to the same degree.
    The number of masks of a clip is rounded up or down at random."""
    max_time_mask_s: PositiveFloat = 0.4
    """Maximum length of a time mask."""
    max_time_share: float = Field(default=0.2, gt=0, le=1)
    """Maximum length of a time mask, as a share of the clip. For short clips, this limit is lower than
    ``max_time_mask_s``."""
    num_channel_masks: NonNegativeInt = 2
    """Number of channel masks for each clip."""
    max_channel_share: float = Field(default=0.2, gt=0, le=1)
    """Maximum width of a channel mask, as a share of the channels."""

    def apply(self, features: Frames, seeds: Sequence[int]) -> Frames:
        """See :meth:`FeatureAugmentation.apply`. Masked features are replaced by the mean of their clip."""
        mask = features.mask()
        channels = features.values.shape[2]
        kept = torch.ones(features.values.shape, dtype=torch.bool)
        for clip, (seed, length) in enumerate(zip(seeds, features.lengths.tolist(), strict=True)):
            rng = random.Random(seed + 1)
            widest = int(min(self.max_time_mask_s * features.rate, self.max_time_share * length))
            num_time_masks = self.num_time_masks
            if self.time_masks_per_s:
                num_time_masks += int(self.time_masks_per_s * length / features.rate + rng.random())
            for _ in range(num_time_masks):
                width = rng.randint(0, widest)
                start = rng.randint(0, length - width)
                kept[clip, start : start + width] = False
            for _ in range(self.num_channel_masks):
                width = rng.randint(0, int(self.max_channel_share * channels))
                start = rng.randint(0, channels - width)
                kept[clip, :, start : start + width] = False
        count = (features.lengths * channels)[:, None, None]
        mean = features.zeroed().values.sum(dim=(1, 2), keepdim=True) / count
        return replace(features, values=torch.where(kept.to(mask.device), features.values, mean))
