"""A run that was killed at any time and started again has exactly the weights of an undisturbed run."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import changed, tiny_recipe, write_clips
from tests.support.equality import assert_equal
from tests.support.processes import finish, is_writing, kill, last_step, start, wait_until
from tiny_audio.cli import main
from tiny_audio.training.checkpoint import latest
from tiny_audio.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 14


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe with 12 clips of two lengths. Its settings use every source of random numbers."""
    folder = tmp_path_factory.mktemp("resume")
    write_clips(folder, 12)
    write_clips(folder / "sounds", 4)
    sounds = {"folder": str(folder / "sounds"), "probability": 0.5}
    settings: dict[str, Any] = {
        "ctc": {"weight": 0.5},
        "alignment": {"steps": 30},
        "prompt": {
            "context": {"max_tokens": 60, "hotwords": {"num_words": [1, 4], "num_spoken": [1, 2], "num_common": 0}}
        },
        "encoder__dropout": 0.1,
        "decoder__dropout": 0.1,
        "augmentation": {
            "speed": [0.9, 1.0, 1.1],
            "silence": {},
            "reverberation": sounds,
            "noise": sounds,
            "white_noise": {},
            "spec_augment": {"max_time_mask_s": 0.1},
        },
        "batching__max_clips": 3,
        "training__steps": STEPS,
        "training__accumulation": 2,
        "generation__max_new_tokens": 5,
        "evaluation__num_bootstrap": 100,
        "execution__log_every": 2,
        "execution__checkpoint_every": 3,
        "execution__evaluate_every": 6,
        "execution__evaluate_set": "held_out",
        "execution__evaluate_utterances": 2,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(changed(tiny_recipe(folder), **settings)))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    code, _, err = finish(start(recipe, folder))
    assert (code, err) == (0, "")
    return folder


MEASURED = ("wall_s", "waited_s", "beside_s", "possible_flops", "measured_j", "rated_j", "peak_memory_bytes", "logged")
"""Keys of ``progress.json`` whose values may differ between two runs of one recipe on the same machine."""


def assert_same_bits(folder: Path, undisturbed: Path) -> None:
    ours, theirs = latest(folder / "checkpoints"), latest(undisturbed / "checkpoints")
    assert ours is not None
    assert theirs is not None
    assert ours.name == theirs.name == f"step-{STEPS:09d}"
    for path in ("model/model.safetensors", f"checkpoints/{ours.name}/model.safetensors", "evaluation/held_out.jsonl"):
        assert (folder / path).read_bytes() == (undisturbed / path).read_bytes(), path
    for name in ("optimizer.pt", "rng.pt"):
        our_state, their_state = (torch.load(checkpoint / name, weights_only=True) for checkpoint in (ours, theirs))
        assert_equal(our_state, their_state, name)
    progress, expected = (json.loads((checkpoint / "progress.json").read_text()) for checkpoint in (ours, theirs))
    measured = dict.fromkeys(MEASURED, 0)
    assert progress | measured == expected | measured
    logged, wanted = (
        [(row["kind"], row["step"]) for row in read_metrics(run / "metrics.jsonl")] for run in (folder, undisturbed)
    )
    assert logged == wanted
    assert [step for kind, step in logged if kind == "train"] == list(range(2, STEPS + 1, 2))
    assert not list((folder / "checkpoints").glob(".*"))


# --- kills


