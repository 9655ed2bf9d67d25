"""``bench projectors`` without training: its measurements, and options that it rejects."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import Document
from tests.support.processes import finish, fork
from tiny_audio.commands.bench._measure import peak_bytes, random_frames
from tiny_audio.commands.bench.command import Options, benchmark_projectors
from tiny_audio.commands.bench.tables import timings_table
from tiny_audio.commands.bench.timing import Effort, ProjectorShape, time_projectors
from tiny_audio.commands.bench.variants import read_variants
from tiny_audio.config import UserError
from tiny_audio.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_peak_memory_is_the_maximum_allocated_at_once() -> None:
    def step() -> None:
        first = torch.empty(1 << 20)  # 4 MiB
        second = torch.empty(1 << 18)
        del first
        torch.empty(1 << 19)
        del second

    assert peak_bytes(step, torch.device("cpu")) == pytest.approx(5 * 2**20, rel=0.01)


def test_random_frames_have_runs_of_labels() -> None:
    torch.manual_seed(0)
    frames = random_frames(4, 1000, 8, 50.0, torch.device("cpu"))
    assert frames.ctc_logits is not None
    labels = frames.ctc_logits.argmax(-1)
    changes = (labels[:, 1:] != labels[:, :-1]).float().mean()
    assert 0.45 < float(changes) < 0.55


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run pytest, which measures the times, in a fork of this process.

    A new process would need seconds to import torch.
    """

    def run(command: list[str], env: dict[str, str], stdout: int, check: bool) -> SimpleNamespace:
        assert (command[:3], check) == ([sys.executable, "-m", "pytest"], False)

        def work() -> int:
            os.environ.clear()
            os.environ.update(env)
            return pytest.main(command[3:])

        return SimpleNamespace(returncode=finish(fork(work, stdout=stdout, stderr=None))[0])

    monkeypatch.setattr("tiny_audio.commands.bench.timing.subprocess", SimpleNamespace(run=run))


@pytest.mark.usefixtures("forked")
def test_timings_are_measured_by_pytest_benchmark(capfd: pytest.CaptureFixture[str]) -> None:
    variants = read_variants(
        "swiglu:hidden_dim=64+stack=4,transformer:dim=32+num_heads=4+num_layers=1+feedforward_dim=64"
    ).compared
    effort = Effort(durations_s=(1.0,), batch_sizes=(2,), max_time_s=0.01)
    measured = time_projectors(variants, ProjectorShape(in_dim=32, out_dim=48), effort, "cpu")
    assert "4 passed" in capfd.readouterr().err
    assert measured["versions"]["pytest-benchmark"]
    forward, both, attention, _ = measured["cases"]
    assert (forward["which"], both["which"]) == ("forward", "forward_backward")
    assert forward["rounds"] >= 3
    assert 0 < forward["min_s"] <= forward["median_s"]
    assert both["median_s"] > 0
    # Each of the two clips has 13 stacks of 4 frames. The gate and up layers map 4 · 32 to 64 channels, and the down
    # layer maps 64 to 48.
    products = 2 * 13 * (2 * 4 * 32 * 64 + 64 * 48)
    assert forward["flops"] == 2 * products
    # The backward pass computes two gradients for each layer: those of its weights and of its inputs. The first layers
    # need the gradients of their inputs, too, because a norm with trained weights precedes them.
    assert both["flops"] == 3 * forward["flops"]
    assert forward["parameters"] == 2 * 4 * 32 * 64 + 64 * 48 + 4 * 32 + 48
    assert forward["embeddings_per_s"] == 13
    assert both["peak_bytes"] > 4 * forward["parameters"] > 0
    # The FLOPs of the transformer include attention, which multiplies queries by keys, and weights by values. Each of
    # the two clips has 10 positions, because the transformer stacks 5 frames by default.
    linear = 2 * 10 * (5 * 32 * 32 + 4 * 32 * 32 + 2 * 32 * 64 + 32 * 48)
    assert attention["flops"] == 2 * (linear + 2 * 2 * 10 * 10 * 32)
    assert measured["shape"]["in_dim"] == 32
    table = timings_table(measured).splitlines()
    assert table[1].split()[:3] == ["swiglu", "hidden_dim=64", "stack=4"]
    assert "32 → 48 channels at 50 frames/s, fp32, cpu" in table[-1]


def test_the_shape_comes_from_the_recipe(document: Document, write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe(document))
    found = ProjectorShape.of(recipe)
    assert (found.frame_rate, found.precision) == (50.0, "fp32")
    assert found.in_dim == recipe.encoder.overrides["d_model"]
    assert found.out_dim == recipe.decoder.overrides["hidden_size"]


@pytest.mark.parametrize("field", ["hidden_dim=99999999999", "hidden_dim=9999999999999999"])
def test_a_projector_that_does_not_fit_memory_is_rejected(field: str) -> None:
    with pytest.raises(UserError, match=r"^--variants: swiglu hidden_dim=9+ .*; use smaller values$"):
        time_projectors(read_variants(f"swiglu:{field}").compared, ProjectorShape(), Effort(max_time_s=0.0))


def test_a_too_short_length_is_rejected() -> None:
    with pytest.raises(UserError, match=re.escape("--durations: 0.1 s are 5 frames, but swiglu stack=9 needs 9")):
        time_projectors(read_variants("swiglu:stack=9").compared, ProjectorShape(), Effort(durations_s=(0.1,)), "cpu")


def test_a_missing_pytest_benchmark_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pytest_benchmark" else find(name))
    with pytest.raises(
        UserError, match=re.escape("bench needs pytest_benchmark; install with: pip install 'tiny-audio[bench]'")
    ):
        time_projectors(read_variants("swiglu").compared, ProjectorShape(), Effort(), "cpu")


@pytest.mark.parametrize(
    ("options", "train", "message"),
    [
        (Options(steps=3), False, "--steps needs --train"),
        (Options(controls=True), False, "--controls needs --train"),
        (Options(max_time=1.0), True, "--max-time has no effect with --train; remove one of the two"),
        (Options(max_time=0.0), True, "--max-time has no effect with --train; remove one of the two"),
        (Options(durations=""), True, "--durations has no effect with --train; remove one of the two"),
        (
            Options(device="cpu"),
            True,
            "--device has no effect with --train; remove one of the two; with --train, set execution.device",
        ),
        (Options(device="tpu"), False, "--device 'tpu'"),
        (Options(device=""), False, "--device ''"),
        (Options(durations=""), False, "--durations: '' must be a comma-separated list of numbers above 0"),
        (Options(batch_sizes=""), False, "--batch-sizes: '' must be a comma-separated list of whole numbers above 0"),
        (Options(durations="5,x"), False, "--durations: '5,x' must be a comma-separated list of numbers above 0"),
        (
            Options(batch_sizes="1.5"),
            False,
            "--batch-sizes: '1.5' must be a comma-separated list of whole numbers above 0",
        ),
        (Options(), True, "--train needs a recipe, such as bench_projectors"),
    ],
)
def test_invalid_options_are_rejected(options: Options, train: bool, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        benchmark_projectors(None, [], options, train, None)


def test_an_empty_list_of_seeds_is_rejected() -> None:
    with pytest.raises(UserError, match=re.escape("--seeds: '' must be a comma-separated list of whole numbers")):
        benchmark_projectors(Path("recipe.yaml"), [], Options(seeds=""), True, None)
