"""The code and the commands in docs/write_a_projector.md work for a reader who follows the page."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.conftest import tiny_recipe, write_clips
from tests.support.tutorial import blocks, broken, call, contract, install, tiny_audio

BLOCKS = blocks("write_a_projector.md")
COMMANDS = [shlex.split(line) for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(BLOCKS, tmp_path_factory.mktemp("site"), "attentive")


def test_the_file_has_at_most_the_stated_length() -> None:
    code = next(text for kind, text in BLOCKS if kind == "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 60


def test_the_contract_holds(site: Path) -> None:
    done = contract(site, "test_attentive.py", "-W", "error")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.slow  # in the fast run, tests/projectors/test_kit.py checks a projector without a mask
def test_a_missing_mask_is_found(site: Path, tmp_path: Path) -> None:
    done = contract(
        broken(site, tmp_path, "attentive.py", ".masked_fill(~frames.mask(), LOWEST)", ""), "test_attentive.py"
    )
    assert done.returncode == 1
    assert "AssertionError: attentive: a clip of" in done.stdout


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """Write a tiny recipe and return its path. It replaces the quickstart recipe in the tutorial's commands."""
    document = tiny_recipe(tmp_path)
    write_clips(tmp_path, 8)
    document["training"] |= {"steps": 2, "warmup_steps": 0}
    document["evaluation"] = {"num_bootstrap": 100}
    document["generation"] = {"max_new_tokens": 5}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(document))
    return str(path)


def command_of(name: str) -> list[str]:
    (command,) = (line for line in COMMANDS if line[1] == name)
    return command


def test_all_commands_are_tested() -> None:
    assert {line[0] for line in COMMANDS} == {"tiny-audio"}
    assert {line[1] for line in COMMANDS} == {"list", "reference", "validate", "run", "sweep", "bench"}
    assert command_of("run")[2] == command_of("sweep")[2] == "recipes/quickstart.yaml"


def test_commands_show_and_train_the_projector(site: Path, recipe: str, tmp_path: Path) -> None:
    commands = [line[1:] for line in COMMANDS if line[1] in ("list", "reference", "validate")]
    assert len(commands) == 4
    output = tmp_path / "run"
    training = ["run", recipe, *command_of("run")[3:], "--output-dir", str(output)]
    *shown, trained = tiny_audio(site, [*commands, training])
    for done in shown:
        assert done.returncode == 0, (done.args, done.stderr)
        assert "attentive" in done.stdout, done.args
    assert trained.returncode == 0, trained.stderr
    report = json.loads((output / "report.json").read_text())
    assert next(part for part in report["parts"] if part["part"] == "projector")["name"] == "attentive"


@pytest.mark.slow  # trains six runs
def test_the_projector_can_be_swept(site: Path, recipe: str, tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    done = call(site, "-m", "tiny_audio.cli", "sweep", recipe, *command_of("sweep")[3:], "--output-dir", str(output))
    assert done.returncode == 0, done.stderr
    reports = [json.loads(path.read_text()) for path in output.rglob("report.json")]
    runs = {(report["recipe"]["projector"]["name"], report["provenance"]["seed"]) for report in reports}
    assert len(reports) == len(runs) == 6
    assert runs == {(projector, seed) for projector in ("swiglu", "attentive") for seed in (0, 1, 2)}


@pytest.mark.slow
def test_the_projector_can_be_benchmarked(site: Path, recipe: str) -> None:
    """To save time, the benchmark uses a tiny recipe and clips of 1 s."""
    kind, *options = command_of("bench")[2:]
    short = ("--durations", "1", "--batch-sizes", "1", "--max-time", "0.01", "--json")
    done = call(site, "-m", "tiny_audio.cli", "bench", kind, recipe, *options, *short)
    assert done.returncode == 0, done.stderr
    assert "attentive" in done.stdout
    assert "swiglu" in done.stdout
