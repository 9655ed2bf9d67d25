"""Decoding of valid, hostile and damaged files."""

from __future__ import annotations

import io
import math
import os
import pickle
import resource
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.audio.encoded_clips import (
    CHANNELS,
    DATA_SIZE,
    FLAC,
    RATE,
    WAV,
    encoded,
    flac_claiming,
    patched,
    tone,
    untagged_mp3,
)
from tests.support.messages import assert_names
from tests.support.paths import SHARED
from tiny_audio.audio.channels import MAX_CHANNELS
from tiny_audio.audio.errors import AudioError, FileError
from tiny_audio.audio.load import audio_duration, load_audio
from tiny_audio.frames import SAMPLE_RATE


def assert_rejected(source: Path | bytes, reason: str, *words: str, max_duration_s: float = 30.0) -> None:
    with pytest.raises(AudioError) as caught:
        load_audio(source, max_duration_s=max_duration_s)
    assert caught.value.reason == reason, str(caught.value)
    assert_names(caught.value, *words)


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "FLOAT", 0.0),
        ("WAV", "ULAW", 2e-2),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 5e-2),
        ("MP3", None, 5e-2),
    ],
)
def test_formats_from_bytes_and_from_files(tmp_path: Path, kind: str, subtype: str | None, tolerance: float) -> None:
    data = encoded(tone(), kind=kind, subtype=subtype)
    path = tmp_path / f"clip.{kind.lower()}"
    path.write_bytes(data)
    waveform = load_audio(data, max_duration_s=2)
    assert waveform.dtype == torch.float32
    assert waveform.shape == (SAMPLE_RATE,)
    middle = slice(2_000, -2_000)  # lossy codecs add ringing at the ends
    assert (waveform[middle] - torch.from_numpy(tone())[middle]).abs().max() <= tolerance
    assert torch.equal(load_audio(path, max_duration_s=2), waveform)
    assert audio_duration(path) == audio_duration(data) == 1.0


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 11_127, 44_101])
def test_every_sampling_rate_becomes_16_khz(rate: int) -> None:
    waveform = load_audio(encoded(tone(1.0, rate), rate, subtype="FLOAT"), max_duration_s=2)
    assert abs(len(waveform) - SAMPLE_RATE) <= 16
    samples = np.arange(len(waveform))
    spectrum = np.abs(np.fft.rfft(waveform.numpy() * np.hanning(len(waveform))))
    assert np.argmax(spectrum) == pytest.approx(440, abs=1)
    middle = slice(4_000, 12_000)
    fit = np.stack([np.sin(2 * np.pi * 440 * samples / SAMPLE_RATE), np.cos(2 * np.pi * 440 * samples / SAMPLE_RATE)])
    amplitude = np.linalg.norm(2 * (fit[:, middle] * waveform.numpy()[middle]).mean(axis=1))
    assert amplitude == pytest.approx(0.3, rel=0.02)


def test_an_unusual_sampling_rate_needs_little_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load_audio(encoded(tone(0.5, 767_999), 767_999), max_duration_s=2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_the_duration_limit_does_not_depend_on_the_number_of_channels() -> None:
    left, right = tone(hertz=440), tone(hertz=1_000)
    stereo = load_audio(encoded(np.stack([left, right], 1), subtype="FLOAT"), max_duration_s=1.0)
    torch.testing.assert_close(stereo, torch.from_numpy((left + right) / 2))
    ten = load_audio(encoded(np.stack([left] * 10, 1), 48_000, subtype="FLOAT"), max_duration_s=1.0)
    assert len(ten) == math.ceil(SAMPLE_RATE / 3)


def test_joined_blocks_equal_the_whole_clip() -> None:
    rng = np.random.default_rng(0)
    # The clip has 2.4 million samples over all channels, and a block has 2**20.
    samples = rng.uniform(-0.5, 0.5, (300_000, 8)).astype(np.float32)
    waveform = load_audio(encoded(samples, subtype="FLOAT"), max_duration_s=30)
    torch.testing.assert_close(waveform, torch.from_numpy(samples).mean(dim=1))


def test_the_length_limit_is_exact_and_never_cuts() -> None:
    assert len(load_audio(encoded(tone(1.0)), max_duration_s=1.0)) == SAMPLE_RATE
    one_more = encoded(np.append(tone(1.0), np.float32(0)))
    assert_rejected(one_more, "too_long", "1.00 s", "1 s", max_duration_s=1)
    stereo = encoded(np.zeros((SAMPLE_RATE * 31, 2), np.float32))
    assert_rejected(stereo, "too_long", "31.00 s", "30 s")


def test_the_name_is_used_in_messages(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"^clip 7 of the shard: "):
        load_audio(b"RIFF, no header", max_duration_s=1, name="clip 7 of the shard")
    with pytest.raises(AudioError, match=r"^audio of 15 bytes: "):
        audio_duration(b"RIFF, no header")


def test_an_audio_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(AudioError("empty", "a.wav: contains no samples")))
    assert (error.reason, str(error)) == ("empty", "a.wav: contains no samples")
    assert isinstance(error, ValueError)


