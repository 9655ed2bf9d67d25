"""Augmentation of the encoder's features: SpecAugment, and the order of the sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiny_audio.data.augmentation import AugmentationConfig, clip_seed
from tiny_audio.data.augmentation.section import FeatureAugmentation
from tiny_audio.data.augmentation.spec_augment import SpecAugmentConfig
from tiny_audio.frames import Frames

CHANNELS = 20


def batch(lengths: list[int], size: int | None = None, rate: float = 100.0) -> Frames:
    """Return random features. The values of a clip depend only on its length. Padding has the value 1000."""
    size = size or max(lengths)
    values = torch.full((len(lengths), size, CHANNELS), 1e3)
    for clip, length in enumerate(lengths):
        values[clip, :length] = torch.randn(length, CHANNELS, generator=torch.Generator().manual_seed(length))
    return Frames(values, torch.tensor(lengths), rate)


def test_without_masks_features_do_not_change() -> None:
    features = batch([30, 20])
    masked = SpecAugmentConfig(num_time_masks=0, num_channel_masks=0).apply(features, [1, 2])
    assert torch.equal(masked.values, features.values)
    assert torch.equal(masked.lengths, features.lengths)
    assert masked.rate == features.rate


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=4),
    seed=st.integers(0, 2**64 - 1),
    extra=st.integers(0, 30),
    config=st.builds(
        SpecAugmentConfig,
        num_time_masks=st.integers(0, 3),
        time_masks_per_s=st.floats(0.0, 5.0),
        max_time_mask_s=st.floats(0.01, 5.0),
        max_time_share=st.floats(0.05, 1.0),
        num_channel_masks=st.integers(0, 3),
        max_channel_share=st.floats(0.05, 1.0),
    ),
)
def test_masks_of_a_clip_do_not_depend_on_the_batch(
    lengths: list[int], seed: int, extra: int, config: SpecAugmentConfig
) -> None:
    seeds = [clip_seed(seed, 0, str(clip)) for clip in range(len(lengths))]
    together = config.apply(batch(lengths, max(lengths) + extra), seeds)
    again = config.apply(batch(lengths, max(lengths) + extra), seeds)
    assert torch.equal(together.values, again.values)
    for clip, length in enumerate(lengths):
        alone = config.apply(batch([length]), [seeds[clip]])
        torch.testing.assert_close(together.values[clip, :length], alone.values[0], rtol=0, atol=1e-5)


def masks(config: SpecAugmentConfig, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return which frames and which channels of one clip are masked."""
    features = batch([length], length + 10)
    changed = (config.apply(features, [seed]).values != features.values)[0, :length]
    return changed.all(dim=1), changed.all(dim=0)


def test_masks_have_every_width_within_the_limits() -> None:
    config = SpecAugmentConfig(
        num_time_masks=1, max_time_mask_s=0.3, max_time_share=0.2, num_channel_masks=0, max_channel_share=0.2
    )
    for length, widest in ((50, 10), (400, 30)):
        widths = {int(masks(config, length, seed)[0].sum()) for seed in range(300)}
        assert widths == set(range(widest + 1))
    channels = config.model_copy(update={"num_time_masks": 0, "num_channel_masks": 1})
    assert {int(masks(channels, 50, seed)[1].sum()) for seed in range(60)} == {0, 1, 2, 3, 4}


def test_masks_per_second_cover_the_same_share_of_short_and_long_clips() -> None:
    config = SpecAugmentConfig(num_time_masks=0, time_masks_per_s=0.4, max_time_mask_s=0.4, num_channel_masks=0)
    shares = {
        length: sum(float(masks(config, length, seed)[0].float().mean()) for seed in range(400)) / 400
        for length in (300, 1200)
    }
    # 0.4 masks per second, with a mean length of 0.2 s, cover a share of 0.08 if they do not overlap.
    assert all(0.06 < share < 0.09 for share in shares.values()), shares


def test_masked_values_become_the_mean_of_the_clip() -> None:
    features = batch([40, 25])
    masked = SpecAugmentConfig().apply(features, [3, 4])
    changed = masked.values != features.values
    for clip, length in enumerate([40, 25]):
        new = masked.values[clip, :length][changed[clip, :length]]
        assert len(new)
        torch.testing.assert_close(new, features.values[clip, :length].mean().expand_as(new))


def test_only_unmasked_values_have_gradients() -> None:
    features = batch([40])
    features.values.requires_grad_(True)
    masked = SpecAugmentConfig().apply(features, [3])
    masked.values[0, :40].sum().backward()
    assert features.values.grad is not None
    assert features.values.grad.isfinite().all()


def test_features_in_half_precision_keep_their_type() -> None:
    features = batch([40])
    half = Frames(features.values.bfloat16(), features.lengths, features.rate)
    assert SpecAugmentConfig().apply(half, [3]).values.dtype == torch.bfloat16


class Scale(FeatureAugmentation):
    def apply(self, features: Frames, seeds: Sequence[int]) -> Frames:
        factors = torch.tensor(seeds, dtype=features.values.dtype)
        return replace(features, values=features.values * factors[:, None, None])


class Shift(FeatureAugmentation):
    def apply(self, features: Frames, seeds: Sequence[int]) -> Frames:
        return replace(features, values=features.values + 1)


class MoreAugmentation(AugmentationConfig):
    scale: Scale | None = None
    shift: Shift | None = None


def test_sections_are_applied_in_the_order_of_their_fields() -> None:
    assert MoreAugmentation().of_features([2, 3]) is None
    features = batch([30, 20])
    transform = MoreAugmentation(shift=Shift(), scale=Scale()).of_features([2, 3])
    assert transform is not None
    factors = torch.tensor([2.0, 3.0])[:, None, None]
    assert torch.equal(transform(features).values, features.values * factors + 1)
