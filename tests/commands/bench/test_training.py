"""``bench projectors --train``: results, the HTML page, and repeated commands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.html import EVIL, Page
from tiny_audio.analysis.report import render_benchmark
from tiny_audio.cli import main
from tiny_audio.commands.bench.tables import results_table
from tiny_audio.commands.bench.training import Plan, TrainedBenchmark
from tiny_audio.commands.bench.variants import Variant, Variants
from tiny_audio.config import RunFailed, UserError
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.recipe.limits import ContextLimits
from tiny_audio.training.loop import Budget

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")

SMALL = Variants(
    (
        Variant("swiglu", {"name": "swiglu", "hidden_dim": 64}),
        Variant("conv", {"name": "conv", "hidden_dim": 16}),
        Variant("compressed", {"name": "ctc_compress", "hidden_dim": 16}),
    ),
    (Variant("degraded", {"name": "swiglu", "hidden_dim": 1, "stack": 14}),),
)


def plan(home: Path, **changes: Any) -> Plan:
    given: dict[str, Any] = {"overrides": (), "variants": SMALL, "seeds": (0, 1), "budget": Budget(steps=6)}
    return Plan(home / "recipe.yaml", **(given | changes))


@pytest.fixture(scope="module")
def finished(home: Path, one_thread: None) -> Path:
    """Return the folder of a finished benchmark with controls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_AUDIO_CACHE", str(home / "cache"))
        TrainedBenchmark(plan(home, controls=True), home / "bench", lambda note: None).complete()
    return home / "bench"


def test_results_contain_every_variant_seed_and_comparison(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["baseline"] == "swiglu"  # the recipe's projector
    assert results["budget"] == {"steps": 6, "seconds": None}
    labels = ["swiglu", "conv", "compressed", "swiglu, other seeds", "degraded"]
    assert [variant["label"] for variant in results["variants"]] == labels
    assert [variant["seeds"] for variant in results["variants"]] == [[0, 1]] * 3 + [[2, 3]] + [[0, 1]]
    for variant in results["variants"]:
        assert variant["steps"] == [6, 6]
        found = variant["sets"]["held_out"]
        assert found["num_utterances"] == 24
        assert found["wer"] == pytest.approx(sum(found["by_seed"]) / 2)
        assert found["interval"][0] <= found["wer"] <= found["interval"][1]
    assert [(row["label"], row["set"]) for row in results["comparisons"]] == [
        (label, "held_out") for label in labels[1:]
    ]
    assert {control["label"]: control["expected"] for control in results["controls"]} == {
        "swiglu, other seeds": "no difference shown",
        "degraded": "worse",
    }
    assert len(list((finished / "units").iterdir())) == 10
    table = results_table(results)
    assert "6 steps each, seeds 0, 1" in table
    assert "against swiglu" in table
    (overlap,) = results["sets"]["held_out"]["shared_with_training"]
    assert (overlap["by"], overlap["num_shared"]) == ("clip", 24)
    assert "warning: held_out: 24 of 24 clips are also training clips" in table
    assert "control holds: the verdict on swiglu, other seeds should be 'no difference shown'" in table


def test_finished_units_are_not_trained_again(home: Path, finished: Path, tmp_path: Path) -> None:
    finished = Path(shutil.copytree(finished, tmp_path / "bench"))
    notes: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in (finished / "units").rglob("*")}
    results = json.loads((finished / "results.json").read_text())
    again = TrainedBenchmark(plan(home, controls=True), finished, notes.append).complete()
    assert {path: path.stat().st_mtime_ns for path in (finished / "units").rglob("*")} == before
    assert notes[1:] == ["10 of 10 units are done already"]
    assert "training data" in notes[0]
    assert again["variants"] == results["variants"]
    assert again["comparisons"] == results["comparisons"]
    notes.clear()
    # The control with other seeds has already trained the baseline with seed 2.
    TrainedBenchmark(plan(home, seeds=(0, 2)), finished, notes.append).complete()
    assert notes[1] == "4 of 6 units are done already"
    assert [note.split(":")[0] for note in notes[2:]] == ["[1/2] conv, seed 2", "[2/2] compressed, seed 2"]


def test_the_page_uses_no_other_files(finished: Path) -> None:
    html = (finished / "results.html").read_text()
    page = Page(html)
    for label in (
        "swiglu",
        "conv",
        "compressed",
        "degraded",
        "no difference shown",
        "24 of 24 clips are also training clips",
        "a variant that is degraded on purpose",
    ):
        assert label in page.words
    for title in ("parameters of the projector", "training time", "embeddings per second of audio"):
        assert f"Word error rate and {title}" in page.words
    assert not page.all("script")
    assert "http:" not in html.replace("http-equiv", "")
    assert "https:" not in html


