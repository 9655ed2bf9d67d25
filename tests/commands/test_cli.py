"""Commands: what they print, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import (
    TEXTS,
    UNUSABLE,
    UNUSUAL,
    Document,
    changed,
    manifest_row,
    tiny_recipe,
    write_clips,
    write_odd_clips,
)
from tiny_audio.cli import main
from tiny_audio.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

Output = Callable[..., tuple[int, str, str]]
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def trained(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips, and in it a finished ``run`` over them."""
    folder = tmp_path_factory.mktemp("trained")
    write_clips(folder, 8)
    write_odd_clips(folder)
    document = changed(tiny_recipe(folder), ctc={"weight": 0.5}, generation__max_new_tokens=20)
    (folder / "recipe.yaml").write_text(json.dumps(document))
    assert main(["run", str(folder / "recipe.yaml"), "--output-dir", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Output:
    """Run a command in this process: exit code, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("tiny-audio")), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)


# --- mistakes in the arguments


def test_a_wrong_recipe_is_one_message_and_exit_code_2(document: Document, write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(changed(document, training__learning_rat=1e-3, data__max_duration_s=-1.0))
    for command in ("validate", "run"):
        process = in_a_process(command, path)
        assert process.returncode == 2
        assert process.stdout == ""
        first, *mistakes = process.stderr.splitlines()
        assert first == f"error: {path} is not a valid recipe (2 mistakes):"
        assert len(mistakes) == 2
        assert "data.max_duration_s" in process.stderr
        assert "training.learning_rat: unknown field; did you mean 'learning_rate'?" in process.stderr


@pytest.mark.parametrize("command", ["run", "validate", "show", "doctor"])
def test_a_recipe_that_is_not_there(call: Output, tmp_path: Path, command: str) -> None:
    code, _, err = call(command, tmp_path / "none.yaml")
    assert code == 2
    assert err.startswith("error: ")
    assert "none.yaml" in err
    assert err.count("\n") == 1


def test_a_wrong_override(call: Output) -> None:
    code, out, err = call("validate", RECIPES / "quickstart.yaml", "training.step=5")
    assert (code, out) == (2, "")
    assert "training.step: unknown field; did you mean 'steps'?" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["walk"], "No such command 'walk'"),
        (["run"], "Missing argument 'RECIPE'"),
        (["list", "--jsn"], "No such option: --jsn"),
        (["transcribe", "model"], "Missing argument 'AUDIO...'"),
        (["evaluate", "model"], "Missing option '--data'"),
    ],
)
def test_arguments_that_make_no_sense(call: Output, arguments: list[str], message: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Usage: tiny-audio" in err


def test_help(call: Output) -> None:
    code, out, _ = call("--help")
    assert code == 0
    commands = out.split("Commands:")[1]
    assert "..." not in commands
    for command in (
        "run",
        "validate",
        "doctor",
        "show",
        "list",
        "schema",
        "transcribe",
        "evaluate",
        "sweep",
        "compare",
    ):
        assert f"  {command} " in commands
        assert call(command, "--help")[0] == 0


def test_an_output_that_cannot_be_written(call: Output, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call("run", trained / "recipe.yaml", "--output-dir", tmp_path / "file" / "run")
    assert code == 2
    assert err == f"error: Not a directory: {tmp_path / 'file' / 'run'}\n"


# --- list, schema, validate, show


def test_list_as_json(call: Output) -> None:
    code, out, _ = call("list", "--json")
    registered = json.loads(out)
    assert code == 0
    assert list(registered) == ["encoders", "projectors", "decoders", "sources", "providers"]
    for parts in registered.values():
        assert parts
        assert all(set(part) == {"name", "summary", "module"} and part["summary"] for part in parts)
    assert "whisper" in {part["name"] for part in registered["encoders"]}


def test_list_of_one_kind(call: Output) -> None:
    code, out, _ = call("list", "projectors")
    assert code == 0
    assert out.splitlines()[0] == "projectors"
    assert "  swiglu" in out
    assert "whisper" not in out


def test_the_list_fits_a_terminal(call: Output) -> None:
    _, out, _ = call("list")
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_list_of_an_unknown_kind(call: Output) -> None:
    code, out, err = call("list", "projector")
    assert (code, out) == (2, "")
    assert err == (
        "error: there is no kind of part called 'projector'; did you mean 'projectors'? "
        "Allowed: decoders, encoders, projectors, providers, sources\n"
    )


def test_the_schema_is_json_and_knows_the_parts(call: Output) -> None:
    code, out, _ = call("schema")
    assert code == 0
    schema = json.loads(out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"encoder", "projector", "decoder", "data", "training", "extends"} <= schema["properties"].keys()
    assert "max_source_positions" not in out
    assert '"stack"' in out


def test_validate(call: Output) -> None:
    path = RECIPES / "quickstart.yaml"
    code, out, err = call("validate", path, "training.steps=1777")
    run_id = load_recipe(path, ["training.steps=1777"]).run_id()
    assert (code, err) == (0, "")
    assert out == f"{path} is valid: whisper, swiglu, smollm3; 1777 steps; run id {run_id}\n"


def test_show_as_json(call: Output, trained: Path) -> None:
    code, out, _ = call("show", trained / "recipe.yaml", "--json")
    shown = json.loads(out)
    assert code == 0
    assert list(shown["parameters"]) == ["encoder", "projector", "decoder", "ctc_head", "total"]
    for part, counts in shown["parameters"].items():
        assert 0 < counts["trainable"] <= counts["total"], part
    sums = {key: sum(row[key] for row in shown["parts"]) for key in ("total", "trainable")}
    assert shown["parameters"]["total"] == sums
    assert shown["approximate"] is True
    assert shown["recipe"]["training"]["steps"] == 20
    assert shown["run_id"] == load_recipe(trained / "recipe.yaml").run_id()


def test_show_counts_what_is_trained(call: Output, trained: Path) -> None:
    """Up to the vocabularies, which come from transcripts that ``show`` does not read."""
    shown = json.loads(call("show", trained / "recipe.yaml", "--json")[1])["parameters"]
    report = json.loads((trained / "run" / "report.json").read_text())["parameters"]
    for part in ("encoder", "projector"):
        assert shown[part] == report[part]


def test_show_as_a_table(call: Output, trained: Path) -> None:
    code, out, _ = call("show", trained / "recipe.yaml")
    assert code == 0
    table = out[out.index("part ") :].splitlines()
    assert table[0].split() == ["part", "name", "class", "parameters", "trainable", "dim", "Hz"]
    assert [line.split()[0] for line in table[1:6]] == ["encoder", "projector", "decoder", "ctc_head", "total"]
    assert max(map(len, table)) <= 80
    assert table[-1].startswith("run id ")


# --- doctor


def test_doctor_looks_at_the_machine(call: Output) -> None:
    code, out, _ = call("doctor")
    assert code == 0
    found = [line.split(":")[0] for line in out.splitlines()]
    assert found == ["✓ Python", "✓ CPU", "✓ GPU", "✓ Flash Attention 2", "✓ espeak-ng", "✓ disk"]


def test_doctor_looks_at_a_recipes_data(call: Output, trained: Path) -> None:
    code, out, _ = call("doctor", trained / "recipe.yaml")
    assert code == 0
    assert "✓ encoder: whisper with random weights; nothing to fetch\n" in out
    assert "✓ data.train.clips: 8 clips, 0.00 h\n" in out
    assert "✓ clips/clip000.wav: 1.10 s, 55 frames: 'yes'\n" in out


def test_doctor_shows_what_becomes_of_transcripts(call: Output, trained: Path, tmp_path: Path) -> None:
    texts = ["<noise> I'M HERE", "<MUSIC>", "YES", "NO [laughter] NO <noise>"]
    shutil.copy(trained / "clip000.wav", tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(manifest_row(tmp_path / "clip000.wav", text, 1.1) for text in texts))
    source = [f"data.train.clips.path={manifest}", "data.evaluation={}"]
    steps = "data.target_text={name: lower, remove_markers: true}"
    code, out, _ = call("doctor", trained / "recipe.yaml", *source, steps)
    assert code == 0
    place = "✓ data.train.clips"
    assert f"""{place} target: "<noise> I'M HERE" → "i'm here"\n{place} target: '<MUSIC>' → ''\n""" in out
    assert out.count(" → ") == 3, "a few are enough"
    assert f"{place}: data.target_text leaves nothing of 1 of 4 transcripts looked at, which training drops\n" in out
    assert "markers" not in out
    _, out, _ = call("doctor", trained / "recipe.yaml", *source)
    assert " → " not in out
    marked = "'<noise>' in 2, '<MUSIC>' in 1, '[laughter]' in 1 of 4 transcripts looked at; data.target_text can remove"
    assert f"{place}: its targets hold markers: {marked} them\n" in out


def test_doctor_finds_what_is_wrong(call: Output, trained: Path, tmp_path: Path) -> None:
    for name in ("nan.wav", "stereo.wav", "cut_off.flac"):
        shutil.copy(trained / name, tmp_path)
    rows = [("nan.wav", "yes"), ("stereo.wav", "far too much text for one second " * 3), ("cut_off.flac", "")]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(manifest_row(tmp_path / name, text, 1.0) for name, text in rows))
    code, out, err = call("doctor", trained / "recipe.yaml", f"data.train.clips.path={manifest}", "data.evaluation={}")
    assert code == 2
    assert err.startswith("error: ")
    assert "✓ data.train.clips: 2 clips, 0.00 h, 1 dropped\n" in out
    assert "✗ clips/nan.wav: nan.wav: holds NaN or infinite samples\n" in out
    assert "is it this clip's?\n" in out
    missing = call("doctor", trained / "recipe.yaml", "data.train.clips.path=/nowhere.jsonl")
    assert "✗ data.train.clips: the manifest /nowhere.jsonl does not exist" in missing[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_doctor_misses_the_gpu(call: Output, trained: Path) -> None:
    code, out, _ = call("doctor", trained / "recipe.yaml", "execution.device=cuda")
    assert code == 2
    assert "✗ execution.device: cuda is asked for, and there is no GPU; set it to auto or cpu\n" in out


# --- run


def test_a_run_says_what_it_does(call: Output, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, out, err = call("run", trained / "recipe.yaml", "training.steps=3", "--output-dir", folder)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("run ")
    assert lines[1].startswith("reading the evaluation data; ")
    assert lines[2:4] == ["reading the training data", "8 training clips, 0.00 hours"]
    assert lines[4].startswith("step 3/3: loss ")
    assert [line for line in lines if line.startswith("held_out")]
    assert lines[-2:] == [f"report: {folder / 'report.html'}", f"model:  {folder / 'model'}"]
    for name in ("recipe.yaml", "metrics.jsonl", "report.json", "report.html", "evaluation/held_out.jsonl"):
        assert (folder / name).is_file(), name


def test_the_scores_fit_a_terminal(call: Output, trained: Path) -> None:
    _, out, _ = call("run", trained / "recipe.yaml", "--output-dir", trained / "run")
    table = [line for line in out.splitlines() if str(trained) not in line]
    assert max(map(len, table)) <= 80
    assert "…" not in out
    assert "held_out" in out
    assert "  CTC head alone" in out


def test_a_folder_of_ones_own_choice_is_not_needed(
    call: Output, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("run", trained / "recipe.yaml", "training.steps=3", "data.evaluation={}")[0] == 0
    run_id = load_recipe(trained / "recipe.yaml", ["training.steps=3", "data.evaluation={}"]).run_id()
    assert (tmp_path / "runs" / f"recipe-{run_id}" / "model" / "config.json").is_file()


def test_a_diverged_run_is_exit_code_1(call: Output, trained: Path, tmp_path: Path) -> None:
    absurd = ["training.learning_rate=1e30", "training.max_skipped_steps=1", "training.warmup_steps=0"]
    code, _, err = call("run", trained / "recipe.yaml", *absurd, "--output-dir", tmp_path)
    assert code == 1
    assert err.startswith("failed: 2 steps in a row had a loss or gradient that is not finite;")


def test_bad_audio_never_stops_a_run(call: Output, tmp_path: Path) -> None:
    """A twentieth of the clips of each kind that cannot be used, in training and in evaluation."""
    manifest = write_clips(tmp_path, 14)
    write_odd_clips(tmp_path)
    with manifest.open("a") as file:
        for name in (*UNUSABLE, *UNUSUAL):
            file.write(manifest_row(tmp_path / name, TEXTS[0], 1.0))
        file.write(manifest_row(tmp_path / "nowhere.wav", TEXTS[0], 1.0))
    settings = {
        "data__max_dropped_share": 0.5,
        "training__steps": 12,
        "ctc": {"weight": 0.3},
        "generation__max_new_tokens": 20,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(changed(tiny_recipe(tmp_path), **settings)))
    code, _, err = call("run", path, "--output-dir", tmp_path / "run")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
    # By the manifest, each lasts a second.
    reasons = {**UNUSABLE, "one_sample.wav": "duration_differs", "manifest.jsonl:25": "audio_missing"}
    expected = {f"{split}/{name}": reason for split in ("clips", "held_out") for name, reason in reasons.items()}
    assert {row["id"]: row["reason"] for row in rows} == expected
    assert all(row["detail"] for row in rows)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert sum(report["dropped"].values()) == len(expected)
    assert report["evaluation"]["held_out"]["dropped"] == len(reasons)
    assert report["evaluation"]["held_out"]["num_utterances"] == 14 + len(UNUSUAL)


# --- transcribe


def test_transcribe(call: Output, trained: Path) -> None:
    clips = [trained / f"clip00{number}.{'flac' if number else 'wav'}" for number in range(3)]
    code, out, err = call("transcribe", trained / "run" / "model", *clips)
    assert (code, err) == (0, "")
    assert [line.split("\t")[0] for line in out.splitlines()] == list(map(str, clips))


def test_transcribe_names_what_it_cannot_read_and_does_the_rest(call: Output, trained: Path) -> None:
    files = [trained / name for name in (*UNUSABLE, *UNUSUAL, "clip000.wav", "nowhere.wav")]
    code, out, err = call("transcribe", trained / "run" / "model", *files)
    assert code == 2
    assert [Path(line.split("\t")[0]).name for line in out.splitlines()] == [*UNUSUAL, "clip000.wav"]
    messages = err.removeprefix("error: ").splitlines()
    bad = [*UNUSABLE, "nowhere.wav"]
    assert len(messages) == len(bad)
    for name, message in zip(bad, messages, strict=True):
        assert message.startswith(f"{trained / name}: ")


def test_transcribe_as_json(call: Output, trained: Path) -> None:
    files = [trained / name for name in ("nan.wav", "clip001.flac", "10_channels.wav")]
    code, out, err = call("transcribe", trained / "run" / "model", *files, "--json", "--no-guards")
    assert code == 2
    assert err.splitlines()[-1] == f"error: {trained / 'nan.wav'}: holds NaN or infinite samples"
    bad, good, wide = json.loads(out)
    assert bad == {
        "audio_filepath": str(trained / "nan.wav"),
        "duration": None,
        "text": None,
        "ctc_text": None,
        "truncated": None,
        "segments": None,
        "error": f"{trained / 'nan.wav'}: holds NaN or infinite samples",
    }
    assert good.keys() == bad.keys()
    assert good["error"] is None
    assert good["duration"] == pytest.approx(0.61)
    assert isinstance(good["text"], str)
    assert isinstance(good["ctc_text"], str)
    assert isinstance(good["truncated"], bool)
    assert wide["duration"] == 1.0


def test_a_clip_is_heard_the_same_whatever_it_comes_with(call: Output, trained: Path) -> None:
    clips = [trained / f"clip00{number}.{'wav' if number % 3 == 0 else 'flac'}" for number in range(8)]
    together = json.loads(call("transcribe", trained / "run" / "model", *clips, "--json", "--no-guards")[1])
    for clip, row in zip(clips[:3], together, strict=False):
        assert json.loads(call("transcribe", trained / "run" / "model", clip, "--json", "--no-guards")[1]) == [row]


# --- model folders


def damaged(trained: Path, folder: Path, what: str) -> Any:
    model = folder / "model"
    shutil.copytree(trained / "run" / "model", model)
    match what:
        case "missing":
            return folder / "nothing"
        case "another kind":
            (model / "config.json").write_text('{"model_type": "whisper"}')
        case "no JSON":
            (model / "config.json").write_text("{")
        case "cut off":
            weights = model / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
        case "no weights":
            (model / "model.safetensors").unlink()
    return model


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "no such folder; give a run's folder, or that of an exported model"),
        ("another kind", "a model folder of another kind: model_type is 'whisper'"),
        ("no JSON", "not valid JSON"),
        ("cut off", "the weights cannot be read, the folder is damaged or incomplete"),
        ("no weights", "the weights cannot be read, the folder is damaged or incomplete"),
    ],
)
def test_model_folders_that_cannot_be_used(
    call: Output, trained: Path, tmp_path: Path, what: str, message: str
) -> None:
    folder = damaged(trained, tmp_path, what)
    code, out, err = call("transcribe", folder, trained / "clip000.wav")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


def test_transcribe_in_a_process_of_its_own(trained: Path) -> None:
    process = in_a_process("transcribe", trained / "run" / "model", trained / "clip000.wav", trained / "text.wav")
    assert process.returncode == 2
    assert process.stdout.startswith(f"{trained / 'clip000.wav'}\t")
    assert process.stderr.startswith(f"error: {trained / 'text.wav'}: not an audio file that can be decoded")
    assert process.stderr.count("\n") == 1


def test_a_world_without_a_launcher_is_refused(trained: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("tiny-audio")), "run", str(trained / "recipe.yaml")]
    places = {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    several = {name: value for name, value in os.environ.items() if name not in places} | {"WORLD_SIZE": "2"}
    process = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "run")], env=several, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert process.stderr == (
        "error: WORLD_SIZE says that this is one of 2 processes, and RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are "
        "not set; start with torchrun or accelerate launch, or unset WORLD_SIZE\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there_is_missed_before_training(call: Output, trained: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, _, errors = call("run", trained / "recipe.yaml", "execution.device=cuda", "--output-dir", tmp_path / "run")
    assert code == 2
    assert errors == "error: execution.device is cuda, and this machine has no CUDA GPU; set it to auto or cpu\n"
    assert not (tmp_path / "run").exists()


def test_the_version(call: Output) -> None:
    assert call("--version") == (0, "tiny-audio 0.1.0\n", "")


def test_an_evaluation_manifest_that_was_mended_is_scored_again(call: Output, trained: Path, tmp_path: Path) -> None:
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
    manifest.unlink()
    assert words() == before + 3
