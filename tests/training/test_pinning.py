"""A run records its pretrained checkpoints: by commit on the hub, and by content in a folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HubertConfig, HubertModel

from tests.conftest import changed, tiny_recipe, write_clips
from tests.support.hub_cache import COMMIT, repository_in, use_cache
from tests.support.training import RecordingCallback
from tiny_audio.commands.run import Run
from tiny_audio.config import UserError
from tiny_audio.encoders import ENCODERS
from tiny_audio.pretrained.identity import checkpoint_identity
from tiny_audio.recipe import Recipe

REPOSITORY = "somebody/hubert-tiny"


def hubert(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tiny: Any = ENCODERS.entry("hubert").config.tiny()
    HubertModel(HubertConfig(**tiny.overrides)).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create the hub's cache with one repository, whose main branch is at COMMIT. Return the repository's folder."""
    repository = repository_in(tmp_path / "hub", REPOSITORY)
    hubert(repository / "snapshots" / COMMIT)
    use_cache(monkeypatch, tmp_path / "hub")
    return repository


def recipe(folder: Path, pretrained: str, **changes: Any) -> Recipe:
    write_clips(folder, 8)
    encoder = {"name": "hubert", "pretrained": pretrained, "freeze": True}
    document = changed(tiny_recipe(folder), encoder=encoder, training__steps=2, training__warmup_steps=0, **changes)
    document["data"]["evaluation"] = {}
    return Recipe.model_validate_json(json.dumps(document))


def test_random_weights_have_no_checkpoint() -> None:
    tiny: Any = ENCODERS.entry("hubert").config.tiny()
    assert checkpoint_identity(tiny) is None


def test_a_folder_is_identified_by_its_weights(tmp_path: Path) -> None:
    parts = [
        recipe(tmp_path, str(hubert(tmp_path / name, seed))).encoder for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, second, third = map(checkpoint_identity, parts)
    assert first == second != third


def test_other_weights_in_the_same_folder_are_rejected(tmp_path: Path) -> None:
    folder = hubert(tmp_path / "checkpoint")
    Run(recipe(tmp_path, str(folder)), "x", tmp_path / "run", RecordingCallback()).complete()
    shutil.rmtree(tmp_path / "run" / "model")
    hubert(folder, seed=1)
    with pytest.raises(UserError, match=r"a different encoder checkpoint \(hash [0-9a-f]{64}\)"):
        Run(recipe(tmp_path, str(folder)), "x", tmp_path / "run", RecordingCallback()).complete()


def test_an_edited_config_is_rejected_and_a_moved_folder_is_accepted(tmp_path: Path) -> None:
    folder = hubert(tmp_path / "checkpoint")
    Run(recipe(tmp_path, str(folder)), "x", tmp_path / "run", RecordingCallback()).complete()
    moved = folder.rename(tmp_path / "moved")
    assert recipe(tmp_path, str(moved)).run_id() == recipe(tmp_path, str(hubert(tmp_path / "checkpoint"))).run_id()
    shutil.rmtree(folder)
    Run(recipe(tmp_path, str(moved)), "x", tmp_path / "run", RecordingCallback()).complete()
    shutil.rmtree(tmp_path / "run" / "model")
    Run(recipe(tmp_path, str(moved)), "x", tmp_path / "run", RecordingCallback()).complete()
    shutil.rmtree(tmp_path / "run" / "model")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    with pytest.raises(UserError, match=r"a different encoder checkpoint"):
        Run(recipe(tmp_path, str(moved)), "x", tmp_path / "run", RecordingCallback()).complete()


def test_a_run_keeps_its_commit_if_the_branch_changes(tmp_path: Path, hub: Path) -> None:
    run = tmp_path / "run"
    report = Run(recipe(tmp_path, REPOSITORY), "x", run, RecordingCallback()).complete()
    assert report["provenance"]["encoder_checkpoint"] == COMMIT
    assert report["provenance"]["decoder_checkpoint"] is None
    exported = json.loads((run / "model" / "config.json").read_text())
    assert exported["encoder"]["revision"] == COMMIT
    before = (run / "model" / "model.safetensors").read_bytes()
    moved = re.sub("^0", "f", COMMIT)
    hubert(hub / "snapshots" / moved, seed=1)
    (hub / "refs" / "main").write_text(moved)
    shutil.rmtree(run / "model")
    Run(recipe(tmp_path, REPOSITORY), "x", run, RecordingCallback()).complete()
    assert (run / "model" / "model.safetensors").read_bytes() == before
    fresh = Run(recipe(tmp_path, REPOSITORY), "x", tmp_path / "fresh", RecordingCallback()).complete()
    assert fresh["provenance"]["encoder_checkpoint"] == moved
