"""Checkpoints: complete, exact, and limited in number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Document, changed
from tests.support.training import (
    different,
    make_trainer,
    trained,
    weights,
)
from tiny_audio.config import RunFailed
from tiny_audio.runtime.checkpoint_folders import steps_in
from tiny_audio.runtime.world import World
from tiny_audio.training import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def state_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_checkpoint_restores_everything(document: Document, tmp_path: Path) -> None:
    first = make_trainer(document, tmp_path / "first")
    progress = first.run()
    saved = checkpoint.latest(tmp_path / "first" / "checkpoints")
    assert saved is not None
    assert saved.name == "step-000000003"
    after = torch.rand(3)

    second = make_trainer(changed(document, training__seed=9), tmp_path / "second")
    assert different(weights(first), weights(second))
    optimizer, notes = second.optimizer, []
    loaded = checkpoint.load_newest(saved.parent, second.bare_model, optimizer, notes.append, World())
    # The overhead of saving the last checkpoint is counted only after saving, so it is not in this checkpoint.
    assert loaded.beside_s < progress.beside_s
    assert replace(loaded, beside_s=progress.beside_s, rated_j=progress.rated_j) == progress
    assert notes == ["continuing from step 3 (step-000000003)"]
    assert torch.equal(torch.rand(3), after)
    assert not different(weights(first), weights(second))
    checkpoint.save(tmp_path, second.bare_model, optimizer, progress, 1, World())
    again = tmp_path / saved.name
    tensors = torch.load(again / "optimizer.pt", weights_only=True)["state"]
    for number, state in torch.load(saved / "optimizer.pt", weights_only=True)["state"].items():
        assert all(torch.equal(value, tensors[number][key]) for key, value in state.items())


def test_uncommitted_checkpoints_are_ignored_and_removed(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nothing") is None
    (tmp_path / "step-000000007").mkdir()
    (tmp_path / "step-000000010").mkdir()
    torn = tmp_path / ".step-000000013.writing"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half of")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000000010"
    assert not torn.exists()


def test_copies_of_checkpoints_are_ignored(document: Document, tmp_path: Path) -> None:
    copies = [tmp_path / "checkpoints" / f"step-000000001{suffix}" for suffix in (".bak", " (copy)")]
    for copy in copies:
        copy.mkdir(parents=True)
    assert checkpoint.latest(tmp_path / "checkpoints") is None
    make_trainer(document, tmp_path).run()
    assert list(steps_in(tmp_path / "checkpoints"))[-1] == 3
    assert checkpoint.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-000000003"
    assert all(copy.is_dir() for copy in copies)


def test_the_newest_checkpoints_are_kept(document: Document, tmp_path: Path) -> None:
    settings = {"training__steps": 5, "execution__checkpoint_every": 1, "execution__keep_checkpoints": 2}
    trained(changed(document, **settings), tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000004", "step-000000005"]


def test_a_checkpoint_with_other_tensors_is_rejected(document: Document, tmp_path: Path) -> None:
    trained(changed(document, training__steps=1), tmp_path)
    without = {**changed(document, training__steps=1), "ctc": None}
    with pytest.raises(RunFailed, match=r"step-\d+ .*\(differences: ctc_head.bias, ctc_he"):
        make_trainer(without, tmp_path).run()
    wider = changed(document, training__steps=1, projector__hidden_dim=65)
    with pytest.raises(RunFailed, match=r"holds projector\.\w+\.weight with shape \[.*64.*\], .*\[.*65"):
        make_trainer(wider, tmp_path).run()


def test_checkpoints_contain_only_trainable_tensors_and_buffers(document: Document, tmp_path: Path) -> None:
    trainer = make_trainer(changed(document, encoder__freeze=True), tmp_path)
    trainer.run()
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None
    names = load_file(saved / "model.safetensors").keys()
    trains = {name for name, tensor in trainer.bare_model.named_parameters() if tensor.requires_grad}
    buffers = {name for name, _ in trainer.bare_model.named_buffers()} & trainer.bare_model.state_dict().keys()
    assert names == trains | buffers
    assert not [name for name in trains if name.startswith("encoder.")]
