"""The commands in docs/scaling.md and examples/skypilot.yaml are valid, and launchers can start them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import changed, tiny_recipe, write_clips
from tests.support.training import (
    RecordingCallback,
    parse,
)
from tests.support.worlds import free_port, place
from tiny_audio.commands.run import Run
from tiny_audio.recipe import load_recipe
from tiny_audio.training import checkpoint
from tiny_audio.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text()
TASK = yaml.safe_load((ROOT / "examples" / "skypilot.yaml").read_text())
NODE = {
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def on_a_node() -> list[str]:
    """Return the torchrun command that the SkyPilot task would start on a node, as a list of words."""
    script = TASK["run"].replace(".venv/bin/torchrun", "printf '%s\\n' torchrun")
    done = subprocess.run(["bash", "-euc", script], env=NODE | TASK["envs"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def ours(command: list[str]) -> list[str]:
    """Return the arguments of tiny-audio in a launcher's command, as the launcher's own parser finds them."""
    if command[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        parsed = get_args_parser().parse_args(command[1:])
    else:
        from accelerate.commands.launch import launch_command_parser

        assert command[:2] == ["accelerate", "launch"]
        parsed = launch_command_parser().parse_args(command[2:])
    assert parsed.module
    assert parsed.training_script == "tiny_audio.cli"
    return list(parsed.training_script_args)


LAUNCHED = [command for command in commands() if command[0] != "sky"]


def test_the_page_has_commands() -> None:
    assert {command[0] for command in commands()} == {"torchrun", "accelerate", "sky"}
    assert len(LAUNCHED) >= 7


@pytest.mark.parametrize("command", [*LAUNCHED, on_a_node()], ids=" ".join)
def test_commands_are_valid(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from tiny_audio.cli import app

    arguments = ours(command)
    monkeypatch.chdir(ROOT)
    context = typer.main.get_command(app).make_context("tiny-audio", list(arguments))
    name = arguments[0]
    assert name in ("run", "transcribe", "evaluate")
    given = typer.main.get_command(app).get_command(context, name).make_context(name, arguments[1:]).params  # type: ignore[attr-defined]
    if name == "run":
        load_recipe(given["recipe"], given["overrides"] or [])


def test_the_task_requests_the_resources_that_it_uses() -> None:
    command = on_a_node()
    assert command[command.index("--node-rank") + 1] == NODE["SKYPILOT_NODE_RANK"]
    assert command[command.index("--master-addr") + 1] == "10.0.0.1"
    assert TASK["num_nodes"] == 2
    assert TASK["resources"]["accelerators"].endswith(":8")
    assert set(re.findall(r"\$(\w+)", TASK["run"])) <= NODE.keys() | TASK["envs"].keys()
    subprocess.run(["bash", "-n", "-c", TASK["setup"]], check=True)
    assert (ROOT / "constraints.txt").exists()


# --- real launches


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_clips(tmp_path, 12)
    settings: dict[str, Any] = {
        "training__steps": 4,
        "batching__max_clips": 4,
        "execution__log_every": 1,
        "evaluation__num_bootstrap": 100,
        "generation__max_new_tokens": 5,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(changed(tiny_recipe(tmp_path), **settings)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launchers_start_a_run(recipe: Path, tmp_path: Path, launcher: str) -> None:
    programs = {
        "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())],
        "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
    }
    programs["accelerate"] += ["--main_process_port", str(free_port())]
    arguments = ["-m", "tiny_audio.cli", "run", str(recipe), "--output-dir", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, "-m", *programs[launcher], *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run ") == done.stdout.count("report: ") == 1
    alone = Run(parse(json.loads(recipe.read_text())), "one", tmp_path / "one", RecordingCallback()).complete()
    assert alone is not None
    one, two = ([row["loss"] for row in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["training"]["tokens"] == alone["training"]["tokens"]
    assert report["ledger"]["num_processes"] == 2


@pytest.mark.slow
def test_all_processes_exit_with_the_same_code(recipe: Path, tmp_path: Path) -> None:
    """A signal to the second process stops both processes. The test sets torchrun's variables itself, and does not use
    torchrun, because torchrun hides exit codes."""
    port, command = free_port(), [sys.executable, "-m", "tiny_audio.cli", "run", str(recipe), "training.steps=4000"]
    processes = [
        subprocess.Popen(
            [*command, "--output-dir", str(tmp_path / "run")],
            env=os.environ | place(rank, 2, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    deadline = time.monotonic() + 300
    while not read_metrics(tmp_path / "run" / "metrics.jsonl"):
        assert all(process.poll() is None for process in processes), processes[0].stderr.read()  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [3, 3]
    saved = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert saved is not None
    message = f"stopped by a signal; step {int(saved.name[5:])} is saved; the same command continues\n"
    assert outputs[0][1] == message
    assert outputs[1] == ("", "")

    refused = [*command, "training.seed=1", "--output-dir", str(tmp_path / "run")]
    processes = [
        subprocess.Popen(refused, env=os.environ | place(rank, 2, free), stderr=subprocess.PIPE, text=True)
        for free in [free_port()]
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "contains a run of another recipe" in errors[0]
    assert errors[1] == ""
