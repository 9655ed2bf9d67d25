"""Copies of a recording are found by sound. Other recordings of the same words by the same voice are not found."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from tests.data.test_overlap import clips
from tests.support.paths import SHARED
from tiny_audio.audio.fingerprint import landmarks
from tiny_audio.data import sound_overlap
from tiny_audio.data.sound_overlap import EvaluationSounds, SoundIndex

SPEECH = SHARED / "speech"
pytestmark = pytest.mark.skipif(not SPEECH.is_dir(), reason="no recorded speech")


@pytest.fixture(scope="module")
def speech() -> list[Tensor]:
    """Return every eighth recording of the AN4 dev set: 13 clips by 7 speakers."""
    rows = [json.loads(line) for line in (SPEECH / "an4" / "dev.jsonl").read_text().splitlines()][::8]
    return [
        torch.from_numpy(soundfile.read(SPEECH / "an4" / row["audio_filepath"], dtype="float32")[0]) for row in rows
    ]


@pytest.fixture(scope="module")
def index(speech: list[Tensor]) -> SoundIndex:
    return SoundIndex([landmarks(waveform) for waveform in speech])


def noisy(waveform: Tensor) -> Tensor:
    """Add white noise 20 dB below the speech."""
    noise = torch.randn(len(waveform), generator=torch.Generator().manual_seed(1))
    return waveform + 0.1 * waveform.pow(2).mean().sqrt() * noise


def telephone(waveform: Tensor) -> Tensor:
    """Average pairs of samples, which halves the sampling rate, and interpolate to the original rate."""
    half = torch.nn.functional.avg_pool1d(waveform[None], 2)[0]
    return torch.nn.functional.interpolate(half[None, None], scale_factor=2, mode="linear")[0, 0]


@pytest.mark.parametrize(
    "change",
    [
        lambda waveform: waveform,
        lambda waveform: 0.01 * waveform,
        lambda waveform: -waveform,
        noisy,
        telephone,
        lambda waveform: waveform[5_003:],
        lambda waveform: waveform[: int(0.7 * len(waveform))],
        lambda waveform: torch.cat([torch.zeros(16_048), waveform, torch.zeros(700)]),
        lambda waveform: torch.cat([waveform, waveform.flip(0)]),
    ],
    ids=["unchanged", "quiet", "inverted", "noise", "telephone", "start cut", "end cut", "padded", "longer"],
)
def test_only_copies_are_found(speech: list[Tensor], index: SoundIndex, change: Callable[[Tensor], Tensor]) -> None:
    assert [index.copies(landmarks(change(waveform))) for waveform in speech] == [[row] for row in range(len(speech))]


@pytest.mark.parametrize("options", [["-b:a", "32k", "x.mp3"], ["-b:a", "16k", "-c:a", "libopus", "x.opus"]])
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs FFmpeg")
def test_compressed_copies_are_found(
    speech: list[Tensor], index: SoundIndex, options: list[str], tmp_path: Path
) -> None:
    for row, waveform in enumerate(speech[:4]):
        soundfile.write(tmp_path / "x.wav", waveform.numpy(), 16_000)
        subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", "x.wav", *options], cwd=tmp_path, check=True)
        read = ["ffmpeg", "-v", "error", "-i", options[-1], "-ar", "16000", "-f", "f32le", "-"]
        raw = subprocess.run(read, cwd=tmp_path, check=True, capture_output=True).stdout
        assert index.copies(landmarks(torch.from_numpy(np.frombuffer(raw, dtype="<f4").copy()))) == [row]


@pytest.mark.parametrize("size", [0, 1, 400, 16_000])
def test_silence_and_noise_are_not_copies(index: SoundIndex, size: int) -> None:
    assert index.copies(landmarks(torch.zeros(size))) == []
    assert index.copies(landmarks(torch.randn(size, generator=torch.Generator().manual_seed(2)))) == []


def test_sets_are_compared_by_sound(speech: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(name: str, waveforms: list[Tensor]) -> list[dict[str, object]]:
        (tmp_path / name).mkdir()
        rows = []
        for row, waveform in enumerate(waveforms):
            soundfile.write(tmp_path / name / f"{row}.flac", waveform.numpy(), 16_000)
            rows.append({"audio_filepath": f"{row}.flac", "duration": len(waveform) / 16_000, "text": "a"})
        return rows

    training = clips(tmp_path / "train", written("train", speech[:5]), "train")
    copied = clips(
        tmp_path / "test", written("test", [speech[7], 0.5 * speech[2], speech[8], speech[4][3_000:]]), "test"
    )
    new = clips(tmp_path / "new", written("new", speech[9:]), "new")
    decoded: list[Tensor] = []
    monkeypatch.setattr(sound_overlap, "landmarks", lambda waveform: decoded.append(waveform) or landmarks(waveform))
    evaluation = EvaluationSounds({"test": copied, "new": new})
    assert evaluation.copies_of(training) == {"test": {1: "train", 3: "train"}, "new": {}}
    assert len(decoded) == 13
    assert evaluation.copies_of(training[3:]) == {"test": {3: "train"}, "new": {}}
    assert len(decoded) == 13 + 2, "evaluation clips are decoded once"
