"""Measure the cost of fingerprints of sound, and how many copies and how many false matches they find.

    python benchmarks/overlap.py ../shared/speech/an4/train.jsonl ../shared/speech/an4/dev.jsonl \\
        ../shared/speech/librispeech-sample/all.jsonl

The arguments are manifests of recorded speech. FFmpeg makes the compressed copies.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from tiny_audio.audio.fingerprint import Landmarks, landmarks
from tiny_audio.data.sound_overlap import SoundIndex

NUM_COPIES = 150
NUM_COMPRESSED = 60


def read(manifest: Path) -> list[Tensor]:
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [
        torch.from_numpy(soundfile.read(manifest.parent / row["audio_filepath"], dtype="float32")[0]) for row in rows
    ]


def noisy(waveform: Tensor, db: float) -> Tensor:
    noise = torch.randn(len(waveform), generator=torch.Generator().manual_seed(0))
    return waveform + noise * waveform.pow(2).mean().sqrt() * 10 ** (-db / 20)


def compressed(*options: str) -> Callable[[Tensor], Tensor]:
    def change(waveform: Tensor) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            soundfile.write(f"{folder}/x.wav", waveform.numpy(), 16_000)
            ffmpeg = ["ffmpeg", "-v", "error", "-y", "-i"]
            subprocess.run([*ffmpeg, "x.wav", *options], cwd=folder, check=True)
            back = [*ffmpeg, options[-1], "-ar", "16000", "-ac", "1", "-f", "f32le", "-"]
            raw = subprocess.run(back, cwd=folder, check=True, capture_output=True).stdout
        return torch.from_numpy(np.frombuffer(raw, dtype="<f4").copy())

    return change


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "20 dB softer": lambda waveform: 0.1 * waveform,
    "noise at 20 dB": lambda waveform: noisy(waveform, 20),
    "noise at 10 dB": lambda waveform: noisy(waveform, 10),
    "first 0.3 s cut": lambda waveform: waveform[4_803:],
    "20 % cut at both ends": lambda waveform: waveform[len(waveform) // 5 : -len(waveform) // 5],
    "1 s of silence before": lambda waveform: torch.cat([torch.zeros(16_048), waveform]),
    "8 kHz": compressed("-ar", "8000", "x.flac"),
    "MP3, 32 kbit/s": compressed("-b:a", "32k", "x.mp3"),
    "MP3, 16 kbit/s": compressed("-b:a", "16k", "x.mp3"),
    "Opus, 24 kbit/s": compressed("-c:a", "libopus", "-b:a", "24k", "x.opus"),
    "Opus, 16 kbit/s": compressed("-c:a", "libopus", "-b:a", "16k", "x.opus"),
    "Opus, 12 kbit/s": compressed("-c:a", "libopus", "-b:a", "12k", "x.opus"),
}


def synthetic(prints: list[Landmarks], size: int, rng: np.random.Generator) -> list[Landmarks]:
    """Return ``size`` fingerprints that combine hashes of real speech at random."""
    pool = np.concatenate([each.hashes for each in prints])
    length = int(np.median([len(each) for each in prints]))
    frames = np.sort(rng.integers(0, 400, length)).astype(np.int32)
    return [Landmarks(rng.choice(pool, length), frames) for _ in range(size)]


def main(manifests: list[str]) -> None:
    torch.set_num_threads(1)
    waveforms = [waveform for name in manifests for waveform in read(Path(name))]
    seconds = sum(map(len, waveforms)) / 16_000
    began = time.process_time()
    prints = [landmarks(waveform) for waveform in waveforms]
    took = time.process_time() - began
    index = SoundIndex(prints)
    began = time.process_time()
    found = [index.copies(each) for each in prints]
    matched = time.process_time() - began
    count = len(waveforms)
    print(f"{count} clips, {seconds / 60:.0f} minutes; {sum(map(len, prints)) / seconds:.0f} landmarks per second")
    print(
        f"computing a fingerprint: {1000 * took / count:.1f} ms per clip, {seconds / took:.0f} times as fast as real "
        "time; one thread"
    )
    print(f"comparison with all {count} clips: {1000 * matched / count:.2f} ms per clip")
    wrong = sum(len(copies) - (row in copies) for row, copies in enumerate(found))
    print(f"clips that match themselves: {sum(row in copies for row, copies in enumerate(found))} of {count}")
    print(f"false matches: {wrong} of {count * (count - 1):,} pairs of different clips")
    rng = np.random.default_rng(0)
    chosen = rng.permutation(count)[:NUM_COPIES].tolist()
    for name, change in CHANGES.items():
        rows = chosen if "cut" in name or "noise" in name or "silence" in name else chosen[:NUM_COMPRESSED]
        hits = sum(row in index.copies(landmarks(change(waveforms[row]))) for row in rows)
        print(f"{name}: {hits} of {len(rows)} found")
    for size in (1_000, 10_000):
        large = SoundIndex(synthetic(prints, size, rng))
        queries = synthetic(prints, 2_000, rng)
        began = time.process_time()
        chance = sum(len(large.copies(query)) for query in queries)
        each = (time.process_time() - began) / len(queries)
        print(
            f"with synthetic fingerprints, comparison of a training clip with {size:,} evaluation clips: "
            f"{1000 * each:.2f} ms ({1e6 * each / 60:.0f} minutes for a million training clips); "
            f"false matches: {chance} of {size * len(queries):,} pairs"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
