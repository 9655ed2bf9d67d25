"""The ledger of a run's resource usage: sums over all steps, FLOPs, and the report."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Document, changed, tiny_recipe, write_clips
from tests.support.training import (
    RecordingCallback,
    make_trainer,
    parse,
    train,
)
from tests.support.worlds import in_world
from tiny_audio.analysis.ledger import account
from tiny_audio.commands.run import Run
from tiny_audio.data.batches import Batch
from tiny_audio.export.card import model_card
from tiny_audio.plan import plan_recipe
from tiny_audio.plan._step import Shape, dry_run
from tiny_audio.plan.work import Work, work_of
from tiny_audio.recipe import Recipe, TrainingConfig
from tiny_audio.runtime.memory import peak_resident_bytes
from tiny_audio.runtime.world import World
from tiny_audio.training import checkpoint
from tiny_audio.training.host import Host
from tiny_audio.training.ledger import Amounts, Ledger, Overhead, with_overhead
from tiny_audio.training.metrics import read_metrics
from tiny_audio.training.progress import Progress
from tiny_audio.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TRAINING = TrainingConfig(steps=1, learning_rate=1.0)
WORK = Work((1e6, 2e6, 0.0), (10.0, 0.0, 100.0), 3, 12.5)


@pytest.fixture(scope="module", autouse=True)
def counted_flops() -> Iterator[None]:
    """Count FLOPs with dry runs, as for users. Other test modules use fixed FLOPs to save time (tests/conftest.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiny_audio.commands.run.train.work_of", work_of)
        yield


def host(**changes: Any) -> Host:
    """Return a machine with a peak of 1 GFLOPS and a rated power of 50 W."""
    known = Host(CPU, 1, 1e9, "given", 50.0, "given", None, None)
    return dataclasses.replace(known, **changes)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def batch(*seconds: float) -> Batch:
    lengths = torch.tensor([round(16_000 * length) for length in seconds])
    targets = [torch.zeros(5, dtype=torch.long)] * len(seconds)
    return Batch(torch.zeros(len(seconds), int(lengths.max())), lengths, targets, None, [0] * len(seconds))


# --- sums


@pytest.fixture
def one_step() -> Callable[..., None]:
    def take(ledger: Ledger, clock: Clock, *, waits: float = 1.0, works: float = 3.0, rests: float = 0.5) -> None:
        clock.now += rests
        clock.now += waits + works
        ledger.progress.waited_s += waits
        ledger.progress.wall_s += waits + works
        ledger.add_step(ledger.amounts([batch(1.0, 3.0)]), waits + works)

    return take


def test_one_step_updates_all_sums(one_step: Callable[..., None]) -> None:
    clock, progress = Clock(), Progress()
    ledger = Ledger(progress, host(), WORK, clock)
    one_step(ledger, clock)
    assert (progress.wall_s, progress.waited_s, progress.beside_s) == (4.0, 1.0, 0.5)
    assert (progress.audio_s, progress.padded_s, progress.tokens) == (4.0, 6.0, 10)
    positions = 2 * (3 + 5 - 1) + 12.5 * 4
    assert progress.flops == 2e6 + 4 * 2e6 + 10 * positions + 100 * 10
    assert progress.possible_flops == 4e9
    assert progress.rated_j == 50 * 4.5
    peak = peak_resident_bytes()
    row = ledger.row()
    assert row["audio_hours_per_hour"] == 1.0
    assert row["tokens_per_s"] == 2.5
    assert row["padding_share"] == pytest.approx(1 / 3)
    assert row["data_wait_share"] == 0.25
    assert row["utilization"] == progress.flops / 4e9
    assert row["energy_kwh"] == 225 / 3.6e6
    assert peak <= row["peak_memory_bytes"] <= peak_resident_bytes()


def test_a_row_covers_the_steps_since_the_last_row(one_step: Callable[..., None]) -> None:
    clock = Clock()
    ledger = Ledger(Progress(), host(rated_watts=0.0), None, clock)
    one_step(ledger, clock)
    ledger.row()
    one_step(ledger, clock, waits=0.0, works=1.0)
    row = ledger.row()
    assert (row["data_wait_share"], row["tokens_per_s"], row["wall_s"]) == (0.0, 10.0, 5.0)
    assert (row["utilization"], row["energy_kwh"]) == (None, None), "not known"


def test_sums_continue_after_a_restart_without_the_time_in_between(one_step: Callable[..., None]) -> None:
    clock, progress = Clock(), Progress()
    one_step(Ledger(progress, host(), WORK, clock), clock)
    saved = Progress(**json.loads(json.dumps(dataclasses.asdict(progress))))
    one_step(Ledger(progress, host(), WORK, clock), clock)  # a kill undoes this step
    clock.now += 3600
    ledger = Ledger(saved, host(rated_watts=100.0), WORK, clock)
    one_step(ledger, clock)
    assert dataclasses.replace(saved, rated_j=0) == dataclasses.replace(progress, rated_j=0)
    assert saved.rated_j == (50 + 100) * 4.5
    assert ledger.row()["wall_s"] == 8.0


def test_a_meter_has_priority_over_the_rated_power(one_step: Callable[..., None]) -> None:
    clock, progress = Clock(), Progress(rated_j=100.0)
    readings = iter([1000.0, 1300.0])
    ledger = Ledger(progress, host(joules=lambda: next(readings)), None, clock)
    one_step(ledger, clock)
    assert (progress.measured_j, progress.rated_j) == (300.0, 100.0)
    assert account(ledger.totals(), None, 445.0)["energy_measured_share"] == 0.75


def test_amounts_of_several_processes_add_up() -> None:
    assert Amounts(1.0, 2.0, 3, 4.0, 5.0) + Amounts(10.0, 20.0, 30, 40.0, 50.0) == Amounts(11.0, 22.0, 33, 44.0, 55.0)


def test_overhead_after_the_last_step_is_counted(one_step: Callable[..., None]) -> None:
    clock, progress = Clock(), Progress()
    ledger = Ledger(progress, host(), WORK, clock)
    one_step(ledger, clock)
    clock.now += 7.0
    ledger.add_overhead(ledger.joules())
    assert (progress.wall_s, progress.beside_s) == (4.0, 7.5)
    assert (progress.rated_j, progress.measured_j) == (50 * 11.5, 0.0)
    one_step(ledger, clock)
    assert progress.beside_s == 8.0, "the overhead is counted only once"


def test_joules_of_all_processes_add_up(one_step: Callable[..., None]) -> None:
    first, second = (iter(range(0, 10_000, drawn)) for drawn in (10, 700))
    ledger = Ledger(Progress(), host(joules=lambda: next(first)), None)
    other = Ledger(Progress(), host(joules=lambda: next(second)), None)
    ledger.add_step(ledger.amounts([batch(1.0)]) + other.amounts([batch(1.0)]), 0.0)
    assert ledger.progress.measured_j == 710
    ledger.add_overhead(ledger.joules() + other.joules())
    assert (ledger.progress.measured_j, ledger.progress.rated_j) == (1420, 0)


def test_meters_of_two_real_processes(document: Document, tmp_path: Path) -> None:
    def work(world: World) -> float:
        trainers: list[Trainer] = []

        def meter(trainer: Trainer) -> None:
            readings = itertools.count(0, 1000**world.rank)
            trainer._host = dataclasses.replace(trainer._host, joules=lambda: float(next(readings)))
            trainers.append(trainer)

        train(document, tmp_path / "run", world, prepare=meter)
        return trainers[0].progress.measured_j

    assert in_world(2, work) == [5005.0, 5005.0], "four steps, and the overhead after them, in both processes"


def test_overhead_after_training_is_added_to_the_totals() -> None:
    clock, readings = Clock(), iter([1000.0, 1300.0, 1350.0])
    overhead = Overhead(host(joules=lambda: next(readings)), clock)
    clock.now += 6.0
    export = overhead.usage()
    assert export == {"beside_s": 6.0, "measured_j": 300.0, "rated_j": 0.0}
    clock.now += 1.0
    scoring = overhead.usage()
    assert scoring == {"beside_s": 1.0, "measured_j": 50.0, "rated_j": 0.0}
    totals = Ledger(Progress(wall_s=3000, beside_s=593, measured_j=50.0, rated_j=7.0), host(), None).totals()
    whole = with_overhead(totals, [export, scoring])
    assert whole == totals | {"beside_s": 600.0, "measured_j": 400.0}
    assert account(whole, 3.0, 0.0)["cost_usd"] == 3.0
    assert with_overhead(totals, []) == totals


# --- work


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return parse(changed(tiny_recipe(tmp_path), ctc={"weight": 0.5}))


@pytest.mark.parametrize(
    ("seconds", "text_share"),
    [
        (0.9, 1.0),
        (7.7, 2.0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2.3, 1.0), (6.0, 0.5), (10.0, 1.0))),
    ],
)
def test_flops_equal_those_of_a_dry_run(recipe: Recipe, seconds: float, text_share: float) -> None:
    exact = dry_run(recipe, Shape(1, seconds), "cpu", text_share)
    flops = sum(sum(counts.values()) for counts in exact.flops.values())
    assert work_of(recipe, "cpu").flops([seconds], [exact.num_tokens]) == pytest.approx(flops, rel=0.03)


