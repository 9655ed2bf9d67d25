"""Augmentation with the sounds of a folder: noise and reverberation."""

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
from torch import Tensor

from tests.data.tones import RATE, tone
from tiny_audio.config import UserError
from tiny_audio.data import sounds
from tiny_audio.data.augmentation import AugmentationConfig, augment_waveform, sounds_fingerprint
from tiny_audio.data.augmentation.noise import NoiseConfig, WhiteNoiseConfig
from tiny_audio.data.augmentation.reverberation import ReverberationConfig
from tiny_audio.data.augmentation.silence import SilenceConfig
from tiny_audio.data.sounds import sounds_in


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Empty the caches of sounds. Write three files of noise: 0.25 s, 5 s, and 1 s at 44.1 kHz."""
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
def test_recorded_noise_has_the_requested_ratio(folder: Path, snr_db: float, seconds: float) -> None:
    waveform = tone(seconds)
    added = set()
    for seed in range(8):
        noise = augment_waveform(noisy(folder, snr_db=(snr_db, snr_db)), waveform, seed) - waveform
        assert 10 * math.log10(float(waveform.pow(2).mean() / noise.pow(2).mean())) == pytest.approx(snr_db, abs=0.05)
        added.add(round(float(noise[100] / noise.pow(2).mean().sqrt()), 4))
    assert len(added) == 8, "the eight seeds select eight different parts of the files"


def test_a_short_noise_is_looped_from_a_random_position(folder: Path) -> None:
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
        untouched = sum(torch.equal(augment_waveform(config, waveform, seed), waveform) for seed in range(100))
        assert 70 < untouched < 90


def test_reverberation_keeps_length_loudness_and_position(folder: Path, tmp_path: Path) -> None:
    click = torch.zeros(RATE)
    click[5000] = 0.7
    response = np.zeros(RATE // 2)
    response[800], response[2400] = 0.5, 0.2  # the direct sound after 50 ms, and an echo 100 ms later
    (tmp_path / "rooms").mkdir()
    soundfile.write(tmp_path / "rooms" / "hall.wav", response, RATE)
    wet = augment_waveform(roomy(tmp_path / "rooms"), click, seed=0)
    assert wet.shape == click.shape
    assert wet.pow(2).mean() == pytest.approx(float(click.pow(2).mean()), rel=1e-3)
    clicks = (wet.abs() > 0.01).nonzero().flatten().tolist()
    assert clicks == [5000, 6600], "the direct sound stays where it was"
    assert float(wet[6600] / wet[5000]) == pytest.approx(0.4, abs=0.01)


def test_silent_clips_and_silent_sounds_have_no_effect(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "silent").mkdir()
    soundfile.write(tmp_path / "silent" / "a.wav", np.zeros(RATE), RATE)
    waveform = tone(0.5)
    for config in (noisy(tmp_path / "silent"), roomy(tmp_path / "silent")):
        assert torch.equal(augment_waveform(config, waveform, 3), waveform)
    for config in (noisy(folder), roomy(folder)):
        assert torch.equal(augment_waveform(config, torch.zeros(800), 3), torch.zeros(800))


def test_augmentation_does_not_depend_on_earlier_clips(folder: Path) -> None:
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


def test_decoded_sounds_are_cached_up_to_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    for number in (1, 2, 1, 0, 1):  # sounds of 16, 64 and 320 kB
        found.load(number)
    assert decoded[3:] == ["hum.wav", "music.wav", "long.flac", "hum.wav"], "the large sound evicts the others"


def test_a_damaged_sound_is_left_out_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "deep" / "long.flac"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 500] = bytes(500)
    path.write_bytes(damaged)
    for name in ("hum.wav", "music.wav"):
        (folder / name).unlink()
    waveform = tone(0.2)
    assert sounds_fingerprint(noisy(folder)) is not None, "only headers are read here, so the damage is not found"
    with caplog.at_level("WARNING"):
        for seed in range(3):
            assert torch.equal(augment_waveform(noisy(folder), waveform, seed), waveform)
    (message,) = caplog.messages
    start = "a sound for augmentation cannot be decoded; clips are used without it"
    assert message.startswith(f"{start}: {path}: ")


def test_the_fingerprint_depends_on_names_and_sizes(folder: Path, tmp_path: Path) -> None:
    def fingerprint(config: AugmentationConfig) -> str | None:
        sounds_in.cache_clear()
        return sounds_fingerprint(config)

    assert fingerprint(AugmentationConfig(white_noise=WhiteNoiseConfig())) is None
    first = fingerprint(noisy(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(noisy(tmp_path / "copy")) == first
    assert fingerprint(noisy(folder, snr_db=(1.0, 2.0))) == first, "the fingerprint does not depend on the settings"
    assert fingerprint(roomy(folder)) != first
    (tmp_path / "copy" / "hum.wav").rename(tmp_path / "copy" / "him.wav")
    assert fingerprint(noisy(tmp_path / "copy")) != first
    soundfile.write(folder / "hum.wav", np.zeros(500), RATE)
    assert fingerprint(noisy(folder)) != first


def test_unusable_folders_are_rejected(folder: Path, tmp_path: Path) -> None:
    def assert_rejected(config: AugmentationConfig, message: str) -> None:
        with pytest.raises(UserError) as caught:
            sounds_fingerprint(config)
        assert message in str(caught.value)

    gone = tmp_path / "gone"
    assert_rejected(
        noisy(gone), f"augmentation.noise.folder: the folder {gone} cannot be read: No such file or directory; "
    )
    assert_rejected(roomy(gone), "augmentation.reverberation.folder: the folder ")
    assert_rejected(noisy(folder / "hum.wav"), "cannot be read: Not a directory; give a folder with audio files")
    gone.mkdir()
    (gone / "a.txt").write_text("no sound")
    assert_rejected(
        noisy(gone),
        f"augmentation.noise.folder: {gone} and its subfolders have no audio file; give a folder with audio files",
    )
    (folder / "bad.wav").write_text("no sound")
    soundfile.write(folder / "short.wav", np.zeros(200), RATE)
    some = (
        f"2 of the 5 audio files in {folder} cannot be used; remove or repair them; the first: bad.wav: not an audio f"
    )
    sounds_in.cache_clear()
    assert_rejected(noisy(folder), some)
    (folder / "bad.wav").unlink()
    sounds_in.cache_clear()
    assert_rejected(noisy(folder), "the first: short.wav lasts 0.0125 s; 0.025 to 600 s are allowed")
