"""``run``: its output and files, bad data, and recipes that are rejected before training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.commands.conftest import Output
from tests.conftest import (
    TEXTS,
    UNUSABLE,
    UNUSUAL,
    changed,
    manifest_row,
    tiny_recipe,
    write_clips,
    write_odd_clips,
)
from tests.support.processes import begin, finish
from tiny_audio.commands.console import ConsoleCallback
from tiny_audio.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
_KINDS = ("wav", "flac", "flac")
"""Suffixes of the first three clips."""


def test_a_run_reports_its_progress(call: Output, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, out, err = call("run", trained / "recipe.yaml", "training.steps=3", "--output-dir", folder)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("run ")
    assert lines[1] == "reading the evaluation data"
    assert lines[2:4] == ["reading the training data", "8 training clips, 0.00 hours"]
    assert lines[4].startswith("warning: data.evaluation.held_out: 8 of 8 clips are also training clips (clips), ")
    assert lines[5].startswith("step 3/3: loss ")
    assert [line for line in lines if line.startswith("held_out")]
    scores = json.loads((folder / "report.json").read_text())["evaluation"]["held_out"]
    rows = [json.loads(line) for line in (folder / "evaluation" / "held_out.jsonl").read_text().splitlines()]
    assert scores["bits_from_audio_clips"] == len(rows) == 8
    assert sum(row["losses"]["tokens"] for row in rows) > 8
    assert sum("warning: held_out: the audio adds " in line for line in lines) == 1
    shared = {"by": "clip", "num_shared": 8, "num_clips": 8, "training_sets": ["clips"], "excluded": False}
    assert "\nwarning: held_out: 8 of 8 clips are also training clips (clips)" in out
    (overlap,) = json.loads((folder / "report.json").read_text())["evaluation"]["held_out"]["shared_with_training"]
    assert overlap == shared | {"examples": [f"held_out/clip00{index}.{kind}" for index, kind in enumerate(_KINDS)]}
    for page in ("report.html", "model/README.md"):
        assert "8 of 8 clips are also training clips" in (folder / page).read_text(), page
    assert lines[-2:] == [f"report: {folder / 'report.html'}", f"model:  {folder / 'model'}"]
    for name in ("recipe.yaml", "metrics.jsonl", "report.json", "report.html", "evaluation/held_out.jsonl"):
        assert (folder / name).is_file(), name


def test_messages_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleCallback(steps=1) as callback:
        callback.note("a clip of [b]cat:dog:1[/b]:x:2")
    assert capsys.readouterr().out == "a clip of [b]cat:dog:1[/b]:x:2\n"


def test_the_scores_fit_a_terminal(call: Output, trained: Path) -> None:
    _, out, _ = call("run", trained / "recipe.yaml", "--output-dir", trained / "run")
    table = [line for line in out.splitlines() if str(trained) not in line]
    assert max(map(len, table)) <= 80
    assert "…" not in out
    assert "held_out" in out
    assert "  CTC head" in out


def test_the_output_folder_has_a_default(
    call: Output, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("run", trained / "recipe.yaml", "training.steps=3", "data.evaluation={}")[0] == 0
    run_id = load_recipe(trained / "recipe.yaml", ["training.steps=3", "data.evaluation={}"]).run_id()
    assert (tmp_path / "runs" / f"recipe-{run_id}" / "model" / "config.json").is_file()


def test_a_diverging_run_has_exit_code_1(call: Output, trained: Path, tmp_path: Path) -> None:
    absurd = ["training.learning_rate=1e30", "training.max_skipped_steps=1", "training.warmup_steps=0"]
    code, _, err = call("run", trained / "recipe.yaml", *absurd, "--output-dir", tmp_path)
    assert code == 1
    assert err.startswith("failed: 2 steps ")


def test_bad_audio_never_stops_a_run(call: Output, tmp_path: Path) -> None:
    """The training data and the evaluation data contain one unusable clip of each kind."""
    manifest = write_clips(tmp_path, 14)
    write_odd_clips(tmp_path)
    with manifest.open("a") as file:
        for name in (*UNUSABLE, *UNUSUAL):
            file.write(manifest_row(tmp_path / name, TEXTS[0], 1.0))
        file.write(manifest_row(tmp_path / "nowhere.wav", TEXTS[0], 1.0))
    settings = {
        "data__max_dropped_share": 0.5,
        "batching__max_clips": 8,
        "training__steps": 5,
        "ctc": {"weight": 0.3},
        "generation__max_new_tokens": 5,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(changed(tiny_recipe(tmp_path), **settings)))
    code, _, err = call("run", path, "--output-dir", tmp_path / "run")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
    # The manifest states 1 s for each clip. So the clip of one sample is dropped because its duration differs, and not
    # because it is too short.
    reasons = {**UNUSABLE, "one_sample.wav": "duration_differs", "manifest.jsonl:25": "audio_missing"}
    expected = {f"{split}/{name}": reason for split in ("clips", "held_out") for name, reason in reasons.items()}
    assert {row["id"]: row["reason"] for row in rows} == expected
    assert all(row["detail"] for row in rows)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert sum(report["dropped"].values()) == len(expected)
    assert report["evaluation"]["held_out"]["dropped"] == len(reasons)
    assert report["evaluation"]["held_out"]["num_utterances"] == 14 + len(UNUSUAL)


def test_world_size_without_a_launcher_is_rejected(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    for name in places:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = finish(begin("run", trained / "recipe.yaml", "--output-dir", tmp_path / "run"))
    assert code == 2
    assert err.startswith("error: ")
    for name in ("WORLD_SIZE", *places):
        assert name in err
    assert not (tmp_path / "run").exists()


def test_a_missing_gpu_is_an_error_before_training(call: Output, trained: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, _, errors = call("run", trained / "recipe.yaml", "execution.device=cuda", "--output-dir", tmp_path / "run")
    assert code == 2
    assert errors.startswith("error: execution.device is cuda")
    assert not (tmp_path / "run").exists()


def test_a_changed_evaluation_manifest_is_scored_again(call: Output, trained: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "clips.jsonl"
    rows = [json.loads(line) for line in (trained / "manifest.jsonl").read_text().splitlines()]
    for row in rows:
        row["audio_filepath"] = str(trained / row["audio_filepath"])
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "run"
    command = ("run", trained / "recipe.yaml", "training.steps=3", f"data.evaluation.held_out.path={manifest}")

    def words() -> int:
        assert call(*command, "--output-dir", folder)[0] == 0
        report = json.loads((folder / "report.json").read_text())
        return int(report["evaluation"]["held_out"]["num_reference_words"])

    before = words()
    rows[0]["text"] += " left right stop"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert words() == before + 3

    manifest.write_text("".join(json.dumps(row | {"duration": 900.0}) + "\n" for row in rows))
    assert call(*command, "--output-dir", folder)[0] == 2, "no clip is usable"
    manifest.unlink()
    assert words() == before + 3


def test_dropped_clips_of_an_evaluation_set_are_listed_until_it_is_scored_again(
    call: Output, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, folder = tmp_path / "bad.jsonl", tmp_path / "run"
    paths = trained / "clip000.wav", tmp_path / "gone.wav"
    rows = [{"audio_filepath": str(path), "duration": 1.0, "text": TEXTS[0]} for path in paths]
    bad.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = json.dumps({"name": "manifest", "path": str(bad)})
    command = ("run", trained / "recipe.yaml", "training.steps=3", f"data.evaluation.other={source}")

    def dropped(*options: str) -> tuple[dict[str, int], list[str]]:
        assert call(*command, *options, "--output-dir", folder)[0] == 0
        listed = [json.loads(line)["id"] for line in (folder / "dropped.jsonl").read_text().splitlines()]
        return json.loads((folder / "report.json").read_text())["dropped"], listed

    both = ({"audio_missing": 2}, ["held_out/bad.jsonl:2", "other/bad.jsonl:2"])
    assert dropped(f"data.evaluation.held_out.path={bad}") == both
    assert dropped() == ({"audio_missing": 1}, ["other/bad.jsonl:2"])
    # The report leaves out sets that are not in the recipe. A set that is added back to the recipe is not scored again.
    without = json.dumps({"held_out": {"name": "manifest", "path": str(trained / "manifest.jsonl")}})
    monkeypatch.setattr(sys, "argv", ["tiny-audio", "run", "my recipe.yaml"])
    assert dropped(f"data.evaluation={without}") == ({}, ["other/bad.jsonl:2"])
    provenance = json.loads((folder / "report.json").read_text())["provenance"]
    assert provenance["command"] == "tiny-audio run 'my recipe.yaml'"
    assert list(provenance["evaluation_data"]) == ["held_out"]
    assert dropped() == ({"audio_missing": 1}, ["other/bad.jsonl:2"])
