"""Model folders that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.models import assemble, change_config
from tiny_audio.config import UserError
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.export.load import load_model


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    model, tokenizer = assemble()
    export_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: "):
        load_model(tmp_path / "nowhere")


def test_a_missing_config_is_an_error(exported: Path) -> None:
    load_model(exported.parent)  # a run folder contains its model, so it can be loaded
    (exported / "config.json").unlink()
    for folder in (exported, exported.parent):
        with pytest.raises(UserError, match=r"config\.json"):
            load_model(folder)
    (exported.parent / "state.json").touch()
    with pytest.raises(UserError, match="this run has no model"):
        load_model(exported.parent)


@pytest.mark.parametrize("text", ['{"model_type": "llama"}', "[]"])
def test_other_folders_are_rejected(exported: Path, text: str) -> None:
    (exported / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"model_type ('llama'|None) .*'tiny_audio'"):
        load_model(exported)


def test_a_damaged_config_is_an_error(exported: Path) -> None:
    (exported / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match=r"config\.json: .*JSON"):
        load_model(exported)


@pytest.mark.parametrize("keep", [0, 100, 10_000])
def test_truncated_weights_are_an_error(exported: Path, keep: int) -> None:
    weights = exported / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(UserError, match="model: the weights "):
        load_model(exported)


def test_missing_weights_are_an_error(exported: Path) -> None:
    (exported / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model: the weights "):
        load_model(exported)


def test_missing_and_unexpected_keys_are_named(exported: Path) -> None:
    weights = load_file(exported / "model.safetensors")
    weights["projector.left.weight"] = weights.pop("projector.down.weight")
    weights["ctc_head.bias"] = torch.zeros(99)
    save_file(weights, exported / "model.safetensors", metadata={"format": "pt"})
    expected = (
        r"missing: projector\.down\.weight \(1\); unexpected: projector\.left\.weight \(1\); "
        r"mismatched: ctc_head\.bias \(1\)"
    )
    with pytest.raises(UserError, match=expected):
        load_model(exported)


def test_an_unknown_part_is_named(exported: Path) -> None:
    change_config(exported, projector={"name": "swigloo"})
    with pytest.raises(UserError, match=r"unknown projector 'swigloo'.*'swiglu'"):
        load_model(exported)


def test_the_error_names_the_version_of_the_export(exported: Path) -> None:
    change_config(exported, projector={"name": "swiglu", "wings": 2}, tiny_audio_version="9.9")
    with pytest.raises(UserError, match=r"config\.json .*wings.*tiny-audio 9\.9"):
        load_model(exported)


def test_an_edited_config_is_rejected(exported: Path) -> None:
    change_config(exported, projector={"name": "swiglu", "wings": 2})
    with pytest.raises(UserError, match=r"config\.json .*wings: "):
        load_model(exported)
    change_config(exported, projector=None)
    with pytest.raises(UserError, match=r"config\.json .*'projector'"):
        load_model(exported)


def test_a_missing_or_damaged_tokenizer_is_an_error(exported: Path) -> None:
    (exported / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="model: the tokenizer "):
        load_model(exported)
    (exported / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"model: .*tokenizer\.json"):
        load_model(exported)
    (exported / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"model: .*tokenizer_config\.json"):
        load_model(exported)
