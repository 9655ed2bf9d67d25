"""Files with truncated or forged headers are decoded, or they are rejected with an AudioError. They cause no crash."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import load_audio
from tiny_audio.frames import SAMPLE_RATE

FORMATS = ("WAV", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "MP3")


def written(format: str) -> bytes:
    file = io.BytesIO()
    samples = 0.3 * np.sin(np.arange(SAMPLE_RATE // 2) / 7)
    soundfile.write(file, np.stack([samples, samples], axis=1), SAMPLE_RATE, format=format)
    return file.getvalue()


def check(content: bytes, folder: Path) -> None:
    """Load the file from memory and from disk, with and without ``keep_damaged``. Only an AudioError is allowed."""
    path = folder / "clip"
    path.write_bytes(content)
    for keep in (False, True):
        for source in (content, path):
            try:
                waveform = load_audio(source, max_duration_s=60, name="clip", keep_damaged=keep)
            except AudioError:
                continue
            assert waveform.isfinite().all()


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_ends_within_its_header(format: str, tmp_path: Path) -> None:
    whole = written(format)
    for size in range(0, 160, 3):
        check(whole[:size], tmp_path)


def test_an_aiff_without_a_format(tmp_path: Path) -> None:
    check(b"FORM" + bytes(4) + b"AIFFCOMM" + bytes(4) + b"SSND" + bytes(4), tmp_path)


def test_a_flac_without_a_sampling_rate(tmp_path: Path) -> None:
    content = bytearray(written("FLAC"))
    content[18:20], content[20] = b"\0\0", content[20] & 0x0F
    check(bytes(content), tmp_path)
    check(bytes(content[: len(content) // 2]), tmp_path)


@pytest.mark.parametrize("size", [40, 43, 60])
def test_an_mp3_with_a_truncated_tag(size: int, tmp_path: Path) -> None:
    frame = b"\xff\xfb\x90\x00" + bytes(32) + b"Xing" + b"\0\0\0\x0f" + bytes(400)
    check(frame[:size], tmp_path)


def test_many_chunks_followed_by_noise(tmp_path: Path) -> None:
    """The search for the end of the audio must visit each of the 10,000 chunks only once, or it would take hours."""
    whole = bytearray(written("WAV"))
    whole[40:44] = struct.pack("<I", 0x7FFFF000)
    check(bytes(whole) + b"LIST\0\0\0\0" * 10_000 + b"noise", tmp_path)
