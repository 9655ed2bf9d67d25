"""The code and the commands in docs/write_a_provider.md work for a reader who follows the page."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import write_clips
from tests.support.tutorial import blocks, broken, contract, install, tiny_audio

BLOCKS = blocks("write_a_provider.md")
COMMANDS = [shlex.split(line) for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(BLOCKS, tmp_path_factory.mktemp("site"), "program")


def test_the_contract_holds(site: Path) -> None:
    done = contract(site, "test_program.py", "-W", "error")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.slow
def test_a_broken_provider_is_found(site: Path, tmp_path: Path) -> None:
    wrong = broken(site, tmp_path, "program.py", "done.stdout.strip()", 'done.stdout + " "')
    done = contract(wrong, "test_program.py")
    assert done.returncode == 1
    assert "AssertionError: program: there is whitespace around " in done.stdout


def test_commands_list_and_evaluate_the_provider(site: Path, tmp_path: Path) -> None:
    (command,) = COMMANDS[2:]
    assert command[:3] == ["tiny-audio", "evaluate", "runs/mine"]
    write_clips(tmp_path, 6)
    program = tmp_path / "transcribe"
    program.write_text('#!/bin/sh\n[ -s "$1" ] && echo yes\n')
    program.chmod(0o755)
    arguments = [command[3].replace("./transcribe", str(program)), *command[4:5], str(tmp_path / "manifest.jsonl")]
    out = ["--output-dir", str(tmp_path / "out"), "--json"]
    missing = ["provider:program:path=/no/program", *arguments[1:]]
    listing = [command[1:] for command in COMMANDS[:2]]
    *listed, done, failed = tiny_audio(site, [*listing, ["evaluate", *arguments, *out], ["evaluate", *missing]])
    for shown in listed:
        assert shown.returncode == 0, shown.stderr
        assert re.search(r"program`?\]?.* Any program that takes", " ".join(shown.stdout.split()))
    assert done.returncode == 0, done.stderr
    ((scores,),) = (sets.values() for sets in json.loads(done.stdout).values())
    assert (scores["num_clips"], scores["num_failed"], scores["cost_usd"]) == (6, 0, 0.0)
    (path,) = (tmp_path / "out").rglob("hypotheses.jsonl")
    assert {json.loads(line)["pred_text"] for line in path.read_text().splitlines()} == {"yes"}
    assert failed.returncode == 2
    assert "error: provider program: /no/program cannot be run: " in failed.stderr