def test_flops_equal_those_of_the_plan(recipe: Recipe) -> None:
    plan = plan_recipe(recipe, gpu="cpu", mean_clip_s=4.0)
    counted = work_of(recipe, "cpu").flops([4.0] * 10, [plan.mean.num_tokens] * 10)
    assert counted == pytest.approx(40 * plan.as_json()["flops_per_audio_s"]["total"], rel=0.03)


def test_recipes_with_the_same_model_share_a_dry_run(recipe: Recipe) -> None:
    longer = recipe.model_copy(update={"training": TrainingConfig(steps=9, learning_rate=0.5, seed=3)})
    assert work_of(longer, "cpu") is work_of(recipe, "cpu")
    assert work_of(recipe.model_copy(update={"ctc": None}), "cpu") != work_of(recipe, "cpu")


def test_a_fused_loss_on_a_gpu_has_its_own_dry_run(recipe: Recipe) -> None:
    fused = recipe.with_({"execution.device": "cuda", "execution.fused_cross_entropy": True})
    separate = recipe.with_({"execution.device": "cuda"})
    (seconds, tokens) = [4.0], [20]
    before = work_of(separate, "cuda").flops(seconds, tokens)
    # The fused loss computes logits again in the backward pass.
    assert work_of(fused, "cuda").flops(seconds, tokens) > before


