"""Formats that libsndfile does not read (m4a, mp4, aac, wma, webm, amr), by the FFmpeg program where there is one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tiny_audio.audio.load import MIN_DURATION_S, AudioError
from tiny_audio.frames import SAMPLE_RATE

_BLOCK_BYTES = 1 << 22
"""A minute of float samples at 16 kHz, and some."""
_LAST_WORDS = 300

HINT = (
    "for m4a, mp4, aac, wma, webm and amr install the FFmpeg program (apt install ffmpeg; brew install ffmpeg; winget "
    "install ffmpeg)"
)


def has_ffmpeg() -> bool:
    """Whether the program is there."""
    return shutil.which("ffmpeg") is not None


def ffmpeg_blocks(path: Path, name: str) -> Iterator[torch.Tensor]:
    """The first audio track of a file as mono float32 blocks at 16 kHz, decoded as it is needed.

    The program may open files and no connection, whatever the file refers to.

    Raises:
        AudioError: it cannot be decoded, holds no sound, or samples that are not finite.
    """
    program = shutil.which("ffmpeg")
    assert program is not None, "asked for only where it is"
    command = [
        *(
            program,
            "-nostdin",
            "-v",
            "error",
            "-xerror",
            "-protocol_whitelist",
            "file",
            "-i",
            f"file:{path.absolute()}",
        ),
        *("-map", "0:a:0", "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "f32le", "pipe:1"),
    ]
    samples = 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
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
            said.seek(0)
            words = " ".join(said.read().decode(errors="replace").split())[-_LAST_WORDS:]
            raise AudioError("undecodable", f"{name}: FFmpeg cannot decode it: {words or f'status {code}'}")
    if samples < MIN_DURATION_S * SAMPLE_RATE:
        raise AudioError(
            "too_short", f"{name}: {samples / SAMPLE_RATE:.3f} s of sound; at least {MIN_DURATION_S} s is needed"
        )
