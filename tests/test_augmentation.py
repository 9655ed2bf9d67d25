"""Augmentation is a function of the clip, its seed and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tiny_audio.augmentation import AugmentationConfig, SpecAugment, SpecAugmentConfig, augment_waveform, clip_seed
from tiny_audio.frames import Frames

RATE = 16_000


def tone(seconds: float = 1.0, hz: float = 440.0) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * hz * torch.arange(int(seconds * RATE)) / RATE)


def pitch_hz(waveform: Tensor) -> float:
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform))).abs()
    return float(spectrum.argmax()) * RATE / len(waveform)


# --- seeds


def test_the_seed_of_a_clip_is_the_same_on_every_machine() -> None:
    assert clip_seed(0, 0, "train/a") == 2142769848499381212


def test_seeds_differ_by_seed_epoch_and_clip() -> None:
    seeds = {clip_seed(seed, epoch, clip) for seed in range(4) for epoch in range(4) for clip in ("a", "b", "1/a")}
    assert len(seeds) == 48


# --- waveforms


def test_off_is_the_identity() -> None:
    waveform = tone()
    assert augment_waveform(AugmentationConfig(), waveform, seed=5) is waveform


def test_a_speed_of_one_is_the_identity() -> None:
    waveform = tone()
    assert augment_waveform(AugmentationConfig(speed=(1.0,)), waveform, seed=5) is waveform


@pytest.mark.parametrize("factor", [0.5, 0.8, 0.9, 1.1, 1.25, 2.0])
def test_speed_changes_length_and_pitch_by_its_factor(factor: float) -> None:
    faster = augment_waveform(AugmentationConfig(speed=(factor,)), tone(), seed=5)
    assert len(faster) == math.ceil(RATE / factor)
    assert pitch_hz(faster) == pytest.approx(440.0 * factor, rel=0.01)
    assert faster.abs().max() == pytest.approx(0.3, rel=0.1)


def test_all_speeds_are_used() -> None:
    config = AugmentationConfig(speed=(0.9, 1.0, 1.1))
    lengths = [len(augment_waveform(config, tone(0.1), clip_seed(0, 0, str(clip)))) for clip in range(60)]
    assert {length: lengths.count(length) > 8 for length in set(lengths)} == {1778: True, 1600: True, 1455: True}


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_has_the_ratio_that_was_asked_for(snr_db: float) -> None:
    config, waveform = AugmentationConfig(noise_snr_db=(snr_db, snr_db)), tone(4.0)
    noisy = [augment_waveform(config, waveform, seed) for seed in range(12)]
    noises = [clip - waveform for clip in noisy if not torch.equal(clip, waveform)]
    assert 1 < len(noises) < 11
    for noise in noises:
        assert 10 * math.log10(float(waveform.pow(2).mean() / noise.pow(2).mean())) == pytest.approx(snr_db, abs=0.2)


def test_noise_goes_to_half_of_the_clips() -> None:
    config, waveform = AugmentationConfig(noise_snr_db=(5.0, 30.0)), tone(0.05)
    untouched = sum(torch.equal(augment_waveform(config, waveform, seed), waveform) for seed in range(400))
    assert 150 < untouched < 250


def test_silence_stays_silent_and_an_empty_clip_empty() -> None:
    config = AugmentationConfig(noise_snr_db=(5.0, 5.0))
    for seed in range(4):
        assert torch.equal(augment_waveform(config, torch.zeros(100), seed), torch.zeros(100))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**64 - 1), samples=st.integers(400, 3000))
def test_a_seed_decides_everything(seed: int, samples: int) -> None:
    config = AugmentationConfig(speed=(0.9, 1.0, 1.1), noise_snr_db=(5.0, 30.0))
    waveform = tone()[:samples]
    before = waveform.clone()
    torch.manual_seed(seed % 1000)
    first = augment_waveform(config, waveform, seed)
    torch.rand(7)
    assert torch.equal(first, augment_waveform(config, waveform, seed))
    assert torch.equal(waveform, before)
    assert first.isfinite().all()
    assert first.dtype == torch.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"speed": ()}, r"needs factors between 0.5 and 2, such as \[0.9, 1.0, 1.1\], not \[\]"),
        ({"speed": (0.4, 1.0)}, r"needs factors between 0.5 and 2, .*, not \[0.4, 1.0\]"),
        ({"speed": (1.0, 2.5)}, r"needs factors between 0.5 and 2"),
        ({"noise_snr_db": (20.0, 5.0)}, r"is a range \[lowest, highest\], and 20.0 is above 5.0"),
    ],
)
def test_what_cannot_be_asked_for(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentationConfig(**fields)


# --- features

CHANNELS = 20


def batch(lengths: list[int], size: int | None = None, rate: float = 100.0) -> Frames:
    """Clip k is the same in every batch, whatever lies around it; padding is filled with junk."""
    size = size or max(lengths)
    values = torch.full((len(lengths), size, CHANNELS), 1e3)
    for clip, length in enumerate(lengths):
        values[clip, :length] = torch.randn(length, CHANNELS, generator=torch.Generator().manual_seed(length))
    return Frames(values, torch.tensor(lengths), rate)


def test_no_masks_are_the_identity() -> None:
    features = batch([30, 20])
    masked = SpecAugment(SpecAugmentConfig(num_time_masks=0, num_channel_masks=0), [1, 2])(features)
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
def test_a_clip_is_masked_alike_alone_and_in_a_padded_batch(
    lengths: list[int], seed: int, extra: int, config: SpecAugmentConfig
) -> None:
    seeds = [clip_seed(seed, 0, str(clip)) for clip in range(len(lengths))]
    together = SpecAugment(config, seeds)(batch(lengths, max(lengths) + extra))
    again = SpecAugment(config, seeds)(batch(lengths, max(lengths) + extra))
    assert torch.equal(together.values, again.values)
    for clip, length in enumerate(lengths):
        alone = SpecAugment(config, [seeds[clip]])(batch([length]))
        torch.testing.assert_close(together.values[clip, :length], alone.values[0], rtol=0, atol=1e-5)


def masks(config: SpecAugmentConfig, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which frames and which channels of one clip are masked."""
    features = batch([length], length + 10)
    changed = (SpecAugment(config, [seed])(features).values != features.values)[0, :length]
    return changed.all(dim=1), changed.all(dim=0)


