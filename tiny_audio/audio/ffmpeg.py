"""Decode formats that libsndfile does not read (m4a, mp4, aac, wma, webm, amr) with the FFmpeg program."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import MIN_DURATION_S
from tiny_audio.frames import SAMPLE_RATE

_BLOCK_BYTES = 1 << 22
"""A little more than a minute of float samples at 16 kHz."""
_MAX_MESSAGE = 300
"""Number of characters from the end of FFmpeg's error output that a message quotes."""

HINT = (
    "for m4a, mp4, aac, wma, webm and amr install the FFmpeg program (apt install ffmpeg; brew install ffmpeg; winget "
    "install ffmpeg)"
)


def has_ffmpeg() -> bool:
    """Whether the program is installed."""
    return shutil.which("ffmpeg") is not None


def ffmpeg_blocks(path: Path, name: str) -> Iterator[torch.Tensor]:
    """Decode the first audio track of a file lazily, as mono float32 blocks at 16 kHz.

    FFmpeg may open files but no network connections, even if the file refers to some.

    Raises:
        AudioError: the file cannot be decoded, is too short, or has samples that are not finite.
    """
    program = shutil.which("ffmpeg")
    assert program is not None, "callers check has_ffmpeg"
    command = [
        *(program, "-nostdin", "-v", "error", "-xerror", "-protocol_whitelist", "file"),
        *("-i", f"file:{path.absolute()}"),
        *("-map", "0:a:0", "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "f32le", "pipe:1"),
    ]
    samples = 0
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        try:
            while data := process.stdout.read(_BLOCK_BYTES):
                block = torch.from_numpy(np.frombuffer(data[: len(data) // 4 * 4], dtype="<f4").copy())
                if not bool(torch.isfinite(block).all()):
                    raise AudioError("non_finite", f"{name}: holds NaN or infinite samples")
                samples += len(block)
                yield block
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if code != 0:
            errors.seek(0)
            message = " ".join(errors.read().decode(errors="replace").split())[-_MAX_MESSAGE:]
            raise AudioError("undecodable", f"{name}: FFmpeg cannot decode it: {message or f'status {code}'}")
    if samples < MIN_DURATION_S * SAMPLE_RATE:
        raise AudioError(
            "too_short", f"{name}: {samples / SAMPLE_RATE:.3f} s of sound; at least {MIN_DURATION_S} s is needed"
        )
