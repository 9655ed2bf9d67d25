"""``sweep`` turns a grid into runs, and compares them. All runs are validated before the first run starts."""

from __future__ import annotations

import json
import shutil
import signal
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Document, changed, tiny_recipe, write_clips
from tests.support.html import Page
from tests.support.processes import begin
from tiny_audio.cli import main
from tiny_audio.commands.sweep import Sweep, combinations
from tiny_audio.commands.sweep._grid import split_values
from tiny_audio.config import UserError
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.recipe import load_recipe
from tiny_audio.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

PATIENCE_S = 120.0
SETTINGS: dict[str, Any] = {
    "ctc": {"weight": 0.5},
    "generation__max_new_tokens": 3,
    "training__steps": 2,
    "training__warmup_steps": 1,
    "evaluation": {"normalizer": "lower", "num_bootstrap": 100, "encoder_system_clips": 0},
}
GRID = ("projector.stack=4,2", "training.seed=0,1")
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def recipe(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_clips(folder, 8)
    (folder / "recipe.yaml").write_text(json.dumps(changed(tiny_recipe(folder), **SETTINGS)))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def swept(recipe: Path) -> Path:
    """Return the folder of a finished sweep over GRID."""
    folder = recipe.parent / "swept"
    assert main(["sweep", str(recipe), *GRID, "--output-dir", str(folder)]) == 0
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def names(path: Path, *overrides: str) -> list[str]:
    return [run.name for run in combinations(path, overrides)]


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        combinations(path, overrides)
    return str(caught.value)


# --- the grid


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("swiglu", ["swiglu"]),
        ("swiglu,conv", ["swiglu", "conv"]),
        ("0, 1", ["0", "1"]),
        ("[0.9,1.1],[1.0]", ["[0.9,1.1]", "[1.0]"]),
        ("{name: conv, stride: 2},swiglu", ["{name: conv, stride: 2}", "swiglu"]),
        ("{a: [1, 2], b: 3}", ["{a: [1, 2], b: 3}"]),
        ("'a, b',\"c, d\"", ["'a, b'", '"c, d"']),
        ("['a]', b],c", ["['a]', b]", "c"]),
        (r'"a\", b",c', [r'"a\", b"', "c"]),
        (r'"a\\",b', [r'"a\\"', "b"]),
        ("'it''s, so',c", ["'it''s, so'", "c"]),
        ("don't,do", ["don't", "do"]),
        ("rock''n,roll", ["rock''n", "roll"]),
        ("say {audio}, x [", ["say {audio}", "x ["]),
        ("", [""]),
    ],
)
def test_values_are_split_at_commas(text: str, values: list[str]) -> None:
    assert split_values(text) == values


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        (["projector"], ["'projector'", "section.field=value,value"]),
        (["training.seed=0,,1"], ["training.seed='0,,1'", "empty"]),
        (["training.seed=0,"], ["training.seed='0,'", "empty"]),
        (["training.seed=0,1,0"], ["'training.seed=0,1,0'", "value 0 is given twice"]),
        (["augmentation.speed=[0.9,1"], ["augmentation.speed='[0.9,1'", " [;"]),
        (["prompt.user='a,b"], ['prompt.user="\'a,b"', " ';"]),
        (["training.seed=0", "training.seed=1"], ["training.seed", "twice", "training.seed=A,B"]),
        (["training.seed=0"], ["nothing to sweep", "`tiny-audio run`"]),
        ([f"training.seed={','.join(map(str, range(1001)))}"], ["1,001", "1,000"]),
    ],
)
def test_invalid_grids_are_rejected(recipe: Path, overrides: list[str], values: list[str]) -> None:
    message = refusal(recipe, *overrides)
    assert [value for value in values if value not in message] == []


def test_every_combination_is_a_run(recipe: Path) -> None:
    grid = ["training.steps=9", *GRID]
    found = combinations(recipe, grid)
    assert [run.name for run in found] == ["stack=4, seed=0", "stack=4, seed=1", "stack=2, seed=0", "stack=2, seed=1"]
    assert [run.variant for run in found] == ["stack=4", "stack=4", "stack=2", "stack=2"]
    for run in found:
        expected = load_recipe(recipe, ["training.steps=9", *(f"{key}={value}" for key, value in run.values.items())])
        assert run.recipe == expected
        assert run.folder == f"{run.name.replace('=', '-').replace(', ', '_')}_{expected.run_id()}"


