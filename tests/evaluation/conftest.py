"""Fixtures: a finished run, a tiny CTC model, a local server for providers, and a function that runs `evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import changed, tiny_recipe, write_clips, write_odd_clips
from tests.evaluation.outputs import Output
from tests.support.provider_server import KEY, Vendors, vendors
from tests.support.recognizers import save_ctc_model
from tiny_audio.cli import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with clips and, in ``run``, a finished run that was trained on them."""
    folder = tmp_path_factory.mktemp("trained")
    write_clips(folder, 8)
    write_odd_clips(folder)
    document = changed(tiny_recipe(folder), ctc={"weight": 0.5}, generation__max_new_tokens=20, training__steps=4)
    (folder / "recipe.yaml").write_text(json.dumps(document))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["run", str(folder / "recipe.yaml"), "--output-dir", str(folder / "run")]) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="session")
def ctc_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ctc_model(tmp_path_factory.mktemp("ctc") / "tiny-wav2vec2")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendors]:
    monkeypatch.setenv("DEEPGRAM_API_KEY", KEY)
    with vendors() as state:
        yield state


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Output:
    """Return a function that runs `evaluate` in this process; see :data:`Output`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["evaluate", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run
