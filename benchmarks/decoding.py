"""Part of ``benchmarks/data.py``: the time to decode undamaged clips, compared with libsndfile, which trusts headers.

The baseline decodes with libsndfile, checks that the samples are finite, averages the channels and resamples. Our
decoder also checks the header against the content of the file. Both decode the same bytes, in alternating order.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
import soundfile
import torch
from record import Record, spread

from tiny_audio.audio._resampling import resampled
from tiny_audio.audio.load import load_audio
from tiny_audio.frames import SAMPLE_RATE

SPEED_SHARE = 0.95
BLOCK_SAMPLES = 1 << 20
FORMATS = (
    ("FLAC", "FLAC", "PCM_16", 1),
    ("WAV", "WAV", "PCM_16", 1),
    ("WAV, two channels", "WAV", "PCM_16", 2),
    ("Ogg Vorbis", "OGG", "VORBIS", 1),
    ("Ogg Opus", "OGG", "OPUS", 1),
    ("MP3", "MP3", None, 1),
)


class ForwardFile(soundfile.SoundFile):  # type: ignore[misc]  # untyped
    """A sound file that reports that it cannot seek. Otherwise, soundfile seeks after each read."""

    def seekable(self) -> bool:
        """Return False."""
        return False


def decode_by_header(data: bytes) -> torch.Tensor:
    """Decode a clip without checking its header."""
    with ForwardFile(io.BytesIO(data)) as file:
        blocks, left = [], file.frames
        assert "should be" not in file.extra_info
        while left > 0:
            block = torch.from_numpy(file.read(min(BLOCK_SAMPLES, left), dtype="float32", always_2d=True))
            left -= len(block)
            assert all(map(np.isfinite, torch.aminmax(block)))
            blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(dim=1))
        return resampled(torch.cat(blocks), file.samplerate)


def decoding_speed(record: Record, clips: list[np.ndarray], rounds: int) -> None:
    """Compare both decoders on clips ``[samples]`` in all formats.

    Args:
        rounds: number of rounds per format. Each round gives one ratio of CPU times.
    """
    ways: dict[str, Callable[[bytes], torch.Tensor]] = {
        "baseline": decode_by_header,
        "ours": lambda data: load_audio(data, max_duration_s=1e6),
    }
    rows, worst = [], 1.0
    for title, kind, subtype, channels in FORMATS:
        encoded = [_encoded(clip, kind, subtype, channels) for clip in clips]
        assert all(torch.equal(*(way(data) for way in ways.values())) for data in encoded[:4])
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for index in range(rounds):
            for name in ways if index % 2 else reversed(ways):
                started = time.process_time()
                for data in encoded:
                    ways[name](data)
                seconds[name].append(time.process_time() - started)
        ratios = [plain / checked for plain, checked in zip(seconds["baseline"], seconds["ours"], strict=True)]
        worst = min(worst, float(np.median(ratios)))
        rows.append((title, f"{np.median(seconds['ours']) / len(encoded) * 1e3:.2f}", spread(ratios)))
    record.say("## Decoding clean clips")
    mean_s = sum(map(len, clips)) / len(clips) / SAMPLE_RATE
    record.say(f"{len(clips)} clips of {mean_s:.1f} s on average; {rounds} rounds; CPU time.")
    record.table(("", "ms per clip", "speed relative to the baseline"), rows)
    record.say()
    record.bar(f"at least {SPEED_SHARE:.0%} of the baseline's speed in every format", worst >= SPEED_SHARE)


def _encoded(clip: np.ndarray, kind: str, subtype: str | None, channels: int) -> bytes:
    buffer = io.BytesIO()
    samples = clip if channels == 1 else np.stack([clip * (1 - 0.1 * index) for index in range(channels)], 1)
    soundfile.write(buffer, samples, SAMPLE_RATE, format=kind, subtype=subtype)
    return buffer.getvalue()
