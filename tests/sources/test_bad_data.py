"""All good clips are used for training, even if other clips are bad or requests to the hub fail."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.conftest import Document, changed
from tests.support.hub_server import Fault, Hub, Repo, running_hub, use_hub
from tests.support.parquet_shards import LOQUACIOUS, Row, encoded_clip, loquacious_row, loquacious_shard
from tests.support.training import RecordingCallback
from tiny_audio.commands.run import Run
from tiny_audio.config import UserError
from tiny_audio.data.augmentation import clip_seed
from tiny_audio.data.batches import Batch, PlannedBatches
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.recipe import Recipe
from tiny_audio.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects the seeds of used clips. A clip's seed is a hash of run seed, epoch and clip id."""
    seeds: list[int] = []
    get = PlannedBatches.__getitem__

    def recorded(self: PlannedBatches, k: int) -> Batch:
        batch = get(self, k)
        seeds.extend(batch.seeds)
        return batch

    monkeypatch.setattr(PlannedBatches, "__getitem__", recorded)
    return seeds


def epoch_of(ids: list[str], epoch: int) -> Counter[int]:
    return Counter(clip_seed(0, epoch, clip_id) for clip_id in ids)


# --- bad clips

KINDS = {
    "noise": "undecodable",
    "nothing": "empty",
    "null": "audio_missing",
    "nan": "non_finite",
    "short": "too_short",
    "long": "too_long",
    "lies": "duration_differs",
    "silent": "text_missing",
    "latin-1": "bad_unicode",
    "crowded": "text_too_long",
    "cut_off": "truncated",
    "forged": "truncated",
    "no_duration": "bad_duration",
    "special": "special_token",
}
"""Kinds of bad clips, each with the reason in dropped.jsonl."""
SHARDS, CLIPS = 4, 70
"""Number of shards, and number of clips per shard. One clip of each kind is bad: 14 of 280 clips, which are 5 %."""


def wav(samples: np.ndarray, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype=subtype)
    return buffer.getvalue()


def spoiled(row: Row, kind: str) -> Row:
    """Return a copy of a row, changed to a bad clip of this kind. The kind becomes its id."""
    tone = 0.3 * np.sin(np.arange(SAMPLE_RATE) / 6)
    audio: dict[str, Any] = {
        "noise": {"bytes": b"this is no audio" * 60, "path": None},
        "nothing": {"bytes": b"", "path": None},
        "null": {"bytes": None, "path": "elsewhere.wav"},
        "nan": {"bytes": wav(np.where(np.arange(SAMPLE_RATE) == 99, np.nan, tone), "FLOAT"), "path": None},
        "short": {"bytes": wav(tone[:800]), "path": None},
        "long": {"bytes": wav(np.tile(tone, 11)), "path": None},
        "lies": {"bytes": wav(np.tile(tone, 3)), "path": None},
        "cut_off": {"bytes": encoded_clip(1, 1.0, "FLAC")[:9_000], "path": None},
        "forged": {"bytes": b"", "path": None},
    }
    forged = bytearray(wav(tone))
    forged[40:44] = (2_000_000).to_bytes(4, "little")  # the length of the data chunk
    audio["forged"]["bytes"] = bytes(forged)
    changes: dict[str, Any] = {"wav": audio[kind]} if kind in audio else {}
    seconds = {"nan": 1.0, "short": 0.05, "long": 11.0, "lies": 1.0, "cut_off": 1.0, "forged": 1.0}
    changes |= {"duration": seconds[kind]} if kind in seconds else {}
    texts = {"silent": "  ", "crowded": "STOP NOW " * 30, "special": "STOP <|end|>"}
    changes |= {"text": texts[kind]} if kind in texts else {}
    changes |= {"duration": None} if kind == "no_duration" else {}
    return row | changes | {"ID": kind}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Write shards with LoquaciousSet's schema. 5 % of the clips are bad. Return the folder and the ids of the good
    clips."""
    folder, kinds = tmp_path_factory.mktemp("corpus"), list(KINDS)
    good = []
    for shard in range(SHARDS):
        rows = [loquacious_row(shard * CLIPS + number) for number in range(CLIPS)]
        for number, kind in enumerate(kinds[shard::SHARDS]):
            rows[11 + 17 * number] = spoiled(rows[11 + 17 * number], kind)
        good += [row["ID"] for row in rows if row["ID"] not in KINDS]
        table = pa.Table.from_pylist(rows, schema=LOQUACIOUS)
        table = table.set_column(5, "text", latin_1(table))
        pq.write_table(table, folder / f"train-{shard:05d}-of-{SHARDS:05d}.parquet", row_group_size=20)
    return folder, good


def latin_1(table: pa.Table) -> pa.Array:
    """Return a table's texts. The text of the clip ``latin-1`` becomes invalid UTF-8, which Parquet does not check."""
    texts = [text.as_py().encode() for text in table.column("text")]
    ids = table.column("ID").to_pylist()
    texts = [b"CAF\xc9" if id_ == "latin-1" else text for id_, text in zip(ids, texts, strict=True)]
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())


