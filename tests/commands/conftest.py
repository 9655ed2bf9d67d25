"""Fixtures: a finished run, exported models, and a function that runs a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import changed, tiny_recipe, write_clips, write_odd_clips
from tests.support.models import assemble
from tiny_audio.cli import main
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.frames import SAMPLE_RATE

NUM_BURSTS = 9
"""Number of parts in the long recording. Each part has one second of silence and one of noise. The recording is longer
than the encoder's maximum of 15 s."""
Output = Callable[..., tuple[int, str, str]]
"""Runs a command in this process. Returns its exit code, standard output and standard error."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of clips. Its subfolder ``run`` is a finished run on these clips.

    Tests must not change the folder.
    """
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
    """Return a function that runs a command in this process; see :data:`Output`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def place(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``model``, ``headless`` (a model without a CTC head) and ``audio``.

    ``audio`` contains two clips and a long recording.
    """
    folder = tmp_path_factory.mktemp("place")
    export_model(*assemble(), folder / "model")
    export_model(*assemble(ctc=False), folder / "headless")
    (folder / "audio" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, bursts in (("a.wav", 1), ("b.flac", 1), ("deep/long.flac", NUM_BURSTS)):
        parts = [np.concatenate([np.zeros(SAMPLE_RATE), 0.1 * rng.standard_normal(SAMPLE_RATE)]) for _ in range(bursts)]
        soundfile.write(folder / "audio" / name, np.concatenate(parts), SAMPLE_RATE)
    return folder