# --- a run


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    folder = tmp_path_factory.mktemp("data")
    write_clips(folder, 8)
    settings = {"training__steps": 4, "training__warmup_steps": 0, "execution__log_every": 2}
    return changed(tiny_recipe(folder), **settings, execution__price_per_hour=36.0)


@pytest.fixture(scope="module")
def finished(document: Document, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    Run(parse(document), "a *bold* name", folder, RecordingCallback()).complete()
    return folder


def test_report_and_metrics_contain_the_resource_usage(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    ledger, rows = report["ledger"], read_metrics(finished / "metrics.jsonl")
    assert ledger["audio_hours_per_hour"] == report["training"]["audio_hours_per_hour"]
    assert ledger["padding_share"] == report["training"]["padding_share"]
    assert ledger["flops"] > 0
    assert 0 < ledger["utilization"] < 1
    assert 0 < ledger["data_wait_share"] < 1
    assert ledger["peak_memory_bytes"] > 50e6
    assert ledger["cost_usd"] == pytest.approx(36 * ledger["occupied_hours"])
    assert ledger["energy_measured_share"] == 0
    assert len(rows) == 2
    for row in rows:
        assert {"tokens_per_s", "utilization", "data_wait_share", "peak_memory_bytes", "energy_kwh"} <= row.keys()
        assert 0 < row["utilization"] < 1
    assert rows[-1]["energy_kwh"] < ledger["energy_kwh"]


def test_the_cost_includes_all_overhead(finished: Path) -> None:
    report, state = (json.loads((finished / name).read_text()) for name in ("report.json", "state.json"))
    last = checkpoint.latest(finished / "checkpoints")
    assert last is not None
    steps = json.loads((last / "progress.json").read_text())
    totals = state["training"]["totals"]
    assert totals["wall_s"] == steps["wall_s"]
    assert totals["beside_s"] > steps["beside_s"], "saving the last checkpoint"
    overheads = [state["export"]["took"], state["evaluation"]["held_out"]["took"]]
    assert all(each["beside_s"] > 0 for each in overheads)
    occupied_s = totals["wall_s"] + totals["beside_s"] + sum(each["beside_s"] for each in overheads)
    assert 3600 * report["ledger"]["occupied_hours"] == pytest.approx(occupied_s)
    joules = totals["rated_j"] + sum(each["rated_j"] for each in overheads)
    assert 3.6e6 * report["ledger"]["energy_kwh"] == pytest.approx(joules)
    assert joules == pytest.approx(8.0 * occupied_s), "one CPU thread"


def test_another_price_changes_only_the_report(document: Document, finished: Path) -> None:
    before = (finished / "model" / "model.safetensors").stat().st_mtime_ns
    recipe = parse(changed(document, execution__price_per_hour=0.0, execution__grid_gco2_per_kwh=50.0))
    report = Run(recipe, "a *bold* name", finished, RecordingCallback()).complete()
    assert report["ledger"]["cost_usd"] == 0
    assert report["ledger"]["co2_kg"] == pytest.approx(report["ledger"]["energy_kwh"] * 0.05)
    assert (finished / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert recipe.run_id() == parse(document).run_id()


def test_the_model_card_contains_scores_and_costs(document: Document, finished: Path) -> None:
    report = Run(parse(document), "a *bold* name", finished, RecordingCallback()).complete()
    card = (finished / "model" / "README.md").read_text()
    assert card == model_card(report)
    assert "\n# a \\*bold\\* name\n" in card
    scores = report["evaluation"]["held_out"]
    low, high = scores["wer_interval"]
    assert f"| held\\_out | {scores['wer']:.2%} | \\[{100 * low:.2f}, {100 * high:.2f}\\] |" in card
    assert f"| encoder | whisper | random weights | {report['parts'][0]['total']:,} |" in card
    assert "| clips | manifest | manifest.jsonl | training |" in card
    assert "| cost | $" in card
    assert "base_model" not in card
    assert str(finished) not in card


def test_a_missing_model_card_is_written_again(document: Document, finished: Path) -> None:
    (finished / "model" / "README.md").unlink()
    Run(parse(document), "a *bold* name", finished, RecordingCallback()).complete()
    assert (finished / "model" / "README.md").exists()


def test_the_model_card_lists_pretrained_models(document: Document, finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    report["recipe"]["encoder"] |= {"init": "pretrained", "pretrained": "facebook/hubert-xlarge-ls960-ft"}
    report["recipe"]["data"]["train"]["clips"] = {"name": "loquacious", "repo": "speechbrain/LoquaciousSet"}
    report |= {"evaluation": {}}
    card = model_card(report)
    assert "\nbase_model:\n- facebook/hubert-xlarge-ls960-ft\nlibrary_name: transformers\n" in card
    assert "| clips | loquacious | speechbrain/LoquaciousSet | training |" in card
    assert "Not measured: the run evaluated no set." in card


def test_a_run_continues_if_the_dry_run_fails(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Work:
        raise NotImplementedError("aten::nonzero has no shapes\nand more")

    monkeypatch.setattr("tiny_audio.commands.run.train.work_of", refuse)
    callback = RecordingCallback()
    report = Run(parse(document), "run", tmp_path / "run", callback).complete()
    assert any(note.endswith(": aten::nonzero has no shapes") for note in callback.notes)
    assert (report["ledger"]["flops"], report["ledger"]["utilization"]) == (None, None)


def test_sums_are_saved_in_checkpoints(document: Document, tmp_path: Path) -> None:
    make_trainer(changed(document, training__steps=2), tmp_path / "run").run()
    saved = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert saved is not None
    before = json.loads((saved / "progress.json").read_text())
    progress = make_trainer(changed(document, training__steps=4), tmp_path / "run").run()
    assert progress.wall_s > before["wall_s"] > before["waited_s"] > 0
    assert progress.tokens == 2 * before["tokens"]  # both epochs have the same clips
    assert progress.rated_j > before["rated_j"] > 0
