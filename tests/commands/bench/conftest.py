"""Fixtures: an encoder trained on a few clips, and a recipe that freezes this encoder."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from tests.conftest import changed, tiny_recipe, write_clips
from tiny_audio.cli import main


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with clips, a run that trained an encoder, and ``recipe.yaml``, which freezes this encoder.

    Tests must not change these files.
    """
    folder = tmp_path_factory.mktemp("bench")
    write_clips(folder, 24)
    document = changed(tiny_recipe(folder), ctc={"weight": 0.5}, generation__max_new_tokens=12, batching__max_clips=8)
    document["training"] |= {"learning_rate": 5e-3, "steps": 15}
    (folder / "encoder.yaml").write_text(json.dumps(changed(document, data__evaluation={})))
    # Two threads are no faster on such small models.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["run", str(folder / "encoder.yaml"), "--output-dir", str(folder / "run")]) == 0
    torch.set_num_threads(before)
    frozen = copy.deepcopy(document)
    frozen["encoder"]["freeze"] = True
    frozen["training"]["init_from"] = {"path": str(folder / "run"), "parts": ["encoder", "ctc_head"]}
    (folder / "recipe.yaml").write_text(json.dumps(frozen))
    return folder


@pytest.fixture
def own_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store features in the folder of the clips instead of the user's cache."""
    monkeypatch.setenv("TINY_AUDIO_CACHE", str(home / "cache"))
