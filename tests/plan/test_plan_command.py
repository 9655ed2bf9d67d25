"""``tiny-audio plan``: its table, JSON and arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Document, changed
from tests.plan.recipes import parse
from tests.support.paths import ROOT
from tiny_audio.cli import main
from tiny_audio.config import UserError
from tiny_audio.plan import Plan, plan_recipe
from tiny_audio.plan._hardware import GPUS
from tiny_audio.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_table_shows_costs_of_each_gpu(shallow_card: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    from tiny_audio.plan.table import print_plan

    print_plan(shallow_card)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    for words in (
        "163,840",
        "123,511,040",
        "largest batch: 5 clips of 20 s",
        "activations of the encoder",
        "CUDA context and libraries (allowance)",
        "in clips of 10 s on average (--mean-clip-s), at 40% of the peak speed (--utilization).\nPadding is ",
        "% of the processed audio, if durations are log-normal with sigma 0.6.",
        "Prices are approximate; set yours with --price-per-hour",
        "a40: fits; ",
    ):
        assert words in out


def test_the_table_shows_suggested_changes(
    document: Document,
    gpu: Callable[[float], str],
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_recipe(changed(document, data__max_duration_s=9.0))
    needed = plan_recipe(load_recipe(path), gpu=gpu(1e9)).rows[0].needed_bytes
    assert main(["plan", str(path), "--gpu", gpu(0.75 * needed)]) == 0
    out = capsys.readouterr().out
    assert "thimble: does not fit; it needs " in out
    assert "To make it fit, append one of these lines:\n  training.precision=bf16    (" in out
    assert "\nTo keep the recipe unchanged, choose a larger GPU: --gpu l4, " in out
    monkeypatch.setattr("tiny_audio.plan.table.GPUS", {})
    assert main(["plan", str(path), "--gpu", gpu(1000)]) == 0
    out = capsys.readouterr().out
    assert "No change was found that makes it fit (attention, precision, " in out
    assert out.endswith("\nNo known GPU is large enough for the unchanged recipe.\n")


def test_a_plan_can_be_printed_as_json(
    document: Document, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(document)
    assert main(["plan", str(path), "training.steps=40", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert set(plan) == {
        "run_id",
        "parts",
        "parameters",
        "approximate",
        "batch",
        "memory_bytes",
        "flops_per_audio_s",
        "training_audio_hours",
        "padding_share",
        "assumptions",
        "machines",
    }
    assert set(plan["memory_bytes"]) == {
        "weights",
        "gradients",
        "optimizer",
        "activations_encoder",
        "activations_projector",
        "activations_decoder",
        "activations_ctc_head",
        "logits",
        "backward",
        "workspace",
        "peak",
    }
    assert set(plan["flops_per_audio_s"]) == {"encoder", "projector", "decoder", "total"}
    assert plan["memory_bytes"].pop("peak") == sum(plan["memory_bytes"].values())
    assert [row["name"] for row in plan["machines"]] == list(GPUS)
    assert all(row["fits"] and row["changes"] is None for row in plan["machines"])
    assert plan["training_audio_hours"] == pytest.approx(40 * 4 * 5 / 3600)
    assert plan["run_id"] == load_recipe(path, ["training.steps=40"]).run_id()
    assert plan["approximate"] is True


def test_prices_and_utilization_can_be_given(document: Document) -> None:
    recipe = parse(document)
    base, twice = (plan_recipe(recipe, gpu="l4", price_per_hour=2.0, utilization=share).rows[0] for share in (0.2, 0.4))
    assert base.wall_hours == pytest.approx(2 * twice.wall_hours)
    assert twice.cost == pytest.approx(2.0 * twice.wall_hours)
    tf32 = plan_recipe(parse(document, training__tf32=True, execution__device="auto"), gpu="a100-80g").rows[0]
    assert tf32.audio_hours_per_hour == pytest.approx(
        8 * plan_recipe(recipe, gpu="a100-80g").rows[0].audio_hours_per_hour
    )


def test_a_cpu_has_no_price(document: Document) -> None:
    (row,) = plan_recipe(parse(document), gpu="cpu").rows
    assert row.fits
    assert (row.price_per_hour, row.cost) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["--gpu", "h10"], ["--gpu", "'h10'", "'h100'", "a100-40g, a100-80g, a40, "]),
        (["--gpu", ""], ["--gpu", "''", "a100-40g, "]),
        (["--utilization", "40"], ["--utilization 40", "0", "1"]),
        (["--utilization", "0"], ["--utilization 0", "0", "1"]),
        (["batching.max_clips=20000"], ["20,000", "batching.max_clips", "10,000", "batching.max_padded_s"]),
        (["--price-per-hour", "-1"], ["--price-per-hour -1", "0"]),
        (["--mean-clip-s", "20"], ["--mean-clip-s 20", "data.min_duration_s 0.3", "data.max_duration_s 10"]),
        (
            ["--gpu", "cpu", "training.precision=bf16", "execution.device=auto", "encoder.attention=flash_attention_2"],
            ["--gpu cpu", "flash_attention_2", "encoder.attention=sdpa"],
        ),
    ],
)
def test_arguments_out_of_range_are_rejected(
    document: Document,
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    values: list[str],
) -> None:
    assert main(["plan", str(write_recipe(document)), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert [value for value in values if value not in err] == []


def test_an_unknown_checkpoint_needs_the_network(document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = parse(document, encoder={"name": "hubert", "pretrained": "./nowhere"})
    with pytest.raises(UserError, match=r"hubert: there is no folder './nowhere'"):
        plan_recipe(recipe)


@pytest.mark.slow
def test_the_prediction_is_close_to_the_memory_of_a_real_process(tmp_path: Path) -> None:
    """Run two cases of a benchmark that compares the prediction with the measured memory of a training process."""
    command = [sys.executable, str(ROOT / "benchmarks" / "plan_memory.py"), "full, accumulated", "lora"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "holds" in done.stdout
