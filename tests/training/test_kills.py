"""A run that streams from a hub and is killed twenty times has exactly the weights of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import changed, tiny_recipe
from tests.support.equality import assert_equal
from tests.support.hub_server import LOQUACIOUS_CARD, LOQUACIOUS_NAME, Hub, Repo, running_hub
from tests.support.parquet_shards import loquacious_shard
from tests.support.processes import PATIENCE_S, kill, last_step, wait_until
from tiny_audio.training.checkpoint import latest
from tiny_audio.training.metrics import read_metrics

KILLS, STEPS, SHARDS, CLIPS = 20, 200, 3, 16


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        shards = {
            f"small/train-{n:05d}-of-{SHARDS:05d}.parquet": loquacious_shard(CLIPS * n, CLIPS, row_group=4)
            for n in range(SHARDS)
        }
        hub.repos = {LOQUACIOUS_NAME: Repo(shards, LOQUACIOUS_CARD)}
        yield hub


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe that uses every source of random numbers, and whose shuffle window is smaller than the corpus."""
    settings: dict[str, Any] = {
        "data__train": {"loquacious": {"name": "loquacious", "config": "small"}},
        "data__evaluation": {},
        "data__target_text": "lower",
        "ctc": {"weight": 0.5},
        "encoder__dropout": 0.1,
        "decoder__dropout": 0.1,
        "augmentation": {
            "speed": [0.9, 1.0, 1.1],
            "white_noise": {"snr_db": [10.0, 30.0]},
            "spec_augment": {"max_time_mask_s": 0.1},
        },
        "batching": {"max_clips": 3, "shuffle_clips": 20},
        "training__steps": STEPS,
        "training__accumulation": 2,
        "execution__num_workers": 2,
        "execution__log_every": 1,
        "execution__log_clips": True,
        "execution__checkpoint_every": 3,
    }
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(changed(tiny_recipe(folder), **settings)))
    return path


def start(hub: Hub, recipe: Path, folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": ""}
    environment["TINY_AUDIO_CACHE"] = str(folder.parent / "cache")
    command = [sys.executable, "-m", "tiny_audio.cli", "run", str(recipe), "--output-dir", str(folder)]
    with (folder.parent / "output.txt").open("a") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, text=True)


def finish(process: subprocess.Popen[str], folder: Path) -> None:
    assert process.wait(10 * PATIENCE_S) == 0, (folder.parent / "output.txt").read_text()[-2000:]


@pytest.mark.slow
def test_twenty_kills_do_not_change_the_weights(hub: Hub, recipe: Path, tmp_path: Path) -> None:
    whole, folder, rng = tmp_path / "whole" / "run", tmp_path / "killed" / "run", random.Random(0)
    whole.parent.mkdir()
    folder.parent.mkdir()
    finish(start(hub, recipe, whole), whole)
    reached = []
    for number in range(KILLS):
        process = start(hub, recipe, folder)
        if number % 4 == 3:  # at any time: importing, indexing or training
            until = time.monotonic() + rng.uniform(1, 15)
            most = last_step(folder) + 7  # so that a fast machine does not finish before the last kill
            assert wait_until(process, lambda: time.monotonic() > until or last_step(folder) >= most)  # noqa: B023
        else:
            aim = min(STEPS - 5, last_step(folder) + rng.randint(1, 7))
            assert wait_until(process, lambda aim=aim: last_step(folder) >= aim)  # type: ignore[misc]
            time.sleep(rng.uniform(0, 0.1))
        kill(process)
        reached.append(last_step(folder))
    assert reached[-1] < STEPS
    assert len(set(reached)) > KILLS // 2
    finish(start(hub, recipe, folder), folder)

    ours, theirs = latest(folder / "checkpoints"), latest(whole / "checkpoints")
    assert ours is not None
    assert theirs is not None
    assert ours.name == theirs.name == f"step-{STEPS:09d}"
    for name in ("model/model.safetensors", f"checkpoints/{ours.name}/model.safetensors", "clips.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    for name in ("optimizer.pt", "rng.pt"):
        assert_equal(*(torch.load(where / name, weights_only=True) for where in (ours, theirs)), name)
    losses = [[row["loss"] for row in read_metrics(run / "metrics.jsonl")] for run in (folder, whole)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS

    rows = read_metrics(folder / "clips.jsonl")
    assert [row["step"] for row in rows] == [step for step in range(1, STEPS + 1) for _ in range(2)]
    for epoch in range(rows[-1]["epoch"]):
        seen = Counter(clip for row in rows if row["epoch"] == epoch for clip in row["clips"])
        assert len(seen) == SHARDS * CLIPS
        assert set(seen.values()) == {1}
    assert not (folder / "dropped.jsonl").exists()