def recipe(document: Document, folder: Path, **settings: Any) -> Recipe:
    columns = {"audio_column": "wav", "id_column": "ID", "speaker_column": "spk_id"}
    source = {"name": "parquet", "path": str(folder), **columns}
    fields = {"data__train": {"corpus": source}, "data__evaluation": {}, "data__target_text": "lower"}
    fields |= {"ctc": {"weight": 0.3}, "batching__max_clips": 24, "execution__log_every": 5}
    return Recipe.model_validate(changed(document, **(fields | settings)))


def test_bad_clips_are_listed_and_all_good_clips_are_used(
    document: Document, corpus: tuple[Path, list[str]], tmp_path: Path, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    folder, good = corpus
    assert len(KINDS) / (SHARDS * CLIPS) == 0.05
    assert len(good) == SHARDS * CLIPS - len(KINDS)
    # Before training, 5 of the 280 clips are dropped because of their text or duration. The other 275 clips are 12
    # batches of up to 24 clips, so step 13 is the first step of the second epoch.
    steps = 13
    Run(recipe(document, folder, training__steps=steps), "bad", tmp_path / "run", RecordingCallback()).complete()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert (rows[-1]["step"], rows[-1]["dropped_clips"]) == (steps, len(KINDS))
    lines = [json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
    assert {line["id"].removeprefix("corpus/"): line["reason"] for line in lines} == KINDS
    assert len(lines) == len(KINDS), "each clip is listed once"
    assert all(line["detail"] for line in lines)
    ids = [f"corpus/{name}" for name in good]
    assert epoch_of(ids, 0) <= Counter(used)
    bad = epoch_of([f"corpus/{kind}" for kind in KINDS], 0) + epoch_of([f"corpus/{kind}" for kind in KINDS], 1)
    assert not bad & Counter(used)


def test_more_bad_clips_than_allowed_stop_the_run(
    document: Document, corpus: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    settings = {"training__steps": 70, "data__max_dropped_share": 0.02}
    allowed = r"^\d of 278 training clips are unusable \(2.\d%; data.max_dropped_share is 2.0%\):\n  "
    with pytest.raises(UserError, match=allowed):
        Run(recipe(document, corpus[0], **settings), "bad", tmp_path / "run", RecordingCallback()).complete()


# --- failures of the hub

NAME = "speechbrain/LoquaciousSet"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        shards = {f"small/train-{n:05d}-of-00004.parquet": loquacious_shard(20 * n, 20, row_group=2) for n in range(4)}
        config = {"config_name": "small", "data_files": [{"split": "train", "path": "small/*"}]}
        hub.repos[NAME] = Repo(shards, {"configs": [config]})
        use_hub(monkeypatch, hub.endpoint)
        yield hub


def test_a_hub_with_20_percent_failures_loses_no_clip(
    hub: Hub, document: Document, tmp_path: Path, used: list[int], waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(tmp_path / "cache"))
    kinds: tuple[Fault, ...] = ("limit", "error", "cut")
    rng = random.Random(0)
    failed: Counter[Fault] = Counter()
    hub.reset_s = 3

    def fault(number: int, path: str) -> Fault | None:
        if rng.random() >= 0.2:
            return None
        kind = rng.choice(kinds)
        failed[kind] += 1
        return kind

    hub.fault = fault
    source = {"name": "loquacious", "config": "small"}
    settings = {"data__train": {"corpus": source}, "data__evaluation": {}, "data__target_text": "lower"}
    settings |= {"batching__max_clips": 20, "training__steps": 4, "execution__log_every": 5}
    Run(Recipe.model_validate(changed(document, **settings)), "hub", tmp_path / "run", RecordingCallback()).complete()
    assert not (tmp_path / "run" / "dropped.jsonl").exists()
    assert Counter(used) == epoch_of([f"corpus/clip-{number}" for number in range(80)], 0)
    assert min(failed[kind] for kind in kinds) >= 3
    assert 0.15 < failed.total() / len(hub.requests) < 0.25
    assert sum(4.0 <= wait_s < 4.1 for wait_s in waits) >= 3, "until the limit resets after 3 s, and one second more"
    assert len(waits) >= failed["limit"] + failed["error"]
