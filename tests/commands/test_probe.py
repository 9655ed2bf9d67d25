"""``probe`` finds the largest batches that fit into memory. A slow test checks the result by training again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import Document, tiny_recipe
from tests.plan.recipes import parse
from tests.support.processes import fork
from tiny_audio.cli import main
from tiny_audio.commands.probe import GIB, MOST_CLIPS, Bucket, Probe, most_that_fit, probe_recipe, probe_table
from tiny_audio.commands.probe._process import Measured, Process, serve
from tiny_audio.config import RunFailed, UserError
from tiny_audio.data.order import BatchingConfig, EpochPlan, plan_epoch
from tiny_audio.recipe import Recipe

MEMORY_GB = 1.25
"""Memory limit of the training process, in GiB. With 0.875, some builds of torch leave no room for a clip."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Return a recipe with a CTC head, SpecAugment and more than one batch per step."""
    document = tiny_recipe(tmp_path_factory.mktemp("probe"))
    extras = {"ctc": {"weight": 0.5}, "augmentation__spec_augment": {}, "training__accumulation": 3}
    return parse(document, data__max_duration_s=4.0, **extras)


# --- the search


@pytest.mark.parametrize("guess", [-3, 1, 20, 37, 38, 60, 5000])
@pytest.mark.parametrize("limit", [0, 1, 2, 37, 511, 512, 9999])
def test_the_search_finds_the_largest_number_of_clips(guess: int, limit: int) -> None:
    tried: list[int] = []

    def train(clips: int) -> Measured | None:
        tried.append(clips)
        return Measured(clips, 1.0, 1) if clips <= limit else None

    found, measured = most_that_fit(train, guess, MOST_CLIPS)
    edge = min(limit, MOST_CLIPS)
    assert edge - max(0, edge // 20) <= found <= edge
    assert measured == (Measured(found, 1.0, 1) if found else None)
    assert len(tried) == len(set(tried)) < 40
    assert 1 <= min(tried) <= max(tried) <= MOST_CLIPS


def test_clips_of_a_bucket_have_the_longest_duration_after_augmentation(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stub replaces the training process and records the durations. Other tests measure real memory."""
    trained: set[float] = set()

    class Durations(SimpleNamespace):
        def __enter__(self) -> Durations:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def train(self, clips: int, duration_s: float) -> Measured | None:
            trained.add(duration_s)
            return Measured(GIB, 1.0, 1) if clips <= 3 else None

    process = Durations(allowed_bytes=GIB, memory_bytes=GIB, device_name="CPU")
    monkeypatch.setattr("tiny_audio.commands.probe.Process", lambda *_: process)
    slower = recipe.with_({"augmentation": {"speed": [0.8, 1.0]}})
    found = probe_recipe(slower, memory_gb=1.0, durations_s=[4.0, 2.0])
    assert trained == {5.0, 2.5}
    assert [one.duration_s for one in found.buckets] == [5.0, 2.5]
    assert found.max_padded_s == 7.5


def bucket(duration_s: float, clips: int) -> Bucket:
    return Bucket(duration_s, clips, Measured(GIB, 0.5, 2), 2 * GIB)


def test_the_budget_fits_every_bucket() -> None:
    probe = Probe("a GPU", 8 * GIB, 0.1, (bucket(20, 5), bucket(10, 9), bucket(5, 30)))
    assert (probe.max_padded_s, probe.max_clips) == (90, 30)
    assert "batching: {max_padded_s: 90, max_clips: 30}" in probe_table(probe)
    assert [row.split() for row in probe_table(probe).splitlines()[1:4]] == [
        ["20", "s", "5", "100", "1.00", "2.00", "0.50", "400"],
        ["10", "s", "9", "90", "1.00", "2.00", "0.50", "360"],
        ["5", "s", "30", "150", "1.00", "2.00", "0.50", "600"],
    ]
    assert "8.00 GiB of a GPU, 10% of it left free" in probe_table(probe)


def test_a_bucket_that_did_not_fill_memory_does_not_limit_the_budget() -> None:
    probe = Probe("a GPU", 8 * GIB, 0.1, (bucket(2, 400), bucket(1, MOST_CLIPS)))
    assert (probe.max_padded_s, probe.max_clips) == (800, MOST_CLIPS)
    assert f"{MOST_CLIPS}+" in probe_table(probe)
    assert Probe("a GPU", 8 * GIB, 0.1, (bucket(2, MOST_CLIPS), bucket(1, MOST_CLIPS))).max_padded_s == 2 * MOST_CLIPS


def parts_of(plan: EpochPlan, durations_s: np.ndarray, size: int) -> list[tuple[int, float]]:
    """Return the number of clips and the padded seconds that each of ``size`` processes has in each batch."""
    parts = [batch[rank::size] for batch in plan for rank in range(size)]
    return [(len(part), len(part) * durations_s[part].max(initial=0.0)) for part in parts]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("pool_batches", [1, 50])
def test_the_budget_of_several_processes_fits_each_process(processes: int, pool_batches: int) -> None:
    probe = Probe("a GPU", 8 * GIB, 0.1, (bucket(20, 3), bucket(5, 13)), processes)
    assert (probe.budget_s, probe.max_clips) == (60, 13 * processes)
    durations_s = np.random.default_rng(0).lognormal(1.5, 0.6, 20_000).clip(0.5, 20.0)

    def parts(max_padded_s: float) -> list[tuple[int, float]]:
        config = BatchingConfig(max_clips=probe.max_clips, max_padded_s=max_padded_s, pool_batches=pool_batches)
        return parts_of(plan_epoch(durations_s, config, 0, 0), durations_s, processes)

    found = parts(probe.max_padded_s)
    assert max(clips for clips, _ in found) <= 13
    assert 57 < max(padded_s for _, padded_s in found) <= 60
    if processes > 1:
        assert max(padded_s for _, padded_s in parts(60 * processes)) > 63, "a multiple of one budget is too much"


def test_the_table_names_the_number_of_processes() -> None:
    buckets = (bucket(20, 5), bucket(10, 9), bucket(5, 30))
    probe = Probe("a GPU", 8 * GIB, 0.1, buckets, num_processes=8)
    assert "the recipe, for 8 processes together:\n  batching: {max_padded_s: 580, max_clips: 240}" in probe_table(
        probe
    )
    assert probe.as_json()["num_processes"] == 8
    assert "recipe:\n" in probe_table(Probe("a GPU", 8 * GIB, 0.1, buckets))
    # A clip of 20 s exceeds the budget of 10 s, but such a clip is always in a batch of its own.
    assert Probe("a GPU", 8 * GIB, 0.1, (bucket(20, 1), bucket(10, 1)), num_processes=8).max_padded_s == 10


# --- real training


@pytest.fixture(scope="module")
def probed(recipe: Recipe) -> Probe:
    return probe_recipe(recipe, memory_gb=MEMORY_GB, durations_s=[4.0, 2.0], random_weights=True)


@pytest.mark.slow  # trains for half a minute to find the limits
def test_the_result_fits_and_25_percent_more_does_not(recipe: Recipe, probed: Probe) -> None:
    allowed = 0.9 * MEMORY_GB * GIB
    assert [found.duration_s for found in probed.buckets] == [4.0, 2.0]
    with Process(recipe, MEMORY_GB, 0.1, True) as process:
        assert process.allowed_bytes == int(allowed)
        for found in probed.buckets:
            assert 1 < found.clips < MOST_CLIPS
            assert 0.8 * allowed < found.measured.peak_bytes <= allowed
            assert found.measured.step_s > 0
            assert found.measured.batches == 2
            assert process.train(int(found.clips * 0.8), found.duration_s) is not None
            assert process.train(int(found.clips * 1.25) + 1, found.duration_s) is None
    assert 0.8 < probed.buckets[0].padded_s / probed.buckets[1].padded_s < 1.25


@pytest.mark.slow
def test_predictions_are_close_to_measurements(probed: Probe) -> None:
    for found in probed.buckets:
        assert found.predicted_bytes == pytest.approx(found.measured.peak_bytes, rel=0.2)
    shown = probed.as_json()
    assert shown["buckets"][0]["peak_bytes"] == probed.buckets[0].measured.peak_bytes
    assert shown["buckets"][0]["predicted_bytes"] == probed.buckets[0].predicted_bytes
    assert shown["batching"] == {"max_padded_s": probed.max_padded_s, "max_clips": probed.max_clips}
    assert json.loads(json.dumps(shown)) == shown


# --- errors


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ({}, ["--memory-gb"]),
        ({"memory_gb": 0}, ["--memory-gb 0"]),
        ({"memory_gb": 1, "num_processes": 0}, ["--num-processes 0"]),
        ({"memory_gb": 1, "margin": 1.0}, ["--margin 1"]),
        (
            {"memory_gb": 1, "durations_s": [5.0]},
            ["--durations: 5 s", "data.min_duration_s 0.3", "data.max_duration_s 4"],
        ),
        ({"memory_gb": 1, "durations_s": [2.0]}, ["--durations", "data.max_duration_s, 4,"]),
    ],
)
def test_arguments_out_of_range_are_rejected(recipe: Recipe, arguments: dict[str, Any], values: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        probe_recipe(recipe, **arguments)
    assert [value for value in values if value not in str(refusal.value)] == []


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the measured process as a fork of this process, because a new process would have to import torch."""
    start = SimpleNamespace(PIPE=subprocess.PIPE, Popen=lambda command, **options: fork(serve, stderr=None, **options))
    monkeypatch.setattr("tiny_audio.commands.probe._process.subprocess", start)


@pytest.mark.usefixtures("forks")
def test_a_trial_killed_by_the_kernel_does_not_fit(recipe: Recipe) -> None:
    # The limit is large, because a fork includes the memory of the tests.
    with Process(recipe, 1000.0, 0.1, True) as process:
        assert process._child is not None
        os.kill(process._child.pid, signal.SIGKILL)
        assert process.train(1, 2.0) is None
        assert process.train(1, 2.0) is not None, "the next trial starts a new process"
        os.kill(process._child.pid, signal.SIGTERM)
        with pytest.raises(RunFailed, match=r"^probe: the training process ended with exit code -15"):
            process.train(1, 2.0)


@pytest.mark.usefixtures("forks")
def test_it_is_an_error_if_the_model_does_not_fit_on_a_gpu(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("tiny_audio.plan.meta.build_stand_in", run_out_of_memory)
    with pytest.raises(UserError, match=r"^probe: the model alone needs more memory than the GPU has"):
        probe_recipe(recipe, memory_gb=10.0, random_weights=True)


@pytest.mark.usefixtures("forks")
def test_it_is_an_error_if_nothing_fits(recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"^probe: not even one clip of 4 s fits into 0\.09 GiB; .*`tiny-audio plan`"):
        probe_recipe(recipe, memory_gb=0.1, random_weights=True)


@pytest.mark.usefixtures("forks")
def test_the_command_prints_the_result(
    document: Document, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_recipe(document))
    assert main(["probe", path, "--durations", "a,b", "--memory-gb", "1"]) == 2
    assert "error: --durations 'a,b' " in capsys.readouterr().err
    assert main(["probe", path, "--num-processes", "-2", "--memory-gb", "1"]) == 2
    assert "error: --num-processes -2 is not a number of processes" in capsys.readouterr().err
    lost = ["encoder=whisper", "encoder.pretrained=/no/such/folder", "--memory-gb", "1"]
    assert main(["probe", path, *lost]) == 2
    assert "error: whisper: there is no folder '/no/such/folder'; give the folder" in capsys.readouterr().err
