"""Send requests from many clients to `tiny-audio serve`, and compare its speed and texts with those of `transcribe`.

    python benchmarks/serving.py runs/quickstart                  64 clients, for at least 60 s and 2,000 requests
    python benchmarks/serving.py runs/quickstart --seconds 5 --requests 100 --clips 50     a quick look

`transcribe` transcribes the same files before and after the server. The mean of both times is the baseline. Each client
sends short WAV files of synthesized speech, one after the other. If a client gets the status 429, it waits as long as
the server says. The benchmark measures

- errors other than 429, and texts that differ from those of `transcribe`
- seconds of audio per second of elapsed time, and per second of CPU time, which other processes affect less
- the time from the request to the answer
- whether the server's memory grows during the requests

The benchmark needs the extras `serve` and `synthetic`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import soundfile
from record import Record
from transcription import sentences

from tiny_audio.audio.load import audio_duration
from tiny_audio.export.load import model_folder
from tiny_audio.frames import SAMPLE_RATE

LEAST_SPEED, MAX_GROWTH = 0.85, 1.05
TRANSCRIBE = """
import json, sys, time
from pathlib import Path
import torch
from tiny_audio.audio.recording import recording_blocks
from tiny_audio.export.load import load_model
from tiny_audio.inference.segments import Transcription
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.runtime.device import device_of
model, tokenizer = load_model(sys.argv[1])
transcriber = Transcriber(model.to(device_of("auto")), tokenizer)
paths = [Path(path) for path in sys.argv[2:]]
transcriber.transcribe([torch.zeros(16_000)])
wall, cpu = time.perf_counter(), time.process_time()
events = transcriber.stream(recording_blocks(path, path.name) for path in paths)
texts = [event.text for _, event in events if isinstance(event, Transcription)]
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, texts]))
"""


@dataclass
class Load:
    """Measurements of the responses to all clients. ``refused`` counts responses with the status 429."""

    latencies: list[float] = field(default_factory=list)
    audio_s: float = 0.0
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    memory: list[tuple[int, float]] = field(default_factory=list)
    """Number of responses, and the server's memory in MB at that time."""


def transcribe(model: Path, files: list[Path]) -> tuple[float, float, list[str]]:
    """Transcribe all files in one process. Return the elapsed seconds, the CPU seconds and the texts."""
    command = [sys.executable, "-c", TRANSCRIBE, str(model), *map(str, files)]
    wall, cpu, texts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return wall, cpu, texts


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


async def load(
    url: str, pid: int, files: list[Path], texts: list[str], clients: int, seconds: float, requests: int
) -> Load:
    """Send files from many clients, until ``seconds`` have passed and there are ``requests`` answers or errors."""
    seen, deadline = Load(), time.perf_counter() + seconds
    durations = [audio_duration(path) for path in files]
    numbers = itertools.count()
    data = [path.read_bytes() for path in files]

    async def one(client: httpx2.AsyncClient) -> None:
        while time.perf_counter() < deadline or len(seen.latencies) + len(seen.errors) < requests:
            index = next(numbers) % len(files)
            started = time.perf_counter()
            form = {"file": (files[index].name, data[index])}
            answer = await client.post(url, files=form, data={"model": "whisper-1"})
            if answer.status_code == 429:
                seen.refused += 1
                await asyncio.sleep(float(answer.headers["retry-after"]))
                continue
            if answer.status_code != 200:
                seen.errors.append(f"{answer.status_code} {answer.text}")
                continue
            seen.latencies.append(time.perf_counter() - started)
            seen.audio_s += durations[index]
            if answer.json()["text"] != texts[index]:
                seen.different.append(f"{files[index].name}: {answer.json()['text']!r} instead of {texts[index]!r}")
            if len(seen.latencies) % 50 == 0:
                seen.memory.append((len(seen.latencies), memory_mb(pid)))

    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(timeout=600, limits=limits) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=2000, help="minimum number of requests")
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model = model_folder(options.model)
    record = Record("Serving: many clients, compared with transcribe", options.output)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for index, (waveform, _) in enumerate(sentences(options.clips, 11)):
            files.append(Path(folder) / f"{index:04d}.wav")
            soundfile.write(files[-1], waveform, SAMPLE_RATE)
        total_s = sum(audio_duration(path) for path in files)
        before = transcribe(model, files)
        command = [sys.executable, "-m", "tiny_audio.cli", "serve", str(model), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            assert server.stdout is not None
            try:
                address = server.stdout.readline().split()[3]
                url = f"{address}/v1/audio/transcriptions"
                asyncio.run(load(url, server.pid, files, before[2], options.clients, 0.0, options.clients))  # a warm-up
                wall, cpu = time.perf_counter(), processor_s(server.pid)
                seen = asyncio.run(
                    load(url, server.pid, files, before[2], options.clients, options.seconds, options.requests)
                )
                wall, cpu = time.perf_counter() - wall, processor_s(server.pid) - cpu
            finally:
                server.terminate()  # otherwise, the end of the block would wait forever after an error
        if not seen.latencies:
            sys.exit(f"no request was answered; the first error is {seen.errors[0]}")
        after = transcribe(model, files)
    by_wall, by_cpu = (2 * total_s / (before[index] + after[index]) for index in (0, 1))
    record.say(
        f"{options.clients} clients, {len(seen.latencies)} answers in {wall:.1f} s, {seen.refused} responses 429; "
        f"{options.clips} clips of {total_s / options.clips:.1f} s on average."
    )
    record.table(
        ["seconds of audio per", "second", "second of CPU time"],
        [
            ["`transcribe`, mean of before and after", f"{by_wall:.1f}", f"{by_cpu:.1f}"],
            ["`serve`", f"{seen.audio_s / wall:.1f}", f"{seen.audio_s / cpu:.1f}"],
            ["ratio", f"{seen.audio_s / wall / by_wall:.2f}", f"{seen.audio_s / cpu / by_cpu:.2f}"],
        ],
    )
    p50, p95, p99 = np.percentile(seen.latencies, [50, 95, 99])
    record.say(f"Time to the answer: median {p50:.2f} s, 95th percentile {p95:.2f} s, 99th percentile {p99:.2f} s.")
    settled = [mb for count, mb in seen.memory if count >= len(seen.latencies) // 4] or [0.0]
    quarter = len(settled) // 3 or 1
    growth = max(settled[-quarter:]) / max(max(settled[:quarter]), 1.0)
    record.say(
        f"Memory of the server: at most {max(settled[:quarter]):.0f} MB in the second quarter of the requests, "
        f"{max(settled[-quarter:]):.0f} MB in the last."
    )
    record.say()
    record.bar(f"no errors but 429 ({len(seen.errors)}: {seen.errors[:2]})", not seen.errors)
    record.bar(
        f"the same texts as `transcribe` ({len(seen.different)} differ: {seen.different[:2]})", not seen.different
    )
    record.bar(f"at least {LEAST_SPEED:.0%} of the speed of `transcribe`", seen.audio_s / wall >= LEAST_SPEED * by_wall)
    record.bar(f"memory grows by at most {MAX_GROWTH - 1:.0%}", growth <= MAX_GROWTH)
    return record.write()


if __name__ == "__main__":
    sys.exit(main())
