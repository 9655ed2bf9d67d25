"""Encode clips, and damage them."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile

from tiny_audio.frames import SAMPLE_RATE


def tone(seconds: float = 1.0, rate: int = SAMPLE_RATE, hertz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = SAMPLE_RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


WAV = encoded(tone(), subtype="PCM_16")
FLAC = encoded(tone(), kind="FLAC")
DATA_SIZE, CHANNELS, RATE = 40, 22, 24
"""Offsets in the RIFF header."""
_FLAC_TOTAL = 21  # the number of samples has 36 bits: the low 4 bits of this byte, and the next 4 bytes


def flac_claiming(samples: int) -> bytes:
    """Return a FLAC file of one second whose header states the given number of samples."""
    high = (FLAC[_FLAC_TOTAL] & 0xF0) | (samples >> 32)
    return patched(FLAC, _FLAC_TOTAL, bytes([high]) + struct.pack(">I", samples & 0xFFFFFFFF))


def untagged_mp3() -> tuple[bytes, bytes]:
    """Return an MP3 file, and a copy without its first frame. The first frame contains the length tag."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * SAMPLE_RATE).astype(np.float32)
    mp3 = encoded(noise, kind="MP3")
    return mp3, mp3[mp3.index(b"\xff\xf3", 4) :]
