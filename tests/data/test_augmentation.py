"""Augmentation is a function of the clip, its seed and nothing else."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tiny_audio.config import UserError
from tiny_audio.data import sounds
from tiny_audio.data.augmentation import (
    AugmentationConfig,
    NoiseConfig,
    ReverberationConfig,
    SilenceConfig,
    SpecAugment,
    SpecAugmentConfig,
    WhiteNoiseConfig,
    augment_waveform,
    clip_seed,
    sounds_fingerprint,
)
from tiny_audio.data.sounds import sounds_in
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


def quiet(before_s: float = 0.3, after_s: float = 0.3, **fields: Any) -> AugmentationConfig:
    silence = SilenceConfig(max_before_s=before_s, max_after_s=after_s, probability=1.0)
    return AugmentationConfig(silence=silence, **fields)


def silences_s(config: AugmentationConfig, waveform: Tensor, seed: int, longest_s: float) -> tuple[float, float]:
    """What came before and after a clip that is untouched itself."""
    padded = augment_waveform(config, waveform, seed, longest_s)
    before = int(padded.ne(0).nonzero()[0])
    assert torch.equal(padded[before : before + len(waveform)], waveform)
    after = len(padded) - before - len(waveform)
    assert not padded[:before].any()
    assert not padded[before + len(waveform) :].any()
    return before / RATE, after / RATE


@pytest.mark.parametrize(("before_s", "after_s"), [(0.3, 0.3), (0.5, 0.0), (0.0, 0.2), (1.0, 0.1)])
def test_silence_is_of_all_lengths_up_to_its_bounds(before_s: float, after_s: float) -> None:
    waveform = tone(0.5) + 0.4
    drawn = [silences_s(quiet(before_s, after_s), waveform, seed, math.inf) for seed in range(200)]
    for found, bound in zip(zip(*drawn, strict=True), (before_s, after_s), strict=True):
        assert max(found) <= bound
        for quarter in range(4):
            share = sum(bound * quarter / 4 <= one <= bound * (quarter + 1) / 4 for one in found) / 200
            assert 0.15 < share < 0.35 or bound == 0
    correlation = np.corrcoef(np.array(drawn).T)[0, 1] if before_s and after_s else 0.0
    assert abs(correlation) < 0.2


def test_silence_makes_no_clip_longer_than_allowed() -> None:
    waveform = tone(0.9) + 0.4
    drawn = [silences_s(quiet(0.3, 0.1), waveform, seed, 1.0) for seed in range(100)]
    free = [silences_s(quiet(0.3, 0.1), waveform, seed, math.inf) for seed in range(100)]
    for (before, after), (wanted_before, wanted_after) in zip(drawn, free, strict=True):
        assert before + after <= 0.1
        # Less of both, in proportion.
        assert before * wanted_after == pytest.approx(after * wanted_before, abs=1e-4)
    assert sum(before + after > 0.0998 for before, after in drawn) > 50
    for longest_s in (0.9, 0.5):
        assert torch.equal(augment_waveform(quiet(), waveform, 3, longest_s), waveform)


def test_silence_is_not_slowed_down_and_gets_noise() -> None:
    config = quiet(0.3, 0.0, speed=(0.5,), white_noise=WhiteNoiseConfig(snr_db=(0.0, 0.0), probability=1.0))
    lengths = [len(augment_waveform(config, tone(1.0), seed)) / RATE for seed in range(50)]
    assert 2.0 <= min(lengths) < 2.1
    assert 2.2 < max(lengths) <= 2.3
    assert augment_waveform(config, tone(1.0), 0)[:5].all()


def test_how_long_a_clip_becomes() -> None:
    assert AugmentationConfig().longest_s(2.0, 10.0) == 2.0
    assert quiet(0.3, 0.2).longest_s(2.0, 10.0) == 2.5
    assert quiet(0.3, 0.2).longest_s(9.9, 10.0) == 10.0
    assert quiet(0.3, 0.2, speed=(0.5, 1.1)).longest_s(2.0, 10.0) == 4.5
    assert quiet(0.3, 0.2, speed=(0.5, 1.1)).longest_s(9.0, 10.0) == 18.0


def test_silence_makes_no_noise_softer() -> None:
    config = quiet(10.0, 10.0, white_noise=WhiteNoiseConfig(snr_db=(20.0, 20.0), probability=1.0))
    waveform = tone(1.0)
    for seed in range(5):
        noisy = augment_waveform(config, waveform, seed)
        noise = noisy[:160]  # before the first sound, as good as always
        assert len(noisy) > 2 * len(waveform)
        assert 10 * math.log10(float(waveform.pow(2).mean() / noise.pow(2).mean())) == pytest.approx(20.0, abs=1.5)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_has_the_ratio_that_was_asked_for(snr_db: float) -> None:
    config, waveform = AugmentationConfig(white_noise=WhiteNoiseConfig(snr_db=(snr_db, snr_db))), tone(4.0)
    noisy = [augment_waveform(config, waveform, seed) for seed in range(12)]
    noises = [clip - waveform for clip in noisy if not torch.equal(clip, waveform)]
    assert 1 < len(noises) < 11
    for noise in noises:
        assert 10 * math.log10(float(waveform.pow(2).mean() / noise.pow(2).mean())) == pytest.approx(snr_db, abs=0.2)


def test_noise_goes_to_half_of_the_clips() -> None:
    config, waveform = AugmentationConfig(white_noise=WhiteNoiseConfig(snr_db=(5.0, 30.0))), tone(0.05)
    untouched = sum(torch.equal(augment_waveform(config, waveform, seed), waveform) for seed in range(400))
    assert 150 < untouched < 250


def test_silence_stays_silent_and_an_empty_clip_empty() -> None:
    config = AugmentationConfig(white_noise=WhiteNoiseConfig(snr_db=(5.0, 5.0)))
    for seed in range(4):
        assert torch.equal(augment_waveform(config, torch.zeros(100), seed), torch.zeros(100))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**64 - 1), samples=st.integers(400, 3000))
def test_a_seed_decides_everything(seed: int, samples: int) -> None:
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
            "adds nothing with max_before_s and max_after_s both 0; raise one, or remove the section",
        ),
        ({"white_noise": {"snr_db": (20.0, 5.0)}}, r"is a range \[lowest, highest\], and 20.0 is above 5.0"),
    ],
)
def test_what_cannot_be_asked_for(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentationConfig(**fields)


# --- sounds of a folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Three noises: a hum of 0.25 s, one of 5 s, and 1 s at 44.1 kHz; what was read in other tests is forgotten."""
    sounds_in.cache_clear()
    sounds._KEPT.clear()
    for name, seconds, rate in (("hum.wav", 0.25, RATE), ("deep/long.flac", 5.0, RATE), ("music.wav", 1.0, 44_100)):
        (tmp_path / "sounds" / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(name)).normal(0, 0.05, int(seconds * rate))
        soundfile.write(tmp_path / "sounds" / name, noise, rate)
    (tmp_path / "sounds" / "README.txt").write_text("no sound")
    yield tmp_path / "sounds"
    sounds_in.cache_clear()
    sounds._KEPT.clear()