def test_files_without_audio_are_rejected(tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("this is a letter, not a recording\n")
    nothing = tmp_path / "nothing.wav"
    nothing.touch()
    assert_rejected(text, "undecodable", "text.wav:")
    assert_rejected(nothing, "empty", "nothing.wav:")
    assert_rejected(b"", "empty", "audio of 0 bytes:")
    assert_rejected(tmp_path, "not_a_file", f"{tmp_path}:")
    assert_rejected(Path("a\0b"), "unreadable", "null byte")
    assert_rejected(tmp_path / ("x" * 300), "unreadable", "File name too long")
    (tmp_path / "loop").symlink_to("loop")
    assert_rejected(tmp_path / "loop", "unreadable", "Too many levels of symbolic links")
    assert_rejected(encoded(tone()[:0]), "empty")
    assert_rejected(encoded(tone()[:1]), "too_short", "1 16,000 Hz; 0.025 s")
    assert_rejected(encoded(tone()[:399]), "too_short", "399")
    assert len(load_audio(encoded(tone()[:400]), max_duration_s=1)) == 400


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:5af5\nsize 269060552\n", "git lfs pull"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html>Not found</html>", "download"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "download"),
        (b'{"error": "not found"}', "download"),
        (b"#EXTM3U\nhttps://example.com/a.mp3\n", "playlist"),
        (b"PK\x03\x04" + bytes(60), "unpack"),
    ],
)
def test_files_that_are_something_else(content: bytes, advice: str) -> None:
    assert_rejected(content, "not_audio", advice)


def test_archives_of_recordings_are_rejected() -> None:
    """If an archive were accepted, only its first recording would be decoded."""
    tar, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive, zipfile.ZipFile(packed, "w") as stored:
        for name in ("a.wav", "b.wav"):
            entry = tarfile.TarInfo(name)
            entry.size = len(encoded(tone()))
            archive.addfile(entry, io.BytesIO(encoded(tone())))
            stored.writestr(name, encoded(tone()))
    assert_rejected(tar.getvalue(), "not_audio", "unpack")
    assert_rejected(packed.getvalue(), "not_audio", "unpack")


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    assert_rejected(pipe, "not_a_file", str(pipe))
    assert_rejected(Path("/dev/zero"), "not_a_file", "/dev/zero:")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_file_error(tmp_path: Path) -> None:
    path = tmp_path / "secret.wav"
    path.write_bytes(encoded(tone()))
    path.chmod(0)
    assert_unreadable(path, "Permission denied")


def assert_unreadable(path: Path, cause: str = "") -> None:
    """Check that reading the file raises a :class:`FileError`, and not an AudioError, which would blame the audio."""
    for read in (lambda: load_audio(path, max_duration_s=2, name="clip"), lambda: audio_duration(path, name="clip")):
        with pytest.raises(FileError) as caught:
            read()
        assert_names(caught.value, f"{path}:", cause)
        assert not isinstance(caught.value, AudioError)


