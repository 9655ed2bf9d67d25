"""Hallucination filters reject noise, tones, repeated words, and texts rejected by CTC. They accept speech."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from tests.support.fast import fast_ones
from tests.support.paths import SHARED
from tiny_audio.audio.load import load_audio
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference import filters
from tiny_audio.inference.filters import (
    boost_quiet,
    collapse_impossible_repeats,
    collapse_repeats,
    is_much_less_likely,
    non_speech_reason,
)
from tiny_audio.sources import SOURCES, SourceContext

SPEECH = SHARED / "speech"


def seconds(duration: float) -> np.ndarray:
    return np.arange(int(duration * SAMPLE_RATE)) / SAMPLE_RATE


def reason_of(wave: np.ndarray) -> str | None:
    return non_speech_reason(torch.from_numpy(np.asarray(wave, dtype=np.float32)))


def melody() -> np.ndarray:
    notes = []
    for pitch in (220, 262, 330, 294, 440, 392, 330, 262):
        t = seconds(0.35)
        wave = sum(np.sin(2 * np.pi * pitch * part * h * t) / h for h in range(1, 8) for part in (1.0, 1.25))
        notes.append(0.1 * wave * np.minimum(t / 0.02, 1) * np.exp(-4 * t))
    return np.concatenate(notes)


@pytest.mark.parametrize("level", [1.0, 0.01])
def test_sounds_that_are_not_speech_are_classified(level: float) -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(4 * SAMPLE_RATE)
    spectrum = np.fft.rfft(noise)
    pink = np.fft.irfft(spectrum * np.maximum(np.arange(len(spectrum)), 1.0) ** -0.5)
    swelling = noise * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * seconds(4)))
    for wave in (noise, pink / pink.std(), swelling):
        assert reason_of(0.1 * level * wave) == "noise"
    assert reason_of(level * melody()) == "tones"
    assert reason_of(level * np.sin(2 * np.pi * 440 * seconds(2))) in ("noise", "tones")
    assert reason_of(level * np.sin(2 * np.pi * (200 + 500 * seconds(2)) * seconds(2))) == "tones"


def test_sounds_without_a_voice_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    beeps = 0.1 * np.sin(2 * np.pi * (3000 * seconds(4) + 20 * np.sin(2 * np.pi * 6 * seconds(4))))
    beeps *= np.sin(2 * np.pi * 3 * seconds(4)) > 0
    clicks = 1e-4 * rng.standard_normal(4 * SAMPLE_RATE)
    for start in range(3200, 60_000, 4800):
        clicks[start : start + 800] += np.diff(rng.standard_normal(801)) * np.exp(-np.arange(800) / 80) * 0.1
    assert reason_of(clicks) == "no_voice"
    assert reason_of(beeps) is not None
    monkeypatch.setattr(filters, "silero", lambda: None)
    assert reason_of(clicks) is None


def test_silence_is_rejected() -> None:
    assert reason_of(np.zeros(0)) == reason_of(np.zeros(SAMPLE_RATE)) == "silence"
    assert reason_of(np.full(10, 9e-5)) == "silence"
    assert reason_of(np.full(10, 1e-3)) is not None


@pytest.fixture(scope="module", params=[12, pytest.param(40, marks=pytest.mark.slow)])
def synthetic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    # Use the sentences of all splits, because computing a split takes seconds.
    count = {"num_utterances": request.param, "sentences": "all"}
    config = SOURCES.parse({"name": "synthetic", **count, "grammars": ["digits", "home"]})
    source = SOURCES.build(config, SourceContext(tmp_path_factory.mktemp("speech")))
    return [soundfile.read(str(one.audio), dtype="float32")[0] for one in source.index().utterances]


def test_synthetic_speech_is_accepted(synthetic: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    for wave in synthetic:
        noise = rng.standard_normal(len(wave)) * np.sqrt((wave**2).mean())
        found = {reason_of(wave), reason_of(0.01 * wave), reason_of(wave + 0.3 * noise)}
        assert found == {None}


def within(wave: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    """Remove all frequencies outside a band."""
    spectrum = np.fft.rfft(wave)
    frequencies = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    spectrum[(frequencies < low_hz) | (frequencies > high_hz)] = 0
    return np.fft.irfft(spectrum, len(wave))


BANDS = {"telephone": (300, 3400), "8 kHz": (0, 4000), "radio": (300, 2700), "6 kHz": (0, 3000), "11 kHz": (0, 5512)}


@pytest.mark.parametrize("band", fast_ones(BANDS, "telephone", "6 kHz", "11 kHz"))
def test_speech_in_a_narrow_band_is_accepted(synthetic: list[np.ndarray], band: str) -> None:
    rng = np.random.default_rng(0)
    for wave in synthetic[::3]:
        noise = rng.standard_normal(len(wave)) * np.sqrt((wave**2).mean())
        narrow = within(wave, *BANDS[band])
        soft = np.round(0.01 * narrow * 32768) / 32768
        assert {reason_of(narrow), reason_of(soft), reason_of(within(wave + 0.5 * noise, *BANDS[band]))} == {None}


@pytest.mark.parametrize("band", BANDS)
def test_noise_and_tones_in_a_narrow_band_are_rejected(band: str) -> None:
    rng = np.random.default_rng(0)
    sweep = np.sin(2 * np.pi * (300 + 500 * seconds(2)) * seconds(2))
    busy = np.tile(np.concatenate([np.sin(2 * np.pi * 480 * seconds(0.5)), np.zeros(SAMPLE_RATE // 2)]), 4)
    for wave, reason in (
        (0.1 * rng.standard_normal(4 * SAMPLE_RATE), "noise"),
        (melody(), "tones"),
        (sweep, "tones"),
        (busy, "tones"),
    ):
        assert reason_of(within(wave, *BANDS[band])) == reason


@pytest.mark.parametrize(("rate", "subtype"), [(8000, "ULAW"), (8000, "ALAW"), (8000, "GSM610"), (11025, "IMA_ADPCM")])
def test_speech_with_telephone_codecs_is_accepted(
    synthetic: list[np.ndarray], tmp_path: Path, rate: int, subtype: str
) -> None:
    for wave in synthetic[::5]:
        narrow = torchaudio.functional.resample(torch.from_numpy(np.float32(wave)), SAMPLE_RATE, rate)
        soundfile.write(tmp_path / "x.wav", narrow.numpy(), rate, subtype)
        assert non_speech_reason(load_audio(tmp_path / "x.wav", max_duration_s=60)) is None


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the FFmpeg program is not here")
@pytest.mark.parametrize("codec", ["aac 8000 12k m4a", "libmp3lame 16000 8k mp3", "libopus 8000 6k ogg"])
def test_speech_with_low_bit_rates_is_accepted(synthetic: list[np.ndarray], tmp_path: Path, codec: str) -> None:
    """If FFmpeg resamples a file from 8 to 16 kHz, the upper half of the spectrum can be exactly zero."""
    encoder, rate, bits, suffix = codec.split()
    waves = synthetic[:12:3]
    for index, wave in enumerate(waves):
        soundfile.write(tmp_path / f"x{index}.wav", wave, SAMPLE_RATE)
    encode = ["-ar", rate, "-c:a", encoder, "-b:a", bits]
    decode = ["-ar", str(SAMPLE_RATE), "-c:a", "pcm_f32le"]
    for source, options, target in (("x{}.wav", encode, f"y{{}}.{suffix}"), (f"y{{}}.{suffix}", decode, "z{}.wav")):
        # Convert all files in one run, because starting FFmpeg takes longer than converting a file.
        command = ["ffmpeg", "-nostdin", "-v", "error", "-y"]
        for index in range(len(waves)):
            command += ["-i", source.format(index)]
        for index in range(len(waves)):
            command += ["-map", str(index), *options, target.format(index)]
        subprocess.run(command, check=True, cwd=tmp_path)
    for index in range(len(waves)):
        assert reason_of(soundfile.read(tmp_path / f"z{index}.wav", dtype="float32")[0]) is None


@pytest.mark.skipif(not SPEECH.is_dir(), reason="recorded speech is not here")
@pytest.mark.parametrize("manifest", ["an4/dev.jsonl", "librispeech-sample/all.jsonl"])
def test_recorded_speech_is_accepted(manifest: str) -> None:
    path = SPEECH / manifest
    rows = [json.loads(line) for line in path.read_text().splitlines()][::8]
    assert len(rows) > 10
    rng = np.random.default_rng(0)
    for row in rows:
        wave, _ = soundfile.read(path.parent / row["audio_filepath"], dtype="float32")
        in_noise = wave + rng.standard_normal(len(wave)) * np.sqrt((wave**2).mean())
        found = {reason_of(wave), reason_of(0.01 * wave), reason_of(in_noise), reason_of(within(wave, 300, 3400))}
        assert found == {None}, row["audio_filepath"]


@pytest.mark.parametrize(
    ("duration_s", "snr_db"),
    [(12, 40), (29.9, 20), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((12, 20), (29.9, 40)))],
)
def test_a_word_in_a_long_noise_is_accepted(synthetic: list[np.ndarray], duration_s: float, snr_db: float) -> None:
    rng = np.random.default_rng(0)
    for wave in synthetic[::4]:
        noise = rng.standard_normal(int(duration_s * SAMPLE_RATE)) * wave.std() / 10 ** (snr_db / 20)
        assert reason_of(noise) == "noise"
        start = int(rng.integers(len(noise) - len(wave)))
        noise[start : start + len(wave)] += wave
        assert reason_of(noise) is None


def test_only_very_quiet_audio_is_amplified(synthetic: list[np.ndarray]) -> None:
    wave = torch.from_numpy(synthetic[0])
    assert boost_quiet(wave) is wave
    soft = wave * 2**-7
    louder = boost_quiet(soft)
    assert 0.25 <= float(louder.abs().max()) <= 0.5
    assert torch.equal(louder * float(soft.abs().max() / louder.abs().max()), soft), (
        "the gain is a power of two, so no sample is rounded"
    )
    assert torch.equal(boost_quiet(torch.zeros(5)), torch.zeros(5))
    assert len(boost_quiet(torch.zeros(0))) == 0


@pytest.mark.parametrize(
    ("text", "once"),
    [
        ("one two three", "one two three"),
        ("no no no", "no no no"),
        ("go no no no no stop", "go no stop"),
        ("a b a b A b, a b c", "a b c"),
        ("thank you thank you thank you thank you", "thank you"),
        ("x x x x y y y y", "x y"),
        ("", ""),
    ],
)
def test_repeats_are_collapsed(text: str, once: str) -> None:
    assert collapse_repeats(text) == once


def test_only_impossible_repeats_are_collapsed() -> None:
    loop = "nine nine nine nine"
    assert collapse_impossible_repeats(loop, truncated=False, duration_s=2.0) is None
    assert collapse_impossible_repeats(loop, truncated=True, duration_s=2.0) == "nine"
    assert collapse_impossible_repeats(loop, truncated=False, duration_s=0.5) == "nine"
    assert collapse_impossible_repeats("one two", truncated=True, duration_s=0.1) is None


def test_much_less_likely_texts_are_detected() -> None:
    assert not is_much_less_likely(-1.0, -40.0, 10, 10)
    assert is_much_less_likely(-1.0, -90.0, 10, 10)
    assert is_much_less_likely(-1.0, -200.0, 4, 60)
    assert is_much_less_likely(-1.0, float("-inf"), 4, 60)
    assert not is_much_less_likely(-1.0, -100.0, 4, 60)