def noisy(folder: Path, **fields: Any) -> AugmentationConfig:
    return AugmentationConfig(noise=NoiseConfig(folder=str(folder), **({"probability": 1.0} | fields)))


def roomy(folder: Path, probability: float = 1.0) -> AugmentationConfig:
    return AugmentationConfig(reverberation=ReverberationConfig(folder=str(folder), probability=probability))


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
@pytest.mark.parametrize("seconds", [0.1, 2.0, 8.0])
def test_recorded_noise_has_the_ratio_that_was_asked_for(folder: Path, snr_db: float, seconds: float) -> None:
    waveform = tone(seconds)
    added = set()
    for seed in range(8):
        noise = augment_waveform(noisy(folder, snr_db=(snr_db, snr_db)), waveform, seed) - waveform
        assert 10 * math.log10(float(waveform.pow(2).mean() / noise.pow(2).mean())) == pytest.approx(snr_db, abs=0.05)
        added.add(round(float(noise[100] / noise.pow(2).mean().sqrt()), 4))
    assert len(added) == 8, "of another file, or from another place"


def test_a_short_noise_is_looped_from_a_random_place(folder: Path) -> None:
    for name in ("deep/long.flac", "music.wav"):
        (folder / name).unlink()
    waveform = tone(1.0)
    first, second = (augment_waveform(noisy(folder, snr_db=(0.0, 0.0)), waveform, seed) - waveform for seed in (1, 2))
    torch.testing.assert_close(first[:4000], first[4000:8000])
    assert not torch.allclose(first, second)


def test_probability_is_a_share_of_the_clips(folder: Path) -> None:
    waveform = tone(0.05)
    silence = AugmentationConfig(silence=SilenceConfig(probability=0.2))
    for config in (noisy(folder, probability=0.2), roomy(folder, 0.2), silence):
        untouched = sum(torch.equal(augment_waveform(config, waveform, seed), waveform) for seed in range(300))
        assert 210 < untouched < 270


def test_a_room_keeps_length_loudness_and_time(folder: Path, tmp_path: Path) -> None:
    click = torch.zeros(RATE)
    click[5000] = 0.7
    response = np.zeros(RATE // 2)
    response[800], response[2400] = 0.5, 0.2  # the direct sound after 50 ms, an echo 100 ms later
    (tmp_path / "rooms").mkdir()
    soundfile.write(tmp_path / "rooms" / "hall.wav", response, RATE)
    wet = augment_waveform(roomy(tmp_path / "rooms"), click, seed=0)
    assert wet.shape == click.shape
    assert wet.pow(2).mean() == pytest.approx(float(click.pow(2).mean()), rel=1e-3)
    heard = (wet.abs() > 0.01).nonzero().flatten().tolist()
    assert heard == [5000, 6600], "the direct sound stays where it was"
    assert float(wet[6600] / wet[5000]) == pytest.approx(0.4, abs=0.01)


def test_silence_and_silent_sounds_change_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "silent").mkdir()
    soundfile.write(tmp_path / "silent" / "a.wav", np.zeros(RATE), RATE)
    waveform = tone(0.5)
    for config in (noisy(tmp_path / "silent"), roomy(tmp_path / "silent")):
        assert torch.equal(augment_waveform(config, waveform, 3), waveform)
    for config in (noisy(folder), roomy(folder)):
        assert torch.equal(augment_waveform(config, torch.zeros(800), 3), torch.zeros(800))