# This test kills a run during a write. test_final_weights.py tests kills at other times.
def test_a_kill_during_a_write_and_a_signal_do_not_change_the_weights(
    recipe: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    for _ in range(4):  # a write takes only milliseconds, so repeat if the kill came after it
        process = start(recipe, folder)
        assert wait_until(process, lambda: is_writing(folder / "checkpoints"), pause_s=0.001)
        kill(process)
        if is_writing(folder / "checkpoints"):
            break
    assert is_writing(folder / "checkpoints")

    process = start(recipe, folder)
    aim = last_step(folder) + 4
    assert wait_until(process, lambda: last_step(folder) >= aim)
    process.send_signal(signal.SIGSTOP)
    assert main(["run", str(recipe), "--output-dir", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder} is in use")
    assert len(error.splitlines()) == 1
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    code, _, err = finish(process)
    assert code == 3, err
    saved = latest(folder / "checkpoints")
    assert saved is not None
    step = int(saved.name.removeprefix("step-"))
    assert err == f"stopped by a signal; step {step} is saved; the same command continues\n"

    code, out, err = finish(start(recipe, folder))
    assert (code, err) == (0, "")
    assert f"continuing from step {step} (step-{step:09d})" in out
    assert_same_bits(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kills_at_random_times_do_not_change_the_weights(
    recipe: Path, undisturbed: Path, tmp_path: Path, seed: int
) -> None:
    folder, rng, kills = tmp_path / "run", random.Random(seed), 0
    while True:
        process = start(recipe, folder, f"execution.num_workers={rng.choice([0, 2])}")
        if rng.random() < 0.5:  # at any time: importing, training, exporting or scoring
            delay_s = rng.uniform(0.5, 4)
            deadline = time.monotonic() + delay_s
            alive = wait_until(process, lambda until=deadline: time.monotonic() > until)  # type: ignore[misc]
        else:
            aim = last_step(folder) + rng.randint(1, 10)
            alive = wait_until(process, lambda aim=aim: last_step(folder) >= aim)  # type: ignore[misc]
        if not alive:
            break
        kill(process)
        kills += 1
        assert kills < 40
    assert finish(process)[0] == 0
    assert kills
    assert_same_bits(folder, undisturbed)


@pytest.mark.slow
def test_kills_at_every_other_write_do_not_change_the_weights(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder, torn = tmp_path / "run", 0
    while True:
        process = start(recipe, folder)
        first = latest(folder / "checkpoints")  # also removes uncommitted checkpoints of killed processes

        def is_next(first: Path | None = first) -> bool:
            there = sorted((folder / "checkpoints").glob("step-*"))
            return bool(there) and there[-1] != first and is_writing(folder / "checkpoints")

        if not wait_until(process, is_next, pause_s=0.0):
            break
        kill(process)
        torn += is_writing(folder / "checkpoints")
    assert finish(process)[0] == 0
    assert torn >= 2
    assert_same_bits(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_at_several_times_do_not_change_the_weights(
    recipe: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder, rng, stops = tmp_path / "run", random.Random(5), 0
    while True:
        process = start(recipe, folder, "execution.num_workers=2")
        before = last_step(folder)
        aim = before + rng.randint(2, 8)
        if not wait_until(process, lambda aim=aim: last_step(folder) >= aim):  # type: ignore[misc]
            break
        process.send_signal(number)
        code, _, err = finish(process)
        assert code == 3, err
        assert err.endswith("the same command continues\n")
        assert "Traceback" not in err
        stops += 1
    assert finish(process)[0] == 0
    assert stops
    assert_same_bits(folder, undisturbed)


# --- running the same command again


Snapshot = dict[str, tuple[int, bytes]]


def snapshot(folder: Path) -> Snapshot:
    """Return the modification time and content of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def again(recipe: Path, folder: Path, *overrides: str) -> tuple[int, set[str]]:
    """Run the command again. Return its exit code and the changed files."""
    before = snapshot(folder)
    code = main(["run", str(recipe), *overrides, "--output-dir", str(folder)])
    after = snapshot(folder)
    return code, {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_finished_run_does_nothing(recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert again(recipe, finished) == (0, set())
    out = capsys.readouterr().out
    assert "reading the training data" not in out
    assert f"report: {finished / 'report.html'}" in out
    assert "held_out" in out


def test_other_training_clips_need_another_folder(
    recipe: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run accepts another path to the same training clips, but no other training clips."""
    moved = Path(shutil.copytree(recipe.parent, tmp_path / "moved"))
    assert again(recipe, finished, f"data.train.clips.path={moved / 'manifest.jsonl'}") == (0, {"recipe.yaml"})
    (moved / "other.jsonl").write_text("".join((moved / "manifest.jsonl").read_text().splitlines(keepends=True)[1:]))
    for _ in range(2):
        assert again(recipe, finished, f"data.train.clips.path={moved / 'other.jsonl'}") == (2, set())
        assert f"{finished} was trained with a different set of training clips" in capsys.readouterr().err


def test_execution_settings_redo_nothing(recipe: Path, finished: Path) -> None:
    changes = ["execution.num_workers=1", "execution.checkpoint_every=7", "execution.evaluate_max_padded_s=5.0"]
    assert again(recipe, finished, *changes) == (0, {"recipe.yaml"})


def test_evaluation_settings_redo_the_evaluation(recipe: Path, finished: Path) -> None:
    code, changes = again(recipe, finished, "evaluation.group_by=speaker")
    assert code == 0
    results = {
        "evaluation/held_out.jsonl",
        "report.html",
        "report.json",
        "model/README.md",
        "state.json",
        "recipe.yaml",
    }
    assert changes == results
    assert json.loads((finished / "report.json").read_text())["evaluation"]["held_out"]["num_groups"] == 3
    assert again(recipe, finished, "evaluation.group_by=speaker") == (0, set())
    manifest = recipe.parent / "manifest.jsonl"
    manifest.write_text(re.sub('"speaker": "[^"]*"', '"speaker": "ann"', manifest.read_text()))
    assert again(recipe, finished, "evaluation.group_by=speaker")[0] == 0
    assert json.loads((finished / "report.json").read_text())["evaluation"]["held_out"]["num_groups"] == 1


def test_another_file_under_the_same_name_is_scored(recipe: Path, finished: Path) -> None:
    lines = (recipe.parent / "manifest.jsonl").read_text().splitlines(keepends=True)
    (recipe.parent / "five.jsonl").write_text("".join(lines[:5]))
    code, _ = again(recipe, finished, f"data.evaluation.held_out.path={recipe.parent / 'five.jsonl'}")
    assert code == 0
    assert json.loads((finished / "report.json").read_text())["evaluation"]["held_out"]["num_utterances"] == 5


def test_a_removed_evaluation_set_is_removed_from_the_report(recipe: Path, finished: Path) -> None:
    none = ["data.evaluation={}", "execution.evaluate_every=null", "execution.evaluate_set=null"]
    code, changes = again(recipe, finished, *none)
    assert code == 0
    assert changes == {"report.html", "report.json", "model/README.md", "state.json", "recipe.yaml"}
    assert json.loads((finished / "report.json").read_text())["evaluation"] == {}


def test_generation_settings_redo_the_export(recipe: Path, finished: Path) -> None:
    weights = (finished / "model" / "model.safetensors").read_bytes()
    code, changes = again(recipe, finished, "generation.max_new_tokens=3")
    assert code == 0
    assert not [name for name in changes if name.startswith(("checkpoints", "metrics", "tensorboard"))]
    assert json.loads((finished / "model" / "config.json").read_text())["generation"]["max_new_tokens"] == 3
    assert (finished / "model" / "model.safetensors").read_bytes() == weights
    rows = [json.loads(line) for line in (finished / "evaluation" / "held_out.jsonl").read_text().splitlines()]
    assert all(len(row["pred_text"]) <= 3 for row in rows)


def test_a_missing_report_is_written(recipe: Path, finished: Path) -> None:
    (finished / "report.html").unlink()
    assert again(recipe, finished)[1] == {"report.html", "report.json", "model/README.md"}
    state = json.loads((finished / "state.json").read_text())
    del state["report"]  # as after a kill between scoring and reporting
    (finished / "state.json").write_text(json.dumps(state))
    assert again(recipe, finished)[1] == {"report.html", "report.json", "model/README.md", "state.json"}


def test_a_report_plays_the_clips_of_older_hypotheses(recipe: Path, finished: Path) -> None:
    """In hypotheses of older versions, ``audio_filepath`` contains the clip's set and id instead of an address."""
    players = (finished / "report.html").read_text().count("<audio")
    assert players
    path = finished / "evaluation" / "held_out.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"audio_filepath": f"held_out:{row['id']}"}) + "\n" for row in rows))
    (finished / "report.html").unlink()
    assert again(recipe, finished)[0] == 0
    assert (finished / "report.html").read_text().count("<audio") == players


def test_flops_are_counted_in_a_run_of_an_older_version(recipe: Path, finished: Path) -> None:
    path = finished / "state.json"
    state = json.loads(path.read_text())
    work = state["training"].pop("work")
    state["training"]["finished"] = False
    path.write_text(json.dumps(state))
    assert again(recipe, finished)[0] == 0
    assert json.loads(path.read_text())["training"]["work"] == work


def test_a_missing_model_is_exported_again(recipe: Path, finished: Path) -> None:
    before = snapshot(finished)
    shutil.rmtree(finished / "model")
    code, _ = again(recipe, finished)
    assert code == 0
    after = snapshot(finished)
    contents = {name: content for name, (_, content) in after.items() if name.startswith(("model/", "checkpoints/"))}
    card = contents.pop("model/README.md")  # the model card differs, because its costs include both exports
    assert b"# " in card
    assert {name: before[name][1] for name in contents} == contents
    assert "model/model.safetensors" in contents
    assert after["metrics.jsonl"][1] == before["metrics.jsonl"][1]


def test_another_recipe_is_rejected(recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert again(recipe, finished, "training.learning_rate=2e-3", "batching.max_clips=4") == (2, set())
    first, *differences, remedy = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {finished} ")
    assert differences == [
        "  batching.max_clips: 3 in the folder, 4 in this recipe",
        "  training.learning_rate: 0.001 in the folder, 0.002 in this recipe",
    ]
    assert "--output-dir" in remedy


def test_other_augmentation_sounds_are_rejected_after_training_began(
    recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clips(recipe.parent / "louder", 5)
    shutil.rmtree(finished / "model")
    assert again(recipe, finished, f"augmentation.noise.folder={recipe.parent / 'louder'}")[0] == 2
    assert f"{finished} was started with a different set of sounds for augmentation" in capsys.readouterr().err


def test_other_clips_are_rejected_after_training_began(
    recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe.parent / "few.jsonl").write_text((recipe.parent / "manifest.jsonl").read_text().split("\n")[0] + "\n")
    shutil.rmtree(finished / "model")
    assert again(recipe, finished, f"data.train.clips.path={recipe.parent / 'few.jsonl'}")[0] == 2
    assert f"{finished} was started with a different set of training clips" in capsys.readouterr().err
    for checkpoint in (finished / "checkpoints").iterdir():  # as newest_whole() renames damaged ones
        checkpoint.rename(checkpoint.with_name(f"damaged-{checkpoint.name}"))
    assert again(recipe, finished, f"data.train.clips.path={recipe.parent / 'few.jsonl'}")[0] == 2
    assert f"{finished} was started with a different set of training clips" in capsys.readouterr().err


def test_data_can_be_repaired_before_training_begins(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = recipe.parent / "bad.jsonl"
    row = json.loads((recipe.parent / "manifest.jsonl").read_text().split("\n")[0])
    bad.write_text("".join(json.dumps(row | {"text": text}) + "\n" for text in ("yes", "")))
    command = ["run", str(recipe), "training.steps=3", "--output-dir", str(tmp_path / "run")]
    command += ["execution.evaluate_every=null", "execution.evaluate_set=null", f"data.train.clips.path={bad}"]
    assert main(command) == 2
    assert "1 of 2 training clips are unusable" in capsys.readouterr().err
    bad.write_text(json.dumps(row | {"text": "yes"}) + "\n")
    assert main(command) == 0
    assert not (tmp_path / "run" / "dropped.jsonl").exists()