def test_the_page_escapes_names(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    text = json.dumps(results).replace('"conv"', json.dumps(EVIL))
    page = Page(render_benchmark(json.loads(text)))
    assert not page.all("script")
    assert not page.all("img")
    assert EVIL in page.words


@pytest.mark.parametrize("without_decoder", [False, True])
def test_an_alignment_loss_trains_the_projector_first_or_alone(
    home: Path, tmp_path: Path, without_decoder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without_decoder:
        monkeypatch.setattr(TinyAudioModel, "score_embeddings", None)
        monkeypatch.setattr(TinyAudioModel, "transcribe_frames", None)
    overrides = ("execution.log_every=1", *(() if without_decoder else ("alignment={alone_steps: 3}",)))
    variants = Variants(SMALL.compared[:2])
    chosen = plan(home, overrides=overrides, variants=variants, without_decoder=without_decoder)
    results = TrainedBenchmark(chosen, tmp_path / "bench", lambda note: None).complete()
    # With ``alone_steps: 3``, the decoder has no loss in the first three steps.
    steps = [1, 2, 3, 4, 5, 6] if without_decoder else [4, 5, 6]
    for variant in results["variants"]:
        assert [[step for step, _ in curve] for curve in variant["curves"]] == [steps] * 2
        assert all(loss > 0 for curve in variant["curves"] for _, loss in curve)
        assert variant["sets"]["held_out"]["wer"] >= 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seeds": (0,)},
            "--seeds 0: at least 2 seeds, all different, are needed to measure the variation between seeds; give ",
        ),
        (
            {"seeds": (1, 1)},
            "--seeds 1,1: at least 2 seeds, all different, are needed to measure the variation between seeds; give ",
        ),
        ({"baseline": "swigl"}, "--baseline: there is no variant 'swigl'; did you mean 'swiglu'?"),
        ({"variants": Variants(SMALL.compared[:1])}, "--variants: a comparison needs at least two variants"),
        (
            {"variants": Variants(SMALL.compared), "controls": True},
            "--controls: there is no degraded control; give --variants a YAML file",
        ),
        (
            {"variants": Variants((SMALL.compared[0], Variant("far", {"name": "swiglu", "stack": 99})))},
            "variant far: ",
        ),
        ({"overrides": ("encoder.freeze=false",)}, "features cannot be computed once for all variants"),
        (
            {"overrides": ("data.evaluation={}",)},
            "data.evaluation is empty, so the variants cannot be compared; add an evaluation set",
        ),
        ({"without_decoder": True, "cached": False}, "--without-decoder and --no-feature-cache exclude each other"),
        ({"overrides": ("execution.compile=true",)}, "execution.compile: a benchmark trains without it; set it to f"),
    ],
)
def test_invalid_plans_are_rejected(home: Path, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        TrainedBenchmark(plan(home, **changes), tmp_path, lambda note: None)


def test_units_depend_on_the_maximum_duration_of_evaluation_clips(home: Path, tmp_path: Path) -> None:
    bench = TrainedBenchmark(plan(home), tmp_path, lambda note: None)
    assert bench._inputs["max_duration_s"] == {"held_out": ContextLimits(bench.recipe).longest_evaluation_s}


def test_results_with_and_without_the_decoder_are_kept_apart(home: Path, tmp_path: Path) -> None:
    overrides = ("alignment={}",)
    with_it, without_it = (
        TrainedBenchmark(plan(home, overrides=overrides, without_decoder=without), tmp_path, lambda note: None)
        for without in (False, True)
    )
    assert with_it.recipe == without_it.recipe
    assert with_it._inputs != without_it._inputs


def test_evaluation_clips_that_are_also_training_clips_can_be_excluded(home: Path, tmp_path: Path) -> None:
    bench = TrainedBenchmark(plan(home, overrides=("evaluation.exclude_shared=[clip]",)), tmp_path, lambda note: None)
    with pytest.raises(UserError, match=r"^data\.evaluation\.held_out: .*exclude_shared .*all 24 clips"):
        bench.complete()


def test_a_variant_that_diverges_is_named(home: Path, tmp_path: Path) -> None:
    overrides = ("training.learning_rate=1e30", "training.max_skipped_steps=0", "training.warmup_steps=0")
    bench = TrainedBenchmark(plan(home, overrides=overrides), tmp_path, lambda note: None)
    with pytest.raises(RunFailed, match=r"^variant swiglu, seed 0: .* or leave this variant out$"):
        bench.complete()


def test_the_command_prints_json(
    home: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = Path(shutil.copytree(finished, tmp_path / "bench"))
    (home / "variants.yaml").write_text(
        json.dumps({"variants": {variant.label: dict(variant.section) for variant in SMALL.compared}})
    )
    command = ["bench", "projectors", str(home / "recipe.yaml"), "--variants", str(home / "variants.yaml"), "--train"]
    command += ["--steps", "6", "--seeds", "0,1", "--output-dir", str(finished), "--json"]
    capsys.readouterr()
    assert main(command) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == json.loads((finished / "results.json").read_text())
    assert "6 of 6 units are done already" in output.err
    assert main([*command, "--seconds", "3"]) == 2
    assert "--steps and --seconds both set the budget; give only one of them" in capsys.readouterr().err


@pytest.mark.slow
def test_controls_hold_with_a_trained_encoder(home: Path, tmp_path: Path) -> None:
    """The encoder is first trained until it can distinguish the clips, so that variants can differ."""
    encoder = tmp_path / "run"
    command = ["run", str(home / "encoder.yaml"), "training.steps=150", "--output-dir", str(encoder)]
    assert main(command) == 0
    # The test of a difference tosses one coin per speaker. With three speakers, its p-value is at least 0.25. So every
    # clip gets its own speaker.
    rows = [json.loads(line) for line in (home / "manifest.jsonl").read_text().splitlines()]
    speakers = home / "speakers.jsonl"
    speakers.write_text("".join(json.dumps(row | {"speaker": row["audio_filepath"]}) + "\n" for row in rows))
    chosen = plan(
        home,
        overrides=(f"training.init_from.path={encoder}", f"data.evaluation.held_out.path={speakers}"),
        variants=Variants(SMALL.compared[:1], SMALL.controls),
        seeds=tuple(range(6)),
        budget=Budget(steps=75),
        controls=True,
    )
    found = TrainedBenchmark(chosen, tmp_path / "bench", print).complete()
    assert {control["label"]: control["held"] for control in found["controls"]} == {
        "swiglu, other seeds": True,
        "degraded": True,
    }