def test_seeds_vary_fastest_in_any_position(recipe: Path) -> None:
    assert names(recipe, *reversed(GRID)) == names(recipe, *GRID)
    assert [run.variant for run in combinations(recipe, GRID[1:])] == ["all seeds"] * 2


def test_overrides_keep_their_order(recipe: Path) -> None:
    """``projector=swiglu`` replaces the section, and later overrides of the projector still apply."""
    found = combinations(recipe, ["projector=swiglu", "projector.stack=2,3", "projector.hidden_dim=16"])
    assert [(run.recipe.projector.stack, run.recipe.projector.hidden_dim) for run in found] == [(2, 16), (3, 16)]  # type: ignore[attr-defined]


def test_names_are_short_unless_they_are_ambiguous(recipe: Path) -> None:
    assert names(recipe, "encoder.dropout=0.0,0.1", "decoder.dropout=0.1", "training.steps=5,6")[0] == (
        "dropout=0.0, steps=5"
    )
    assert names(recipe, "encoder.dropout=0.0,0.1", "decoder.dropout=0.0,0.1")[0] == (
        "encoder.dropout=0.0, decoder.dropout=0.0"
    )


def test_folders_differ_even_if_names_do_not(recipe: Path) -> None:
    found = combinations(recipe, ["augmentation.speed=[0.9,1.1],[1.0]"])
    assert found[0].name == "speed=[0.9,1.1]"
    assert found[0].folder.startswith("speed-0.9-1.1_")
    # Only settings of the decoding differ. They do not change the weights, so the run ids are equal.
    found = combinations(recipe, ["generation={max_new_tokens: 3},{max_new_tokens: 4}"])
    assert found[0].recipe.run_id() == found[1].recipe.run_id()
    assert found[0].folder != found[1].folder
    assert all(set(run.folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for run in found)


# --- rejected before a run starts


def test_all_errors_are_named_and_no_run_starts(
    recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    command = ["sweep", str(recipe), "projector.stack=4,0,900", "training.seed=0,1", "--output-dir", str(folder)]
    assert main(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == [
        "error: 4 of 6 combinations are not valid; nothing was started:",
        "stack=0, seed=0 (and 1 more):",
        f"  {recipe} is not a valid recipe (1 error):",
        "    projector.swiglu.stack: should be greater than 0, not 0",
    ]
    assert lines[4] == "stack=900, seed=0 (and 1 more):"
    assert "projector.swiglu: needs 900 encoder frames" in lines[6]
    assert not folder.exists()


def test_unknown_fields_of_a_renamed_part_are_explained(recipe: Path) -> None:
    message = refusal(recipe, "projector.name=swiglu,qformer")
    assert message.startswith("1 of 2 combinations is not valid; nothing was started:\nprojector.name=qformer:\n")
    assert "projector.qformer." in message
    assert "; projector.name=qformer keeps the other fields of the section. To replace" in message
    assert "write projector=qformer" in message


def test_runs_that_cannot_be_compared_are_rejected(document: Document, write_recipe: Write) -> None:
    path = write_recipe(document)
    assert refusal(path, "training.seed=1,01").startswith("seed=1 and seed=01 are the same recipe")
    assert refusal(path, "evaluation.normalizer=lower,basic").startswith("evaluation.normalizer must be the same")
    assert refusal(path, "evaluation.group_by=speaker,null").startswith("evaluation.group_by must be the same")
    assert "data.evaluation" in refusal(path, "training.seed=1,2", "data.evaluation={}")


@pytest.mark.parametrize("command", [["run"], ["sweep", "projector=swiglu,conv"], ["bench", "projectors"]])
def test_a_file_as_output_folder_is_rejected(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is checked before any training or measurement."""
    name, *rest = command
    (tmp_path / "file").write_text("")
    at = [name, *rest[:1], "r.yaml"] if name == "bench" else [name, "r.yaml", *rest]
    assert main([*at, "--output-dir", str(tmp_path / "file")]) == 2
    assert f"Invalid value for '--output-dir': dir '{tmp_path / 'file'}' is a file." in capsys.readouterr().err


def test_a_dry_run_starts_nothing(
    recipe: Path, swept: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    capsys.readouterr()
    assert main(["sweep", str(recipe), *GRID, "--output-dir", str(tmp_path / "new"), "--dry-run"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "id", "status", "run", "folder"]
    assert len(rows) == 4
    for row, run in zip(rows, combinations(recipe, GRID), strict=True):
        assert row.split()[:2] == [run.recipe.run_id(), "new"]
        assert row.endswith(f"{run.name}  {tmp_path / 'new' / run.folder}")
    assert list(tmp_path.iterdir()) == []
    assert main(["sweep", str(recipe), *GRID, "--output-dir", str(swept), "--dry-run"]) == 0
    assert [row.split()[1] for row in capsys.readouterr().out.splitlines()[1:]] == ["finished"] * 4


def test_the_default_folder_depends_on_the_grid(recipe: Path) -> None:
    folder = Sweep(recipe, GRID).folder
    assert folder == Sweep(recipe, GRID).folder
    assert folder.parent == Path("sweeps")
    assert folder.name.startswith("recipe-")
    assert folder != Sweep(recipe, [*GRID, "training.steps=3"]).folder
    assert folder == Sweep(recipe, [*GRID, "execution.log_every=1"]).folder


def test_the_folder_of_a_run_is_rejected(recipe: Path, swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = next(swept.glob("*/state.json")).parent
    assert main(["sweep", str(recipe), *GRID, "--output-dir", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run} is ")
    assert "--output-dir" in error


# --- real sweeps


def test_a_sweep_gives_runs_and_a_comparison(recipe: Path, swept: Path, tmp_path: Path) -> None:
    record = read(swept / "sweep.json")
    assert record["recipe"] == str(recipe)
    assert record["grid"] == {"projector.stack": ["4", "2"], "training.seed": ["0", "1"]}
    assert [run["status"] for run in record["runs"]] == ["finished"] * 4
    comparison = read(swept / "comparison.json")
    assert comparison["baseline"] == "stack=4"
    assert [variant["name"] for variant in comparison["variants"]] == ["stack=4", "stack=2"]
    assert [[run["seed"] for run in variant["runs"]] for variant in comparison["variants"]] == [[0, 1], [0, 1]]
    entry = comparison["sets"]["held_out"]
    for rates, first in zip(entry["variants"], (0, 2), strict=True):
        reports = [read(swept / run["folder"] / "report.json") for run in record["runs"][first : first + 2]]
        seeds = [report["evaluation"]["held_out"]["wer"] for report in reports]
        assert rates["seeds"] == pytest.approx(seeds)
        assert rates["wer"] == pytest.approx(sum(seeds) / 2)
    # Fields that differ only between the seeds of a variant, such as training.seed, are left out.
    assert [field["field"] for field in comparison["recipe"]] == ["projector.stack"]
    words = Page((swept / "comparison.html").read_text()).words
    assert "stack=4 (2 seeds)" in words
    assert "WER of each seed, %" in words
    assert "and include the variation between seeds" in words

    # A run of a sweep equals a single run with the same recipe.
    alone = ["run", str(recipe), "projector.stack=2", "training.seed=1", "--output-dir", str(tmp_path / "alone")]
    assert main(alone) == 0
    theirs = swept / record["runs"][3]["folder"]
    for name in ("evaluation/held_out.jsonl", "model/model.safetensors"):
        assert (tmp_path / "alone" / name).read_bytes() == (theirs / name).read_bytes()


def test_finished_runs_are_not_repeated(recipe: Path, swept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "swept"
    shutil.copytree(swept, folder)
    weights = {path: path.stat().st_mtime_ns for path in folder.glob("*/model/model.safetensors")}
    assert len(weights) == 4
    # If the grid changes, new runs are added to the finished ones.
    assert main(["sweep", str(recipe), "projector.stack=2,3", "training.seed=0,1", "--output-dir", str(folder)]) == 0
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert len(list(folder.glob("*/model/model.safetensors"))) == 6
    comparison = read(folder / "comparison.json")
    assert [variant["name"] for variant in comparison["variants"]] == ["stack=2", "stack=3"]
    assert comparison["num_comparisons"] == 1


def test_a_failed_run_is_recorded_and_the_others_continue(
    recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    diverging = ["training.max_skipped_steps=0", "training.max_gradient_norm=1e30", "training.steps=3"]
    folder = tmp_path / "sweep"
    command = ["sweep", str(recipe), "training.learning_rate=1e30,1e-3", *diverging, "--output-dir", str(folder)]
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith("failed: 1 of 2 runs failed:\n  learning_rate=1e30: 1 steps in a row, up to step 2")
    assert f"the others are compared in {folder / 'comparison.html'}\n" in err
    assert err.endswith("\nthe same command repeats the failed runs\n")
    failed, finished = read(folder / "sweep.json")["runs"]
    assert (failed["status"], finished["status"]) == ("failed", "finished")
    assert failed["error"].startswith("1 steps in a row, up to step 2")
    assert finished["error"] is None
    assert [variant["name"] for variant in read(folder / "comparison.json")["variants"]] == ["learning_rate=1e-3"]
    Page((folder / "comparison.html").read_text())


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_a_failed_run_leaves_memory_to_the_next_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """The part of a plugin may raise any error. The error must not keep the model of the failed run in memory."""
    models: weakref.WeakSet[TinyAudioModel] = weakref.WeakSet()
    num_alive: list[int] = []

    def fail(trainer: Trainer, *_: object) -> None:
        num_alive.append(len(models))
        models.add(trainer.bare_model)
        raise kind("on purpose")

    monkeypatch.setattr(Trainer, "_score", fail)
    folder = tmp_path / "sweep"
    assert main(["sweep", str(recipe), "training.seed=0,1,2", "--output-dir", str(folder)]) == 1
    assert num_alive == [0, 0, 0]
    errors = [run["error"] for run in read(folder / "sweep.json")["runs"]]
    assert all(error.startswith("Traceback") and error.endswith(f"{kind.__name__}: on purpose\n") for error in errors)


def test_errors_found_by_a_run_have_exit_code_2(
    recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A missing manifest is found only when a run reads its clips, because a sweep validates only recipes."""
    gone = f"data.train.clips.path={tmp_path / 'none.jsonl'}"
    folder = tmp_path / "sweep"
    assert main(["sweep", str(recipe), GRID[1], gone, "--output-dir", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        f"error: 2 of 2 runs failed:\n  seed=0: the manifest {tmp_path / 'none.jsonl'} does not exist"
    )
    assert err.endswith("\nthe same command repeats the failed runs\n")
    assert "compared" not in err
    assert not (folder / "comparison.html").exists()


def test_clips_that_are_not_in_all_runs_are_left_out(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    limits = ["encoder.overrides.max_source_positions=750,50", "data.max_duration_s=1.0"]  # 50 positions: 1 s
    assert main(["sweep", str(recipe), *limits, "--output-dir", str(folder)]) == 0
    entry = read(folder / "comparison.json")["sets"]["held_out"]
    assert (entry["num_utterances"], entry["left_out"]) == (4, 4)


def test_sets_without_speech_have_no_rate(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (recipe.parent / "manifest.jsonl").read_text().splitlines()]
    quiet = recipe.parent / "quiet.jsonl"
    quiet.write_text("".join(json.dumps({**row, "text": ""}) + "\n" for row in rows))
    sets = f"data.evaluation={{held_out: {{name: manifest, path: {recipe.parent / 'manifest.jsonl'}}}, "
    sets += f"quiet: {{name: manifest, path: {quiet}}}}}"
    folder = tmp_path / "sweep"
    assert main(["sweep", str(recipe), GRID[1], sets, "--output-dir", str(folder)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("[1/2] seed=0: WER "))
    assert line.startswith("[1/2] seed=0: WER held_out ")
    assert line.endswith("%, quiet –")
    assert [run["status"] for run in read(folder / "sweep.json")["runs"]] == ["finished", "finished"]
    assert read(folder / "comparison.json")["sets"]["quiet"]["variants"][0]["wer"] is None


def test_a_sweep_continues_after_a_signal(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    grid = ["training.seed=0,1", "training.steps=15", "execution.log_every=1"]
    process = begin("sweep", recipe, *grid, "--output-dir", folder)
    deadline = time.monotonic() + PATIENCE_S
    while not list(folder.glob("seed-1_*/metrics.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3
    assert err == (
        "stopped by a signal in run 2 of 2 (seed=1); all work so far is saved. To continue:\n"
        f"  tiny-audio sweep {recipe} {' '.join(grid)} --output-dir {folder}\n"
    )
    assert [run["status"] for run in read(folder / "sweep.json")["runs"]] == ["finished", "stopped"]
    assert not (folder / "comparison.json").exists()

    first = next(folder.glob("seed-0_*/model/model.safetensors"))
    before = first.stat().st_mtime_ns
    assert main(["sweep", str(recipe), *grid, "--output-dir", str(folder)]) == 0
    assert first.stat().st_mtime_ns == before
    assert [run["status"] for run in read(folder / "sweep.json")["runs"]] == ["finished", "finished"]
    (variant,) = read(folder / "comparison.json")["variants"]
    assert (variant["name"], len(variant["runs"])) == ("all seeds", 2)
