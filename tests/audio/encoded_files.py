"""Make speech-like clips in every format, and find sections of them in decoded audio."""

from __future__ import annotations

import struct
import subprocess
from functools import cache
from pathlib import Path

import numpy as np

from tests.audio.encoded_clips import encoded
from tiny_audio.frames import SAMPLE_RATE

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "float": ("WAV", "FLOAT"),
    "ulaw": ("WAV", "ULAW"),
    "adpcm": ("WAV", "IMA_ADPCM"),
    "wavex": ("WAVEX", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", None),
}
PCM = ("wav", "wav24", "float", "ulaw", "wavex", "rf64", "w64", "aiff", "au", "caf")
FRAMED = ("flac", "vorbis", "opus", "mp3")


@cache
def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Return noise whose volume rises and falls like syllables. No two sections of the noise are similar."""
    samples = round(seconds * SAMPLE_RATE)
    noise = np.convolve(np.random.default_rng(seed).standard_normal(samples), np.ones(8) / 8, "same")
    swell = 0.2 + np.abs(np.sin(2 * np.pi * np.arange(samples) / SAMPLE_RATE))
    return (0.2 * noise * swell).astype(np.float32)


@cache
def clip(kind: str, seconds: float = 4.0, seed: int = 0) -> bytes:
    name, subtype = FORMATS[kind]
    return encoded(speech(seconds, seed), kind=name, subtype=subtype)


def located(decoded: np.ndarray, reference: np.ndarray, start_s: float, seconds: float = 0.5) -> tuple[float, float]:
    """Find a section of the reference in decoded audio. In the reference, the section begins at ``start_s``.

    Returns:
        How many seconds later the section begins in the decoded audio, and the similarity there, from 0 to 1.
    """
    start = round(start_s * SAMPLE_RATE)
    section = reference[start : start + round(seconds * SAMPLE_RATE)]
    size = 1 << (len(decoded) + len(section)).bit_length()
    spectra = np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(section, size))
    products = np.fft.irfft(spectra, size)[: len(decoded)]
    at = int(np.argmax(products))
    energy = float(np.sum(decoded[at : at + len(section)] ** 2) * np.sum(section**2))
    return (at - start) / SAMPLE_RATE, float(products[at]) / max(energy, 1e-12) ** 0.5


def offset(decoded: np.ndarray, reference: np.ndarray, start_s: float) -> float:
    """Return how many seconds later a section of the reference begins in decoded audio."""
    late_s, alike = located(decoded, reference, start_s)
    assert alike > 0.7, f"the section at {start_s} s was not found: its similarity is {alike:.2f}"
    return late_s


def wav_with(data_size: int, riff_size: int | None = None, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a WAV file of four seconds whose header states these sizes. ``before`` is inserted before its data chunk,
    and ``after`` is appended."""
    wav = clip("wav")
    riff_size = data_size + 36 if riff_size is None else riff_size
    sizes = struct.pack("<I", riff_size & 0xFFFFFFFF), struct.pack("<I", data_size & 0xFFFFFFFF)
    return b"RIFF" + sizes[0] + wav[8:36] + before + b"data" + sizes[1] + wav[44:] + after


def chunk(name: bytes, size: int) -> bytes:
    return (
        name + struct.pack("<I", size) + bytes(range(1, 256)) * (size // 255) + b"x" * (size % 255) + b"\0" * (size % 2)
    )


def ffmpeg(*arguments: str | int | Path) -> None:
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)], check=True)
