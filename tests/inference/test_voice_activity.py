"""Probabilities of speech equal those of silero-vad for blocks of any size. torch's global state does not change."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.inference.voice_activity import FRAME, SpeechProbabilities, silero


def sounds(duration_s: float) -> Tensor:
    """Return syllables of a gliding pitch with harmonics. The network classifies some of the syllables as speech."""
    t = np.arange(int(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 2 * np.pi * (120 * t + 10 * np.sin(2 * np.pi * 0.7 * t))
    voice = sum(np.sin(k * pitch) / k for k in range(1, 20)) * (np.sin(2 * np.pi * 2 * t) > -0.5)
    noise = np.random.default_rng(0).standard_normal(len(t))
    return torch.from_numpy(0.05 * voice + 0.002 * noise).float()


def probabilities(waveform: Tensor, block: int, frames_per_step: int = 32) -> list[float]:
    network = silero()
    assert network is not None
    found = SpeechProbabilities(network, frames_per_step)
    return [one for part in waveform.split(block) for one in found.add(part)] + found.end()


def test_probabilities_equal_those_of_the_published_model() -> None:
    waveform = sounds(3.0)[: 90 * FRAME]
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None
    assert spec.origin is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        published = torch.jit.load(str(Path(spec.origin).parent / "data" / "silero_vad.jit"))
    with torch.no_grad():
        wanted = [published(frame, SAMPLE_RATE).item() for frame in waveform.split(FRAME)]
    found = probabilities(waveform, len(waveform))
    assert found == pytest.approx(wanted, abs=1e-4)
    assert probabilities(waveform, FRAME, frames_per_step=1) == pytest.approx(wanted, abs=1e-5)
    assert max(found) > 0.2
    assert min(found) < 0.1


@pytest.mark.parametrize("frames_per_step", [1, 32])
def test_probabilities_do_not_depend_on_the_size_of_blocks(frames_per_step: int) -> None:
    waveform = sounds(2.0)[:-100]
    whole = probabilities(waveform, len(waveform), frames_per_step)
    assert len(whole) == -(-len(waveform) // FRAME)
    assert probabilities(waveform, 777, frames_per_step) == whole


def test_the_global_state_does_not_change() -> None:
    silero.cache_clear()
    before = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_rng_state(), "silero_vad" in sys.modules
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = probabilities(sounds(0.5), FRAME)
    after = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_rng_state(), "silero_vad" in sys.modules
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert before[3] == after[3]
    assert under_autocast == probabilities(sounds(0.5), FRAME)


def test_silence_is_not_speech() -> None:
    assert max(probabilities(torch.zeros(SAMPLE_RATE), 1000)) < 0.1
    assert probabilities(torch.zeros(0), 1) == []


def test_without_silero_no_network_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert silero.__wrapped__() is None


def test_weights_of_another_network_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    network = silero()
    assert network is not None
    other = {f"_model.{name}": value for name, value in network._weights.items() if "encoder.3" not in name}
    monkeypatch.setattr(torch.jit, "load", lambda path, map_location: SimpleNamespace(state_dict=lambda: other))
    assert silero.__wrapped__() is None
