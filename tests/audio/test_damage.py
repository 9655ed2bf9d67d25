"""Damaged recordings lose only the damaged audio, and all other audio keeps its position.

Without ``keep_damaged``, as in training, damaged clips are rejected.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.audio.encoded_clips import encoded, patched
from tests.audio.encoded_files import FRAMED, clip, ffmpeg, offset, speech
from tests.support.messages import assert_names
from tiny_audio.audio import _mp3
from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.ffmpeg import ffmpeg_blocks
from tiny_audio.audio.load import audio_blocks, load_audio
from tiny_audio.frames import SAMPLE_RATE

SECONDS = 12.0
ID3 = b"ID3\x04\0\0\0\0\1\0" + bytes(128)


def kept(data: bytes, name: str) -> np.ndarray:
    waveform = load_audio(data, max_duration_s=60, name=name, keep_damaged=True).numpy()
    np.testing.assert_array_equal(np.concatenate(list(audio_blocks(data, name=name, keep_damaged=True))), waveform)
    return waveform


@pytest.mark.parametrize("kind", FRAMED)
@pytest.mark.parametrize("fault", ["overwritten", "removed", "inserted"])
def test_audio_after_damage_keeps_its_position(kind: str, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    data = clip(kind, SECONDS)
    middle, size = len(data) // 2, 2_000
    damaged = {
        "overwritten": patched(data, middle, b"\xaa" * size),
        "removed": data[:middle] + data[middle + size :],
        "inserted": data[:middle] + b"\xaa" * size + data[middle:],
    }[fault]
    name = f"{kind} {fault}"
    if not (kind == "mp3" and fault == "inserted"):  # inserted bytes may leave all frames of an MP3 intact
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


@pytest.mark.parametrize("at", [0, 100], ids=["in the frame header", "in the frame body"])
def test_the_length_tag_is_read_if_the_next_frame_is_damaged(caplog: pytest.LogCaptureFixture, at: int) -> None:
    data = clip("mp3", SECONDS)
    first = data.index(b"\xff\xf3", 4) + at  # in the first frame after the one with the length tag
    short = data[:first] + data[first + 1 : len(data) // 8]
    decoded = kept(short, f"short mp3 {at}")
    assert len(decoded) / SAMPLE_RATE < SECONDS / 8
    assert "cut off: the header says 12.10 s" in caplog.text


@pytest.mark.parametrize("kind", FRAMED)
def test_audio_keeps_its_position_after_several_damages(kind: str) -> None:
    data = clip(kind, SECONDS)
    for share in (0.3, 0.6, 0.8):
        data = patched(data, int(share * len(data)), b"\x55" * 200)
    decoded = kept(data, f"{kind} thrice")
    assert len(decoded) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.15)
    for start_s in (0.5, 11.4):
        assert offset(decoded, speech(SECONDS), start_s) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("kind", FRAMED)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_truncated_files_are_decoded_up_to_their_end(kind: str, share: float, caplog: pytest.LogCaptureFixture) -> None:
    data = clip(kind, SECONDS)
    damaged, name = data[: int(share * len(data))], f"{kind} cut at {share}"
    with pytest.raises(AudioError) as caught:
        load_audio(damaged, max_duration_s=60, name=name)
    assert caught.value.reason == "truncated"
    decoded = kept(damaged, name)
    assert share * SECONDS - 0.8 < len(decoded) / SAMPLE_RATE < share * SECONDS + 0.6
    assert offset(decoded, speech(SECONDS), 1.0) == pytest.approx(0.0, abs=0.01)
    assert_names(caplog.records[0].getMessage(), f"{name}:")


@pytest.mark.parametrize(("limit", "value"), [("_MAX_RUNS", 2), ("_MAX_LOST_BYTES", 150)])
def test_audio_beyond_the_limits_of_the_search_is_reported(
    limit: str, value: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_mp3, limit, value)
    data = clip("mp3", SECONDS)
    for share in (0.3, 0.6, 0.8):
        data = patched(data, int(share * len(data)), b"\x55" * 200)
    decoded = kept(data, limit)
    assert 0.2 * SECONDS < len(decoded) / SAMPLE_RATE < 0.9 * SECONDS
    (message,) = {record.getMessage() for record in caplog.records if "are not read" in record.getMessage()}
    num_bytes = int(next(word for word in message.split() if "," in word and word[0].isdigit()).replace(",", ""))
    assert 0.1 * len(data) < num_bytes < 0.8 * len(data)
    with pytest.raises(AudioError) as caught:
        load_audio(data, max_duration_s=60, name=limit)
    assert caught.value.reason in ("undecodable", "truncated")


@pytest.fixture(scope="module")
def raw_aac(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("raw_aac")
    (folder / "x.wav").write_bytes(clip("wav", SECONDS))
    ffmpeg("-i", folder / "x.wav", "-c:a", "aac", "-b:a", "64k", folder / "x.aac")
    return (folder / "x.aac").read_bytes()


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs FFmpeg")
@pytest.mark.parametrize(
    ("start", "fault"),
    [
        *((b"", fault) for fault in ("zeros", "inserted", "removed")),
        (ID3, "noise"),
        pytest.param(b"", "noise", marks=pytest.mark.slow),
        *(pytest.param(ID3, fault, marks=pytest.mark.slow) for fault in ("zeros", "inserted", "removed")),
    ],
)
def test_raw_aac_keeps_its_positions(
    fault: str, start: bytes, raw_aac: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, size = raw_aac, 8_000
    middle = len(whole) // 2
    noise = np.random.default_rng(0).bytes(size)
    damaged = {
        "zeros": patched(whole, middle, bytes(size)),
        "noise": patched(whole, middle, noise),
        "inserted": whole[:middle] + noise[:300] + whole[middle:],
        "removed": whole[:middle] + whole[middle + 150 :],
    }[fault]
    (tmp_path / "x.aac").write_bytes(start + damaged)
    name = f"{fault}, {len(start)} bytes before"
    decoded = np.concatenate(list(ffmpeg_blocks(tmp_path / "x.aac", name)))
    for start_s in (1.0, 4.0, 9.0, 11.0):
        assert offset(decoded, speech(SECONDS), start_s) == pytest.approx(0.0, abs=0.2)
    assert any(name in record.getMessage() for record in caplog.records)
    if fault in ("zeros", "noise"):
        (first, *_) = [
            record.getMessage() for record in caplog.records if "silence takes its place" in record.getMessage()
        ]
        start_s, end_s = (float(word) for word in first.split() if word[0].isdigit() and "." in word)
        assert 5.0 < start_s < 6.1 < 6.8 < end_s < 8.0


def test_a_damaged_file_joined_with_another_is_decoded() -> None:
    for kind in FRAMED:
        first = patched(clip(kind, SECONDS), len(clip(kind, SECONDS)) // 2, b"\xaa" * 500)
        decoded = kept(first + clip(kind, 2.0, 1), f"{kind} damaged and joined")
        assert offset(decoded, speech(SECONDS), 11.0) == pytest.approx(0.0, abs=0.05)
        assert offset(decoded, speech(2.0, 1), 1.0) == pytest.approx(SECONDS, abs=0.15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_invalid_samples_are_replaced_by_silence(bad: float, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_gap_of_years_needs_little_memory() -> None:
    """In a hostile Ogg file, the granule position of one page can be years after the positions of all other pages. The
    gap must not be filled with years of silence."""
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
