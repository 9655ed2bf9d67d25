"""Augmentation depends only on the clip and its seed."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.data.tones import RATE, tone
from tiny_audio.data.augmentation import AugmentationConfig, augment_waveform, clip_seed
from tiny_audio.data.augmentation.noise import WhiteNoiseConfig
from tiny_audio.data.augmentation.reverberation import SimulatedReverberationConfig
from tiny_audio.data.augmentation.silence import SilenceConfig


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


def test_without_augmentation_a_clip_does_not_change() -> None:
    waveform = tone()
    assert augment_waveform(AugmentationConfig(), waveform, seed=5) is waveform


def test_a_speed_of_one_does_not_change_a_clip() -> None:
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


def quiet(before_s: float = 0.3, after_s: float = 0.3, **fields: Any) -> AugmentationConfig:
    silence = SilenceConfig(max_before_s=before_s, max_after_s=after_s, probability=1.0)
    return AugmentationConfig(silence=silence, **fields)


def silences_s(config: AugmentationConfig, waveform: Tensor, seed: int, longest_s: float) -> tuple[float, float]:
    """Return the seconds of silence before and after a clip, and check that the clip itself is unchanged."""
    padded = augment_waveform(config, waveform, seed, longest_s)
    before = int(padded.ne(0).nonzero()[0])
    assert torch.equal(padded[before : before + len(waveform)], waveform)
    after = len(padded) - before - len(waveform)
    assert not padded[:before].any()
    assert not padded[before + len(waveform) :].any()
    return before / RATE, after / RATE


@pytest.mark.parametrize(("before_s", "after_s"), [(0.3, 0.3), (0.5, 0.0), (0.0, 0.2), (1.0, 0.1)])
def test_silence_has_all_durations_up_to_the_maximum(before_s: float, after_s: float) -> None:
    waveform = tone(0.5) + 0.4
    drawn = [silences_s(quiet(before_s, after_s), waveform, seed, math.inf) for seed in range(200)]
    for found, bound in zip(zip(*drawn, strict=True), (before_s, after_s), strict=True):
        assert max(found) <= bound
        for quarter in range(4):
            share = sum(bound * quarter / 4 <= one <= bound * (quarter + 1) / 4 for one in found) / 200
            assert 0.15 < share < 0.35 or bound == 0
    correlation = np.corrcoef(np.array(drawn).T)[0, 1] if before_s and after_s else 0.0
    assert abs(correlation) < 0.2


def test_silence_respects_the_maximum_duration_of_clips() -> None:
    waveform = tone(0.9) + 0.4
    drawn = [silences_s(quiet(0.3, 0.1), waveform, seed, 1.0) for seed in range(100)]
    free = [silences_s(quiet(0.3, 0.1), waveform, seed, math.inf) for seed in range(100)]
    for (before, after), (wanted_before, wanted_after) in zip(drawn, free, strict=True):
        assert before + after <= 0.1
        # Both silences are shortened by the same factor.
        assert before * wanted_after == pytest.approx(after * wanted_before, abs=1e-4)
    assert sum(before + after > 0.0998 for before, after in drawn) > 50
    for longest_s in (0.9, 0.5):
        assert torch.equal(augment_waveform(quiet(), waveform, 3, longest_s), waveform)


def test_speed_does_not_change_silence_but_noise_is_added() -> None:
    config = quiet(0.3, 0.0, speed=(0.5,), white_noise=WhiteNoiseConfig(snr_db=(0.0, 0.0), probability=1.0))
    lengths = [len(augment_waveform(config, tone(1.0), seed)) / RATE for seed in range(50)]
    assert 2.0 <= min(lengths) < 2.1
    assert 2.2 < max(lengths) <= 2.3
    assert augment_waveform(config, tone(1.0), 0)[:5].all()


def test_the_maximum_duration_of_a_clip_is_computed() -> None:
    assert AugmentationConfig().longest_s(2.0, 10.0) == 2.0
    assert quiet(0.3, 0.2).longest_s(2.0, 10.0) == 2.5
    assert quiet(0.3, 0.2).longest_s(9.9, 10.0) == 10.0
    assert quiet(0.3, 0.2, speed=(0.5, 1.1)).longest_s(2.0, 10.0) == 4.5
    assert quiet(0.3, 0.2, speed=(0.5, 1.1)).longest_s(9.0, 10.0) == 18.0


def test_durations_are_computed_with_the_rounded_speed() -> None:
    slow, fast = AugmentationConfig(speed=(0.905,)), AugmentationConfig(speed=(1.998,))
    assert slow.duration_s(9.0, 0, 10.0) == slow.longest_s(9.0, 10.0) == 10.0
    assert len(augment_waveform(slow, torch.zeros(9 * RATE), seed=0)) == 10 * RATE
    assert fast.duration_s(9.0, 0, 10.0) == fast.shortest_s(9.0) == 4.5


def test_the_level_of_noise_does_not_depend_on_added_silence() -> None:
    config = quiet(10.0, 10.0, white_noise=WhiteNoiseConfig(snr_db=(20.0, 20.0), probability=1.0))
    waveform = tone(1.0)
    for seed in range(5):
        noisy = augment_waveform(config, waveform, seed)
        noise = noisy[:160]  # before the clip: the added silence is nearly always longer
        assert len(noisy) > 2 * len(waveform)
        assert 10 * math.log10(float(waveform.pow(2).mean() / noise.pow(2).mean())) == pytest.approx(20.0, abs=1.5)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_has_the_requested_ratio(snr_db: float) -> None:
    config, waveform = AugmentationConfig(white_noise=WhiteNoiseConfig(snr_db=(snr_db, snr_db))), tone(4.0)
    noisy = [augment_waveform(config, waveform, seed) for seed in range(12)]
    noises = [clip - waveform for clip in noisy if not torch.equal(clip, waveform)]
    assert 1 < len(noises) < 11
    for noise in noises:
        assert 10 * math.log10(float(waveform.pow(2).mean() / noise.pow(2).mean())) == pytest.approx(snr_db, abs=0.2)


def test_half_of_the_clips_get_noise() -> None:
    config, waveform = AugmentationConfig(white_noise=WhiteNoiseConfig(snr_db=(5.0, 30.0))), tone(0.05)
    untouched = sum(torch.equal(augment_waveform(config, waveform, seed), waveform) for seed in range(400))
    assert 150 < untouched < 250


def test_silence_stays_silent_and_an_empty_clip_empty() -> None:
    config = AugmentationConfig(white_noise=WhiteNoiseConfig(snr_db=(5.0, 5.0)))
    for seed in range(4):
        assert torch.equal(augment_waveform(config, torch.zeros(100), seed), torch.zeros(100))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**64 - 1), samples=st.integers(400, 3000))
def test_augmentation_is_determined_by_the_seed(seed: int, samples: int) -> None:
    config = quiet(speed=(0.9, 1.0, 1.1), white_noise=WhiteNoiseConfig(snr_db=(5.0, 30.0)))
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
        (
            {"silence": {"max_before_s": 0.0, "max_after_s": 0.0}},
            "max_before_s and max_after_s are both 0, so nothing is added; increase one, or remove the section",
        ),
        ({"white_noise": {"snr_db": (20.0, 5.0)}}, r"snr_db\n.*20.0 is above 5.0"),
    ],
)
def test_invalid_settings_are_rejected(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentationConfig(**fields)


# --- simulated rooms


@pytest.mark.parametrize("ratio_db", [0.0, 12.0])
@pytest.mark.parametrize("decay_s", [0.1, 0.4])
def test_a_simulated_room_has_the_configured_decay_and_ratio(decay_s: float, ratio_db: float) -> None:
    room = SimulatedReverberationConfig(
        decay_s=(decay_s, decay_s), direct_to_reverberant_db=(ratio_db, ratio_db), probability=1.0
    )
    click = torch.zeros(RATE)
    click[3000] = 0.5
    wet = augment_waveform(AugmentationConfig(simulated_reverberation=room), click, seed=4)
    assert wet.shape == click.shape
    assert float(wet.pow(2).mean()) == pytest.approx(float(click.pow(2).mean()), rel=1e-4)
    assert float(wet[:3000].abs().max()) < 1e-5
    response = wet[3000:] / wet[3000]
    tail = response[1 : int(decay_s * RATE)].pow(2)
    assert -10 * math.log10(float(tail.sum())) == pytest.approx(ratio_db, abs=0.1)
    quarters = [10 * math.log10(float(part.mean())) for part in tail.chunk(4)]
    assert all(first - second == pytest.approx(15, abs=2) for first, second in pairwise(quarters))
    assert float(response[int(decay_s * RATE) + 1 :].abs().max()) < 1e-5


def test_each_clip_gets_its_own_room() -> None:
    config = AugmentationConfig(simulated_reverberation=SimulatedReverberationConfig(probability=1.0))
    waveform = tone(0.3)
    rooms = [augment_waveform(config, waveform, seed) for seed in (1, 2, 1)]
    assert torch.equal(rooms[0], rooms[2])
    assert not torch.allclose(rooms[0], rooms[1])
    assert torch.equal(augment_waveform(config, torch.zeros(800), 3), torch.zeros(800))
