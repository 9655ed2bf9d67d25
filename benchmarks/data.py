"""Measure how fast clips are loaded, compared with streaming and with decoding alone, and how fast epochs are planned.

    python benchmarks/data.py                                       synthetic clips of noise with the envelope of speech
    python benchmarks/data.py --manifest librispeech/all.jsonl      real speech; clips are repeated if needed
    python benchmarks/data.py --only plan                           only planning with ten million clips
    python benchmarks/data.py --only memory                         only shared memory
    python benchmarks/data.py --only decode                         only decoding of undamaged clips (decoding.py)

Loading: the clips are FLAC in Parquet files with LoquaciousSet's schema. Three loaders alternate, one epoch each:

- ours: two workers load padded batches with targets from the source `parquet`, in planned order
- streaming: `datasets` streams rows through a shuffle buffer, and the two workers of a DataLoader decode them with
  soundfile into padded batches with a fixed number of clips and with targets
- decoding alone: two processes decode the same FLAC from memory with soundfile

The time of an epoch of the first two loaders includes the start of the workers. Our loader must reach 70 % of the rate
of decoding alone.

Shared memory: our loader passes batches through its own shared memory (`tiny_audio/data/shared_batches.py`). For
comparison, it also passes batches in a DataLoader's default way. The two ways alternate. Each pair of epochs gives one
ratio of CPU times. CPU times are used because other work on the machine affects them less than elapsed times.

Planning: Parquet files with the same schema contain ten million rows of metadata and no audio. One process creates the
index. Another process opens the index and plans an epoch, like a run that is resumed. The second process may take at
most 60 s and 4 GiB of resident memory, including pages of the memory-mapped index.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from decoding import decoding_speed
from record import Record, spread
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from tiny_audio.data import batches as data_batches
from tiny_audio.data.augmentation import AugmentationConfig
from tiny_audio.data.batches import PlannedBatches
from tiny_audio.data.clips import ClipSet
from tiny_audio.data.order import BatchingConfig
from tiny_audio.data.target_encoder import TargetEncoder
from tiny_audio.decoders import DECODERS, build_tokenizer
from tiny_audio.encoders import ENCODERS
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.runtime.memory import peak_resident_bytes
from tiny_audio.sources import SOURCES, SourceContext

DECODING_SHARE, PLAN_S, PLAN_GIB = 0.7, 60.0, 4.0
WORKERS = 2
BATCH = 16
SHUFFLE_BUFFER = 1000
ROW_GROUP = 100
"""Rows per row group, as written by the datasets library for audio."""
SHARDS = 8
GIB = 2**30
SCHEMA = pa.schema(
    {
        "ID": pa.string(),
        "duration": pa.float32(),
        "wav": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "spk_id": pa.string(),
        "sex": pa.string(),
        "text": pa.string(),
    }
)
WORDS = ("THE", "OF", "AND", "TO", "IN", "A", "THAT", "IT", "WAS", "HIS", "HE", "WITH", "AS", "HAD", "FOR", "AT")


# --- clips


def speech(manifest: Path) -> Iterator[tuple[bytes, float, str]]:
    """Yield the encoded clips of a manifest with their durations and texts, repeated endlessly."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    clips = [((manifest.parent / row["audio_filepath"]).read_bytes(), row["duration"], row["text"]) for row in rows]
    while True:
        yield from clips


def noise() -> Iterator[tuple[bytes, float, str]]:
    """Yield 64 clips of noise, repeated endlessly, with the rhythm of syllables and with log-normal durations."""
    rng = np.random.default_rng(0)
    clips = []
    for seconds in np.clip(rng.lognormal(math.log(6.0), 0.75, 64), 0.5, 30.0):
        samples = int(seconds * SAMPLE_RATE)
        white = np.convolve(rng.standard_normal(samples), np.ones(8) / 8, mode="same")
        envelope = np.abs(np.sin(np.pi * 2 * np.arange(samples) / SAMPLE_RATE)) ** 2
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.2 * white * envelope, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        text = " ".join(rng.choice(WORDS, max(1, int(seconds * 2.5))))
        clips.append((buffer.getvalue(), samples / SAMPLE_RATE, text))
    while True:
        yield from clips


