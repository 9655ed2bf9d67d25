"""Audio that is given as decoded samples instead of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import load_audio, waveform_of


def test_samples_give_the_waveform_of_a_file(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 22_050)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples.T, 44_100, "FLOAT")
    wanted = load_audio(tmp_path / "a.wav", max_duration_s=60)
    found = waveform_of(torch.tensor(samples), 44_100, max_duration_s=60, name="x")
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("samples", "rate", "reason", "message"),
    [
        (torch.ones(9000, dtype=torch.int32), 16_000, "undecodable", "x: .*int32"),
        (torch.ones(9000, 2), 16_000, "channels", r"x: .*\(9000, 2\)"),
        (torch.ones(2, 2, 2), 16_000, "channels", r"x: .*\(2, 2, 2\)"),
        (torch.ones(9000), 10, "sample_rate", "x: .*10 Hz; 1,000 .*768,000"),
        (torch.ones(9000), 1_000, "too_long", "x: 9.00 s .*5 s"),
        (torch.ones(9), 16_000, "too_short", "x: 9 samples .*0.025 s"),
        (torch.full((9000,), torch.nan), 16_000, "non_finite", "x: .*NaN"),
        (torch.full((9000,), 1e9), 16_000, "out_of_range", "x: .*65,536"),
    ],
)
def test_unusable_samples_are_rejected(samples: torch.Tensor, rate: int, reason: str, message: str) -> None:
    with pytest.raises(AudioError, match=message) as raised:
        waveform_of(samples, rate, max_duration_s=5, name="x")
    assert raised.value.reason == reason