def test_an_unreadable_file_is_not_a_bad_clip(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    assert_unreadable(path)
    path.write_bytes(encoded(tone()))
    assert_unreadable(path / "below.wav", "Not a directory")
    bounds = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, bounds[1]))
    try:
        assert_unreadable(path, "Too many open files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, bounds)
    assert len(load_audio(path, max_duration_s=2)) == SAMPLE_RATE


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux")
def test_a_disk_error_while_reading_is_not_a_bad_clip() -> None:
    assert_unreadable(Path("/proc/self/mem"), "Input/output error")  # Linux cannot read this file at position 0


def test_formats_are_recognized_without_the_file_name(tmp_path: Path) -> None:
    for name in ("clip.raw", "clip.mp3", "clip"):
        (tmp_path / name).write_bytes(encoded(tone(), kind="FLAC"))
        assert len(load_audio(tmp_path / name, max_duration_s=2)) == SAMPLE_RATE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_nan_and_infinite_samples_are_rejected(value: float, channels: int) -> None:
    samples = np.stack([tone()] * channels, 1)
    samples[9_000, 0] = value
    assert_rejected(encoded(samples, subtype="FLOAT"), "non_finite")


def test_samples_far_out_of_range_are_rejected() -> None:
    samples = tone()
    samples[100] = 1e30
    assert_rejected(encoded(samples, subtype="FLOAT"), "out_of_range", "65,536")


def test_forged_riff_headers_are_rejected() -> None:
    assert_rejected(
        patched(WAV, DATA_SIZE, struct.pack("<I", 0x70000000)),
        "truncated",
        "1,879,048,192 32,000",
    )
    assert_rejected(patched(WAV, CHANNELS, struct.pack("<H", 65_535)), "undecodable", "Too many channels")
    many = encoded(np.zeros((1_000, MAX_CHANNELS + 1), np.float32))
    assert_rejected(many, "channels", "65 1 64")
    assert_rejected(patched(WAV, RATE, struct.pack("<I", 1)), "sample_rate", "1 Hz; 1,000 768,000 Hz")
    assert_rejected(patched(WAV, RATE, struct.pack("<I", 2**31 - 1)), "sample_rate", "2,147,483,647 Hz")
    assert_rejected(patched(WAV, RATE, struct.pack("<I", 2**31)), "undecodable")
    assert_rejected(patched(WAV, RATE, struct.pack("<I", 0)), "undecodable")


def test_a_wav_without_a_length_is_decoded_completely() -> None:
    streamed = patched(patched(WAV, 4, b"\xff" * 4), DATA_SIZE, b"\xff" * 4)
    assert torch.equal(load_audio(streamed, max_duration_s=2), load_audio(WAV, max_duration_s=2))


def test_forged_flac_headers_are_rejected() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_rejected(flac_claiming(2**36 - 1), "truncated", "68,719,476,735 samples, 16,000")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert_rejected(flac_claiming(2 * SAMPLE_RATE), "truncated", "32,000 samples, 16,000")


def test_truncated_files_are_rejected(tmp_path: Path) -> None:
    assert_rejected(WAV[: len(WAV) // 2], "truncated", "32,000 bytes 15,978")
    assert_rejected(FLAC[: len(FLAC) // 2], "truncated", "16,000")
    assert_rejected(FLAC[:60], "undecodable")
    mp3 = encoded(tone(4.0), kind="MP3")
    assert_rejected(mp3[: len(mp3) // 2], "truncated", "4.10 s")
    path = tmp_path / "half.mp3"
    path.write_bytes(mp3[: len(mp3) // 2])
    assert_rejected(path, "truncated", "half.mp3:")
    with pytest.raises(AudioError) as caught:
        audio_duration(WAV[:-100])
    assert caught.value.reason == "truncated"


def test_an_mp3_without_a_length_tag_is_decoded_completely() -> None:
    mp3, untagged = untagged_mp3()
    whole, found = (load_audio(data, max_duration_s=9) for data in (mp3, untagged))
    # Without the length tag, the delay of the encoder is unknown and is not removed.
    assert 0 <= len(found) - len(whole) <= 3 * 576
    assert audio_duration(untagged) == len(found) / SAMPLE_RATE


def test_damage_in_the_middle_is_rejected() -> None:
    assert_rejected(patched(FLAC, 3_000, b"\xaa" * 50), "undecodable")


@pytest.mark.parametrize("data", [WAV, FLAC, encoded(tone(), kind="OGG"), encoded(tone(), kind="MP3")])
def test_damaged_files_give_audio_or_an_audio_error(data: bytes) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        hostile = bytearray(data)
        for _ in range(rng.integers(1, 6)):
            hostile[rng.integers(min(len(data), rng.choice([64, len(data)])))] = rng.integers(256)
        source = bytes(hostile[: rng.integers(1, len(data))] if rng.random() < 0.3 else hostile)
        try:
            waveform = load_audio(source, max_duration_s=5)
        except AudioError:
            continue
        assert waveform.ndim == 1
        assert waveform.isfinite().all()


def test_file_descriptors_are_closed(tmp_path: Path) -> None:
    (tmp_path / "good.wav").write_bytes(WAV)
    (tmp_path / "bad.wav").write_text("text")
    (tmp_path / "empty.wav").touch()
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        load_audio(tmp_path / "good.wav", max_duration_s=2)
        assert_rejected(tmp_path / "bad.wav", "undecodable")
        assert_rejected(tmp_path / "empty.wav", "empty")
        assert_rejected(tmp_path, "not_a_file")
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.skipif(not SHARED.exists(), reason="no shared recordings")
def test_real_recordings_are_decoded() -> None:
    for path in sorted((SHARED / "speech" / "librispeech-sample").rglob("*.flac"))[:3]:
        waveform = load_audio(path, max_duration_s=30)
        assert len(waveform) / SAMPLE_RATE == audio_duration(path)
        assert 0.01 < waveform.abs().max() <= 1