def test_a_clip_is_a_function_of_its_seed_whatever_came_before(folder: Path) -> None:
    config = AugmentationConfig(
        speed=(0.9, 1.1),
        silence=SilenceConfig(),
        reverberation=ReverberationConfig(folder=str(folder), probability=0.7),
        noise=NoiseConfig(folder=str(folder), probability=0.7),
        white_noise=WhiteNoiseConfig(),
    )
    seeds = list(range(20))
    first = {seed: augment_waveform(config, tone(0.3), seed) for seed in seeds}
    sounds_in.cache_clear()
    sounds._KEPT.clear()
    for seed in reversed(seeds):
        assert torch.equal(augment_waveform(config, tone(0.3), seed), first[seed])
    assert len({float(clip.sum()) for clip in first.values()}) > 15


def test_sounds_are_decoded_once_and_kept_within_bounds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    load = sounds.load_audio

    def counted(path: Path, *, max_duration_s: float) -> Tensor:
        decoded.append(path.name)
        return load(path, max_duration_s=max_duration_s)

    monkeypatch.setattr(sounds, "load_audio", counted)
    found = sounds_in(str(folder))
    assert found.names == ("deep/long.flac", "hum.wav", "music.wav")
    for number in (0, 1, 0, 2, 1):
        found.load(number)
    assert decoded == ["long.flac", "hum.wav", "music.wav"]
    monkeypatch.setattr(sounds, "_MAX_KEPT_BYTES", 100_000)
    sounds._KEPT.clear()
    for number in (1, 2, 1, 0, 1):  # 16, 64, 320 kB
        found.load(number)
    assert decoded[3:] == ["hum.wav", "music.wav", "long.flac", "hum.wav"], "the large one drives out the others"


def test_a_sound_that_is_damaged_inside_is_said_and_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "deep" / "long.flac"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for name in ("hum.wav", "music.wav"):
        (folder / name).unlink()
    waveform = tone(0.2)
    assert sounds_fingerprint(noisy(folder)) is not None, "its header is whole"
    with caplog.at_level("WARNING"):
        for seed in range(3):
            assert torch.equal(augment_waveform(noisy(folder), waveform, seed), waveform)
    (message,) = caplog.messages
    assert message.startswith(f"clips that draw this sound stay without: {path}: ")


def test_the_fingerprint_is_that_of_names_and_sizes(folder: Path, tmp_path: Path) -> None:
    def fingerprint(config: AugmentationConfig) -> str | None:
        sounds_in.cache_clear()
        return sounds_fingerprint(config)

    assert fingerprint(AugmentationConfig(white_noise=WhiteNoiseConfig())) is None
    first = fingerprint(noisy(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(noisy(tmp_path / "copy")) == first
    assert fingerprint(noisy(folder, snr_db=(1.0, 2.0))) == first, "the recipe tells these apart"
    assert fingerprint(roomy(folder)) != first
    (tmp_path / "copy" / "hum.wav").rename(tmp_path / "copy" / "him.wav")
    assert fingerprint(noisy(tmp_path / "copy")) != first
    soundfile.write(folder / "hum.wav", np.zeros(500), RATE)
    assert fingerprint(noisy(folder)) != first


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    def refused(config: AugmentationConfig, message: str) -> None:
        with pytest.raises(UserError) as caught:
            sounds_fingerprint(config)
        assert message in str(caught.value)

    gone = tmp_path / "gone"
    refused(noisy(gone), f"augmentation.noise.folder: the folder {gone} cannot be read: No such file or directory; it ")
    refused(roomy(gone), "augmentation.reverberation.folder: the folder ")
    refused(noisy(folder / "hum.wav"), "cannot be read: Not a directory; it must hold audio files")
    gone.mkdir()
    (gone / "a.txt").write_text("no sound")
    refused(
        noisy(gone), f"augmentation.noise.folder: no audio file lies in {gone}; give a folder with some, at any dep"
    )
    (folder / "bad.wav").write_text("no sound")
    soundfile.write(folder / "short.wav", np.zeros(200), RATE)
    some = f"2 of the 5 audio files in {folder} cannot be used; remove or mend them; the first: bad.wav: not an audio f"
    sounds_in.cache_clear()
    refused(noisy(folder), some)
    (folder / "bad.wav").unlink()
    sounds_in.cache_clear()
    refused(noisy(folder), "the first: short.wav lasts 0.0125 s; 0.025 to 600 s are allowed")


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