def write_shards(folder: Path, clips: Iterator[tuple[bytes, float, str]], count: int) -> None:
    """Write ``count`` clips to Parquet files in LoquaciousSet's format."""
    for shard in range(SHARDS):
        rows = []
        for number in range(shard, count, SHARDS):
            audio, seconds, text = next(clips)
            row = {"ID": f"clip-{number:06d}", "duration": seconds, "wav": {"bytes": audio, "path": f"{number}.flac"}}
            rows.append(row | {"spk_id": f"s{number % 97}", "sex": "female", "text": text.upper()})
        path = folder / f"train-{shard:05d}-of-{SHARDS:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, row_group_size=ROW_GROUP)


# --- the three loaders


def ours(folder: Path, cache: Path, epoch: int, clock: Callable[[], float] = time.perf_counter) -> tuple[int, float]:
    """Return the number of clips and the seconds of one epoch.

    One sample of each memory page of the waveforms is read, so that the time includes the transfer of all pages.
    """
    clips = gathered(folder, cache)
    decoder = DECODERS.entry("smollm3").config.tiny()
    tokenizer = build_tokenizer(decoder, clips.texts)
    target_encoder = TargetEncoder(tokenizer, tokenizer.eos_token_id, None, ENCODERS.entry("whisper").config.tiny())
    started = clock()
    plan = clips.clips.plan(BatchingConfig(max_clips=BATCH), 0, epoch)
    batches = PlannedBatches(clips.clips, plan, target_encoder, AugmentationConfig(), 60.0, 0, epoch)
    count = 0
    for batch in DataLoader(batches, batch_size=None, sampler=range(len(plan)), num_workers=WORKERS):
        assert not batch.dropped, batch.dropped[0]
        batch.waveforms.flatten()[::1024].sum()
        count += len(batch.targets)
    return count, clock() - started


def gathered(folder: Path, cache: Path) -> ClipSet:
    """Return all clips of the shards."""
    config = SOURCES.parse({"name": "parquet", "path": str(folder), "audio_column": "wav", "id_column": "ID"})
    return ClipSet.gather({"clips": SOURCES.build(config, SourceContext(cache))}, 0.1, 60.0)


def streaming(folder: Path, tokenizer: Any, epoch: int) -> tuple[int, float]:
    """Return the number of clips and the seconds of one epoch of ``datasets`` in streaming mode."""
    from datasets import Audio, load_dataset

    files = sorted(map(str, folder.glob("*.parquet")))
    dataset = load_dataset("parquet", data_files=files, split="train", streaming=True)
    dataset = dataset.cast_column("wav", Audio(decode=False)).shuffle(seed=epoch, buffer_size=SHUFFLE_BUFFER)
    started = time.perf_counter()
    count = 0
    collate = partial(decoded, tokenizer=tokenizer)
    for waveforms, _, _ in DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate):
        count += len(waveforms)
    return count, time.perf_counter() - started


