"""Damage costs what is damaged, and what comes after keeps its position. Training rejects such clips."""

from __future__ import annotations

import numpy as np
import pytest

from tests.audio.encoded_clips import encoded, patched
from tests.audio.encoded_files import FRAMED, clip, offset, speech
from tests.support.messages import assert_names
from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import audio_blocks, load_audio
from tiny_audio.frames import SAMPLE_RATE

SECONDS = 12.0


def kept(data: bytes, name: str) -> np.ndarray:
    waveform = load_audio(data, max_duration_s=60, name=name, keep_damaged=True).numpy()
    np.testing.assert_array_equal(np.concatenate(list(audio_blocks(data, name=name, keep_damaged=True))), waveform)
    return waveform


@pytest.mark.parametrize("kind", FRAMED)
@pytest.mark.parametrize("fault", ["overwritten", "removed", "inserted"])
def test_damage_in_the_middle(kind: str, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    data = clip(kind, SECONDS)
    middle, size = len(data) // 2, 2_000
    damaged = {
        "overwritten": patched(data, middle, b"\xaa" * size),
        "removed": data[:middle] + data[middle + size :],
        "inserted": data[:middle] + b"\xaa" * size + data[middle:],
    }[fault]
    name = f"{kind} {fault}"
    if not (kind == "mp3" and fault == "inserted"):  # nothing is lost
        with pytest.raises(AudioError) as caught:
            load_audio(damaged, max_duration_s=60, name=name)
        assert caught.value.reason in ("undecodable", "truncated")
        assert_names(caught.value, f"{name}:")
    decoded = kept(damaged, name)
    assert len(decoded) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)
    for start_s in (0.5, 2.5, 9.0, 11.0):
        assert offset(decoded, speech(SECONDS), start_s) == pytest.approx(0.0, abs=0.05)
    warnings = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    if warnings:
        start_s, end_s = (float(word) for word in warnings[-1].split() if word[0].isdigit() and "." in word)
        assert 2.5 < start_s < 6.5 < end_s + 1.5 < 9.5


@pytest.mark.parametrize("kind", FRAMED)
def test_several_damages(kind: str) -> None:
    data = clip(kind, SECONDS)
    for share in (0.3, 0.6, 0.8):
        data = patched(data, int(share * len(data)), b"\x55" * 200)
    decoded = kept(data, f"{kind} thrice")
    assert len(decoded) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.15)
    for start_s in (0.5, 11.4):
        assert offset(decoded, speech(SECONDS), start_s) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("kind", FRAMED)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_files_that_are_cut_off(kind: str, share: float, caplog: pytest.LogCaptureFixture) -> None:
    data = clip(kind, SECONDS)
    damaged, name = data[: int(share * len(data))], f"{kind} cut at {share}"
    with pytest.raises(AudioError) as caught:
        load_audio(damaged, max_duration_s=60, name=name)
    assert caught.value.reason == "truncated"
    decoded = kept(damaged, name)
    assert share * SECONDS - 0.8 < len(decoded) / SAMPLE_RATE < share * SECONDS + 0.6
    assert offset(decoded, speech(SECONDS), 1.0) == pytest.approx(0.0, abs=0.01)
    assert_names(caplog.records[0].getMessage(), f"{name}:")


def test_damaged_and_joined() -> None:
    for kind in FRAMED:
        first = patched(clip(kind, SECONDS), len(clip(kind, SECONDS)) // 2, b"\xaa" * 500)
        decoded = kept(first + clip(kind, 2.0, 1), f"{kind} damaged and joined")
        assert offset(decoded, speech(SECONDS), 11.0) == pytest.approx(0.0, abs=0.05)
        assert offset(decoded, speech(2.0, 1), 1.0) == pytest.approx(SECONDS, abs=0.15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_samples_that_are_no_numbers(bad: float, caplog: pytest.LogCaptureFixture) -> None:
    samples = speech(SECONDS).copy()
    samples[48_000:56_000] = bad
    data = encoded(samples, subtype="FLOAT")
    with pytest.raises(AudioError) as caught:
        load_audio(data, max_duration_s=60)
    assert caught.value.reason in ("non_finite", "out_of_range")
    decoded = kept(data, f"samples of {bad}")
    assert not decoded[48_000:56_000].any()
    np.testing.assert_array_equal(decoded[56_000:], speech(SECONDS)[56_000:])
    assert_names(caplog.records[0].getMessage(), "3.00 3.50 s")


def test_positions_years_apart_take_no_memory() -> None:
    """A granule position of a hostile file."""
    opus = clip("opus")
    last = opus.rindex(b"OggS")
    hostile = patched(opus, last + 6, (1 << 60).to_bytes(8, "little"))
    total = 0
    try:
        for block in audio_blocks(hostile, keep_damaged=True):
            total += len(block)
    except AudioError:
        pass
    assert total <= 7 * 3_600 * SAMPLE_RATE
