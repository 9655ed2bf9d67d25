"""A finished run, and ways to start commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import changed, tiny_recipe, write_clips, write_odd_clips
from tiny_audio.cli import main

Output = Callable[..., tuple[int, str, str]]
"""Run a command in this process: exit code, output, errors."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips, and in it a finished ``run`` over them. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    write_clips(folder, 8)
    write_odd_clips(folder)
    document = changed(tiny_recipe(folder), ctc={"weight": 0.5}, generation__max_new_tokens=20)
    (folder / "recipe.yaml").write_text(json.dumps(document))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["run", str(folder / "recipe.yaml"), "--output-dir", str(folder / "run")]) == 0
    torch.set_num_threads(before)
    return folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Output:
    """Run a command in this process: exit code, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run