def test_masks_are_within_their_bounds_and_of_every_width() -> None:
    config = SpecAugmentConfig(
        num_time_masks=1, max_time_mask_s=0.3, max_time_share=0.2, num_channel_masks=0, max_channel_share=0.2
    )
    for length, widest in ((50, 10), (400, 30)):
        widths = {int(masks(config, length, seed)[0].sum()) for seed in range(300)}
        assert widths == set(range(widest + 1))
    channels = config.model_copy(update={"num_time_masks": 0, "num_channel_masks": 1})
    assert {int(masks(channels, 50, seed)[1].sum()) for seed in range(60)} == {0, 1, 2, 3, 4}


def test_masks_by_the_second_take_the_same_share_of_short_and_long_clips() -> None:
    config = SpecAugmentConfig(num_time_masks=0, time_masks_per_s=0.4, max_time_mask_s=0.4, num_channel_masks=0)
    shares = {
        length: sum(float(masks(config, length, seed)[0].float().mean()) for seed in range(400)) / 400
        for length in (300, 1200)
    }
    # 0.4 masks a second, of 0.2 s on average, some of them over each other.
    assert all(0.06 < share < 0.09 for share in shares.values()), shares


def test_masked_spots_become_the_clips_mean() -> None:
    features = batch([40, 25])
    masked = SpecAugment(SpecAugmentConfig(), [3, 4])(features)
    changed = masked.values != features.values
    for clip, length in enumerate([40, 25]):
        new = masked.values[clip, :length][changed[clip, :length]]
        assert len(new)
        torch.testing.assert_close(new, features.values[clip, :length].mean().expand_as(new))


def test_gradients_flow_where_nothing_is_masked() -> None:
    features = batch([40])
    features.values.requires_grad_(True)
    masked = SpecAugment(SpecAugmentConfig(), [3])(features)
    masked.values[0, :40].sum().backward()
    assert features.values.grad is not None
    assert features.values.grad.isfinite().all()


def test_features_in_half_precision_stay_so() -> None:
    features = batch([40])
    half = Frames(features.values.bfloat16(), features.lengths, features.rate)
    assert SpecAugment(SpecAugmentConfig(), [3])(half).values.dtype == torch.bfloat16