def decoded(rows: list[dict[str, Any]], tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Decode rows, and return a padded batch: waveforms, lengths, targets."""
    waveforms = [torch.from_numpy(soundfile.read(io.BytesIO(row["wav"]["bytes"]), dtype="float32")[0]) for row in rows]
    targets = [torch.tensor(tokenizer.encode(row["text"], add_special_tokens=False)) for row in rows]
    return pad_sequence(waveforms, batch_first=True), torch.tensor([len(row) for row in waveforms]), targets


def decoding(folder: Path) -> tuple[int, float]:
    """Decode the clips in two processes. Return the number of clips and the seconds of the slower process."""
    files = sorted(folder.glob("*.parquet"))
    barrier, results = multiprocessing.Barrier(WORKERS), multiprocessing.SimpleQueue()
    processes = [
        multiprocessing.Process(target=_decode, args=(files[number::WORKERS], barrier, results))
        for number in range(WORKERS)
    ]
    for process in processes:
        process.start()
    counts = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(count for count, _ in counts), max(seconds for _, seconds in counts)


def _decode(files: list[Path], barrier: Any, results: Any) -> None:
    clips = [row["bytes"] for file in files for row in pq.read_table(file, columns=["wav"]).column("wav").to_pylist()]
    barrier.wait()
    started = time.perf_counter()
    for clip in clips:
        soundfile.read(io.BytesIO(clip), dtype="float32")
    results.put((len(clips), time.perf_counter() - started))


def memory(record: Record, manifest: Path | None, count: int, pairs: int) -> None:
    """Compare our shared-memory batches with the way in which torch's DataLoader passes tensors."""

    def cpu_s() -> float:
        usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    ratios, ours_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        shards, cache = Path(folder) / "shards", Path(folder) / "cache"
        shards.mkdir()
        write_shards(shards, noise() if manifest is None else speech(manifest), count)
        for epoch in range(pairs):
            seconds = {}
            for supported in (True, False) if epoch % 2 else (False, True):
                with patch.object(data_batches, "SUPPORTED", supported):
                    seconds[supported] = ours(shards, cache, epoch, cpu_s)[1]
            ratios.append(seconds[False] / seconds[True])
            ours_s.append(seconds[True])
    record.say("## Shared memory")
    record.say(
        f"{count:,} clips; {pairs} pairs of epochs. CPU time of an epoch with shared-memory batches: "
        f"{spread(ours_s, 2)} s."
    )
    record.say(f"CPU time with the DataLoader's way / CPU time with shared-memory batches: {spread(ratios)}.")


def loading(record: Record, manifest: Path | None, count: int, rounds: int) -> None:
    """Measure alternating epochs of the three loaders."""
    with tempfile.TemporaryDirectory() as folder:
        shards, cache = Path(folder) / "shards", Path(folder) / "cache"
        shards.mkdir()
        write_shards(shards, noise() if manifest is None else speech(manifest), count)
        clips = gathered(shards, cache)
        tokenizer = build_tokenizer(DECODERS.entry("smollm3").config.tiny(), clips.texts)
        size = sum(file.stat().st_size for file in shards.iterdir())
        record.say("## Loading")
        record.say(
            f"{count:,} clips, {clips.duration_s / 3600:.2f} hours of {manifest.parent.name if manifest else 'noise'}, "
            f"{size / 2**20:.0f} MiB of FLAC in {SHARDS} shards, {ROW_GROUP} rows per row group; {rounds} rounds."
        )
        ways: dict[str, Callable[[int], tuple[int, float]]] = {
            "decoding alone": lambda _: decoding(shards),
            "ours": lambda epoch: ours(shards, cache, epoch),
            "datasets, streaming": lambda epoch: streaming(shards, tokenizer, epoch),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for epoch in range(rounds):
            for name, run in ways.items():
                clips_seen, seconds = run(epoch)
                assert clips_seen == count, f"{name} gave {clips_seen} of {count} clips"
                rates[name].append(count / seconds)
        mean_s = clips.duration_s / count
    shares = {
        name: [rate / alone for rate, alone in zip(values, rates["decoding alone"], strict=True)]
        for name, values in rates.items()
    }
    record.table(
        ("", "clips/s, median [range]", "audio s/s", "relative to decoding alone"),
        [
            (name, spread(values, 0), f"{np.median(values) * mean_s:,.0f}", spread(shares[name]))
            for name, values in rates.items()
        ],
    )
    record.say()
    share = float(np.median(shares["ours"]))
    record.bar(
        f"ours at {share:.0%} of the rate of decoding alone, at least {DECODING_SHARE:.0%}", share >= DECODING_SHARE
    )


# --- planning


def write_metadata(folder: Path, count: int) -> None:
    """Write ``count`` rows without audio, divided among several shards."""
    rng = np.random.default_rng(0)
    shards = max(1, count // 100_000)
    texts = [" ".join(rng.choice(WORDS, 20)) for _ in range(1000)]
    for shard in range(shards):
        numbers = np.arange(shard, count, shards)
        table = pa.table(
            {
                "ID": pa.array([f"corpus-{number:09d}" for number in numbers]),
                "duration": pa.array(
                    np.clip(rng.lognormal(math.log(6.0), 0.75, len(numbers)), 0.5, 30.0), pa.float32()
                ),
                "wav": pa.nulls(len(numbers), SCHEMA.field("wav").type),
                "spk_id": pa.array([f"s{number % 50_000}" for number in numbers]),
                "sex": pa.array(["female"] * len(numbers)),
                "text": pa.array([texts[number % 1000] for number in numbers]),
            },
            schema=SCHEMA,
        )
        pq.write_table(table, folder / f"train-{shard:05d}.parquet", row_group_size=ROW_GROUP)


def stage(name: str, shards: Path, cache: Path) -> dict[str, Any]:
    """Return times and peak memory of one stage, run in this process.

    The stage ``index`` creates the index. The stage ``plan`` opens the index and plans an epoch.
    """
    started = time.perf_counter()
    clips = gathered(shards, cache)
    opened_s = time.perf_counter() - started
    found: dict[str, Any] = {"opened_s": opened_s, "clips": len(clips.clips)}
    if name == "plan":
        started = time.perf_counter()
        plan = clips.clips.plan(BatchingConfig(max_clips=64, max_padded_s=240.0), 0, 0)
        found |= {"planned_s": time.perf_counter() - started, "batches": len(plan)}
        started = time.perf_counter()
        middle = plan[len(plan) // 2]
        found |= {"batch_s": time.perf_counter() - started, "first_id": clips.clips[int(middle[0])].id}
        assert len(np.unique(plan.order)) == len(clips.clips)
    return found | {"peak_bytes": peak_resident_bytes(), "user_s": resource.getrusage(resource.RUSAGE_SELF).ru_utime}


def planning(record: Record, count: int) -> None:
    """Measure indexing and planning, each in its own process."""
    record.say(f"## Planning {count:,} clips")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards, cache = Path(folder) / "shards", Path(folder) / "cache"
        shards.mkdir()
        write_metadata(shards, count)
        for name in ("index", "plan"):
            command = [sys.executable, __file__, "--stage", name, str(shards), str(cache)]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            found[name] = json.loads(done.stdout)
        size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    index, plan = found["index"], found["plan"]
    assert index["clips"] == plan["clips"] == count
    record.table(
        ("", "seconds", "peak resident, GiB"),
        [
            ("create the index", f"{index['opened_s']:.1f}", f"{index['peak_bytes'] / GIB:.2f}"),
            ("open the index", f"{plan['opened_s']:.1f}", ""),
            ("plan an epoch", f"{plan['planned_s']:.1f}", f"{plan['peak_bytes'] / GIB:.2f}"),
            ("look up the middle batch", f"{plan['batch_s']:.6f}", ""),
        ],
    )
    record.say(
        f"The index takes {size / GIB:.2f} GiB on disk. The plan has {plan['batches']:,} batches of at most 240 s of "
        "audio, including padding."
    )
    record.say()
    seconds, peak = plan["opened_s"] + plan["planned_s"], plan["peak_bytes"] / GIB
    record.bar(f"opened and planned in {seconds:.1f} s, at most {PLAN_S:g} s", seconds <= PLAN_S)
    record.bar(f"peak of {peak:.2f} GiB, at most {PLAN_GIB:g} GiB", peak <= PLAN_GIB)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, help="real clips: a manifest of FLAC files")
    parser.add_argument("--clips", type=int, default=2000, help="number of clips in an epoch of loading")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plan-clips", type=int, default=10_000_000)
    parser.add_argument("--only", choices=("load", "decode", "memory", "plan"))
    parser.add_argument("--output", type=Path, help="also write the results to this page")
    parser.add_argument("--stage", nargs=3, metavar=("NAME", "SHARDS", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.stage:
        name, shards, cache = arguments.stage
        print(json.dumps(stage(name, Path(shards), Path(cache))))
        return 0
    record = Record(
        "Data: loading against streaming and decoding alone, and planning ten million clips", arguments.output
    )
    if arguments.only in (None, "load"):
        loading(record, arguments.manifest, arguments.clips, arguments.rounds)
    if arguments.only in (None, "decode"):
        clips = noise() if arguments.manifest is None else speech(arguments.manifest)
        samples = [soundfile.read(io.BytesIO(next(clips)[0]), dtype="float32")[0] for _ in range(24)]
        decoding_speed(record, samples, max(9, arguments.rounds) if arguments.clips > 100 else 1)
    if arguments.only in (None, "memory"):
        memory(record, arguments.manifest, arguments.clips, max(8, arguments.rounds))
    if arguments.only in (None, "plan"):
        planning(record, arguments.plan_clips)
    return record.write()


if __name__ == "__main__":
    sys.exit(main())
