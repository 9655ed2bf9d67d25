"""The exact messages of errors about audio, compared with ``messages.txt``.

Other tests check the class and the reason of each error, and the values in its message. To regenerate ``messages.txt``,
run ``REGENERATE=1 pytest tests/audio/test_messages.py``. Then read the changes to the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.audio.encoded_clips import DATA_SIZE, FLAC, RATE, WAV, encoded, flac_claiming, patched, tone
from tests.support.golden import check_golden, raised
from tiny_audio.audio.ffmpeg import ffmpeg_blocks, has_ffmpeg
from tiny_audio.audio.load import load_audio, waveform_of
from tiny_audio.frames import SAMPLE_RATE

OGG, MP3 = (encoded(tone(4.0), kind=kind) for kind in ("OGG", "MP3"))
GOLDEN = Path(__file__).with_name("messages.txt")


def with_sample(value: float) -> bytes:
    samples = tone()
    samples[100] = value
    return encoded(samples, subtype="FLOAT")


def paragraphs(folder: Path) -> Iterator[str]:
    (folder / "clip.M4A").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    sources: dict[str, Path | bytes] = {
        "no file": folder / "gone.wav",
        "a folder": folder,
        "an empty file": b"",
        "no audio": b"this is text",
        "a format that needs FFmpeg": folder / "clip.M4A",
        "no samples": encoded(tone()[:0]),
        "too short": encoded(tone()[:399]),
        "too long": encoded(np.zeros(SAMPLE_RATE * 31, np.float32)),
        "NaN": with_sample(math.nan),
        "too loud": with_sample(1e30),
        "too many channels": encoded(np.zeros((1_000, 65), np.float32)),
        "a rate of 1 Hz": patched(WAV, RATE, struct.pack("<I", 1)),
        "a WAV file that is cut off": WAV[: len(WAV) // 2],
        "a WAV header with a wrong length": patched(WAV, DATA_SIZE, struct.pack("<I", 0x70000000)),
        "a FLAC header with a wrong length": flac_claiming(2 * SAMPLE_RATE),
        "a damaged FLAC file": patched(FLAC, 3_000, b"\xaa" * 50),
        "a damaged Ogg file": patched(OGG, len(OGG) // 2, b"\xaa" * 50),
        "an Ogg file that is cut off": OGG[: len(OGG) // 2],
        "an MP3 file that is cut off": MP3[: len(MP3) // 2],
    }
    for title, source in sources.items():
        yield raised(title, load_audio, source, max_duration_s=30)
    arrays = {
        "integer samples": (torch.ones(16_000, dtype=torch.int16), 16_000),
        "samples first": (torch.ones(16_000, 2), 16_000),
        "samples at 1 Hz": (torch.ones(16_000), 1),
        "too many samples": (torch.ones(16_000 * 31), 16_000),
        "too few samples": (torch.ones(10), 16_000),
    }
    for title, (samples, rate) in arrays.items():
        yield raised(title, waveform_of, samples, rate, max_duration_s=30, name="samples")


def test_messages(tmp_path: Path) -> None:
    check_golden(GOLDEN, "\n".join(paragraphs(tmp_path)).replace(str(tmp_path), "FOLDER"))


@pytest.mark.skipif(not has_ffmpeg(), reason="needs FFmpeg")
def test_the_message_of_ffmpeg_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "text.m4a").write_text("this is text")
    message = raised("no audio", list, ffmpeg_blocks(tmp_path / "text.m4a", "text.m4a"))
    assert "AudioError: text.m4a: FFmpeg" in message
