"""Mixing of channels to mono. Channels of opposite phase do not cancel each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.audio.encoded_clips import encoded
from tests.audio.encoded_files import speech
from tests.support.messages import assert_names
from tiny_audio.audio.channels import parse_channel
from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import audio_blocks, load_audio, waveform_of
from tiny_audio.config import UserError
from tiny_audio.frames import SAMPLE_RATE

ONE, TWO = speech(2.0), speech(2.0, 1)


def mixed(*channels: np.ndarray, name: str = "clip", channel: int | None = None) -> np.ndarray:
    data = encoded(np.stack(channels, 1), subtype="FLOAT")
    waveform = load_audio(data, max_duration_s=9, name=name, channel=channel)
    np.testing.assert_array_equal(torch.cat(list(audio_blocks(data, name=name, channel=channel))), waveform)
    return waveform.numpy()


@pytest.mark.parametrize(
    ("channels", "stronger"),
    [
        ((ONE, -ONE), 0),
        ((ONE, -1.25 * ONE), 1),
        ((0.6 * ONE, -ONE + 0.05 * TWO), 1),
        ((ONE, -ONE, ONE * 0.9, -ONE * 1.1), 3),
    ],
)
def test_the_stronger_of_opposite_channels_is_used_with_a_warning(
    channels: tuple[np.ndarray, ...], stronger: int, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    np.testing.assert_allclose(mixed(*channels, name=name), channels[stronger], atol=1e-6)
    (warning,) = caplog.records
    assert_names(warning.getMessage(), f"{name}: {stronger + 1}")


@pytest.mark.parametrize(
    "channels", [(ONE, TWO), (ONE, 0 * ONE), (ONE, ONE), (ONE, 0.5 * ONE, TWO), (0 * ONE,) * 7 + (ONE,), (0 * ONE,) * 2]
)
def test_other_channels_are_averaged(channels: tuple[np.ndarray, ...], caplog: pytest.LogCaptureFixture) -> None:
    np.testing.assert_allclose(mixed(*channels), np.mean(channels, axis=0), atol=1e-6)
    assert not caplog.records


def test_opposite_phases_in_a_section(caplog: pytest.LogCaptureFixture) -> None:
    """Where the channels cancel each other, only one of them is used. All other sections keep both speakers."""
    first, second = speech(8.0), speech(8.0, 1)
    left, right = first.copy(), np.zeros_like(first)
    right[: 2 * SAMPLE_RATE] = second[: 2 * SAMPLE_RATE]
    right[4 * SAMPLE_RATE : 6 * SAMPLE_RATE] = -left[4 * SAMPLE_RATE : 6 * SAMPLE_RATE]
    waveform, mean = mixed(left, right, name="part"), (left + right) / 2
    for start, end, expected in ((0, 3, mean), (4.3, 5.7, left), (7, 8, mean)):
        place = slice(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
        np.testing.assert_allclose(waveform[place], expected[place], atol=1e-6)
    (warning,) = caplog.records
    assert_names(warning.getMessage(), "part: 1")


@pytest.mark.parametrize("common", [0.2, 0.2 * np.sin(2 * np.pi * 50 * np.arange(len(ONE)) / SAMPLE_RATE)])
def test_opposite_phases_with_the_same_hum_in_all_channels(common: np.ndarray | float) -> None:
    left, right = (channel.astype(np.float32) for channel in (ONE + common, -ONE + common))
    waveform = mixed(left, right)
    assert min(abs(waveform - left).max(), abs(waveform - right).max()) < 1e-6


@pytest.mark.parametrize("frames", [400, 4_095, 4_097, 8_193])
def test_short_blocks(frames: int) -> None:
    np.testing.assert_allclose(mixed(ONE[:frames], TWO[:frames]), (ONE + TWO)[:frames] / 2, atol=1e-6)
    assert abs(mixed(ONE[:frames], -ONE[:frames])[:390] - ONE[:390]).max() < 1e-6


def test_a_channel_can_be_selected() -> None:
    for channel, expected in ((1, ONE), (2, TWO)):
        np.testing.assert_array_equal(mixed(ONE, TWO, channel=channel), expected)
    with pytest.raises(AudioError) as caught:
        mixed(ONE, TWO, channel=3)
    assert caught.value.reason == "no_such_channel"
    assert_names(caught.value, "2 3")


def test_decoded_samples_are_mixed_like_files() -> None:
    samples = torch.from_numpy(np.stack([ONE, -ONE]))
    np.testing.assert_allclose(waveform_of(samples, SAMPLE_RATE, max_duration_s=9, name="samples"), ONE)


def test_channel_names_are_parsed() -> None:
    assert [parse_channel(name) for name in ("left", "Right", "1", "64")] == [1, 2, 1, 64]
    for name in ("0", "65", "middle", "-1", "", "1.5"):
        with pytest.raises(UserError):
            parse_channel(name)
