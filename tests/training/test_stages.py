"""Start a training from each kind of export. Export the checkpoint of any step."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Document, changed
from tests.support.training import (
    LORA,
    ActingCallback,
    RecordingCallback,
    exported,
    gather,
    parse,
    recipe_on,
    run,
    steps_kept,
)
from tiny_audio.cli import main
from tiny_audio.config import Stopped, UserError
from tiny_audio.export.load import load_model
from tiny_audio.model.base_weights import without_adapters
from tiny_audio.training.assembly import assemble
from tiny_audio.training.initialize import StartingPoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Document, Path]:
    """Return a recipe and the folder of its finished run, which has a checkpoint of each step. Tests must not change
    the folder."""
    folder = tmp_path_factory.mktemp("stage")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    document = recipe_on(folder)
    run(document, folder / "run")
    torch.set_num_threads(before)
    return document, folder / "run"


def export(*arguments: object) -> Path:
    assert main(["export", *map(str, arguments)]) == 0
    return Path(str(arguments[1]))


@pytest.fixture(scope="module")
def small(stage: tuple[Document, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export only the trained weights. Tests must not change the folder."""
    return export(stage[1], tmp_path_factory.mktemp("small") / "small", "--weights", "trained")


@pytest.fixture(scope="module")
def merged(stage: tuple[Document, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export merged weights. Tests must not change the folder."""
    return export(stage[1], tmp_path_factory.mktemp("merged") / "merged", "--merge-lora")


def started(document: Document, path: Path, **changes: Any) -> dict[str, torch.Tensor]:
    recipe = parse(changed(document, training__init_from={"path": str(path), "parts": None}, **changes))
    assert recipe.training.init_from is not None
    model = assemble(recipe, gather(recipe), StartingPoint(recipe.training.init_from))[0]
    tied = model.all_tied_weights_keys
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def is_adapter(name: str) -> bool:
    return ".lora_" in name


# --- starting from exports


def test_training_can_start_from_trained_weights_only(stage: tuple[Document, Path], small: Path) -> None:
    document, folder = stage
    whole = load_file(folder / "model" / "model.safetensors")
    assert load_file(small / "model.safetensors").keys() < whole.keys()
    own = started(document, small)
    assert own.keys() == whole.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("rank", [2, 3])
def test_new_adapters_on_merged_weights(stage: tuple[Document, Path], merged: Path, rank: int) -> None:
    document, folder = stage
    saved = load_file(merged / "model.safetensors")
    own = started(document, merged, decoder__lora=LORA | {"rank": rank})
    assert {without_adapters(name) for name in own if not is_adapter(name)} == saved.keys()
    assert all(torch.equal(saved[without_adapters(name)], own[name]) for name in own if not is_adapter(name))
    assert not any(own[name].any() for name in own if ".lora_B." in name)
    unmerged = load_file(folder / "model" / "model.safetensors")
    assert any(tensor.any() for name, tensor in unmerged.items() if ".lora_B." in name), (
        "the first run must have trained its adapters"
    )


def test_new_adapters_on_a_fully_trained_decoder(stage: tuple[Document, Path], tmp_path: Path) -> None:
    document, _ = stage
    full = changed(document, decoder__lora=None, decoder__freeze=False, training__steps=1)
    run(full, tmp_path / "full")
    trained = load_file(tmp_path / "full" / "model" / "model.safetensors")
    own = started(document, tmp_path / "full")
    assert all(torch.equal(trained[without_adapters(name)], own[name]) for name in own if not is_adapter(name))
    assert any(map(is_adapter, own))
    two = changed(document, training__init_from={"path": str(tmp_path / "full"), "parts": None}, training__steps=1)
    run(two, tmp_path / "two")
    assert exported(tmp_path / "two") != exported(tmp_path / "full")


def test_merged_weights_keep_their_precision(stage: tuple[Document, Path], merged: Path, tmp_path: Path) -> None:
    """The base checkpoint is in half precision. This precision would round away the changes by the merged adapters."""
    document, folder = stage
    shutil.copytree(folder.parent / "lm", tmp_path / "half")
    path = tmp_path / "half" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16"}))
    saved = load_file(merged / "model.safetensors")
    own = started(document, merged, decoder__pretrained=str(tmp_path / "half"))
    assert all(torch.equal(saved[without_adapters(name)], own[name]) for name in own if not is_adapter(name))


@pytest.mark.parametrize("lora", [None, LORA | {"rank": 3}, LORA | {"alpha": 8.0}, LORA | {"targets": ["q_proj"]}])
def test_different_adapters_give_one_message(stage: tuple[Document, Path], lora: Document | None) -> None:
    document, folder = stage
    with pytest.raises(UserError) as refusal:
        started(document, folder, decoder__lora=lora)
    message = str(refusal.value)
    assert message.count("decoder.lora:") == 1
    assert "rank: 2, alpha: 4.0, targets: ['q_proj', 'v_proj']" in message
    assert "--merge-lora" in message
    assert "is not in" not in message


def test_a_missing_base_checkpoint_is_named(stage: tuple[Document, Path], small: Path, tmp_path: Path) -> None:
    lost = Path(shutil.copytree(small, tmp_path / "lost"))
    config = json.loads((lost / "config.json").read_text())
    config["decoder"]["pretrained"] = str(tmp_path / "nowhere")
    (lost / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"training\.init_from: .*nowhere"):
        started(stage[0], lost)


# --- exports of checkpoints


def test_every_step_can_be_exported(
    stage: tuple[Document, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = stage
    assert steps_kept(folder) == [1, 2]
    early = export(folder, tmp_path / "early", "--step", 1)
    assert load_file(early / "model.safetensors").keys() == load_file(folder / "model" / "model.safetensors").keys()
    same = export(folder / "checkpoints" / "step-000000001", tmp_path / "same")
    last = export(folder, tmp_path / "last", "--step", 2)
    files = [path / "model.safetensors" for path in (early, same, last, folder / "model")]
    first, second, third, fourth = (path.read_bytes() for path in files)
    assert first == second != third == fourth
    assert "step 1 of 2" in (early / "README.md").read_text()
    assert "step 2 of 2" in (last / "README.md").read_text()
    assert (early / "config.json").read_bytes() == (folder / "model" / "config.json").read_bytes()
    monkeypatch.chdir(folder / "checkpoints")
    assert exported_bytes(export("step-000000001", tmp_path / "from_checkpoints")) == first
    monkeypatch.chdir("step-000000001")
    assert exported_bytes(export(".", tmp_path / "from_here")) == first
    model, tokenizer = load_model(early)
    assert model.transcribe(torch.zeros(1, 16_000), torch.tensor([16_000]), tokenizer)
    small = export(folder, tmp_path / "small", "--step", 1, "--weights", "trained")
    assert load_file(small / "model.safetensors").keys() < load_file(early / "model.safetensors").keys()


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("", ["--step", "7"], "saved steps: 1, 2"),
        ("checkpoints/step-000000001", ["--step", "2"], "is the checkpoint of step 1"),
        ("model", ["--step", "1"], "is not the folder of a run"),
        ("checkpoints/step-000000009", [], "no such folder"),
    ],
)
def test_invalid_steps_are_an_error(
    stage: tuple[Document, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    options: list[str],
    expected: str,
) -> None:
    assert main(["export", str(stage[1] / source), str(tmp_path / "out"), *options]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_report_is_an_error(
    stage: tuple[Document, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, finished = stage
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "report.json").write_text("{")
    assert main(["export", str(folder), str(tmp_path / "out"), "--step", "2"]) == 2
    assert "report.json is damaged: " in capsys.readouterr().err
    assert export(folder, tmp_path / "early", "--step", 1), "report.json is not read for an earlier step"


def test_a_stopped_run_can_be_exported(
    stage: tuple[Document, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, finished = stage
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        run(document, folder, ActingCallback(1, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert main(["export", str(folder), str(tmp_path / "out")]) == 2
    assert "saved steps: 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="tiny-audio export "):
        load_model(folder / "checkpoints" / "step-000000001")
    early = export(folder, tmp_path / "out", "--step", 1)
    assert exported_bytes(early) == exported_bytes(export(finished, tmp_path / "same", "--step", 1))
    (folder / "checkpoints" / "step-000000001" / "model.safetensors").write_bytes(b"")
    assert main(["export", str(folder), str(tmp_path / "out"), "--step", "1"]) == 2
    assert "step-000000001 is damaged" in capsys.readouterr().err


def exported_bytes(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_an_edited_base_checkpoint_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = changed(recipe_on(tmp_path), training__steps=1)
    run(document, tmp_path / "run", RecordingCallback())
    config = json.loads((tmp_path / "lm" / "config.json").read_text())
    (tmp_path / "lm" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--step", "1"]) == 2
    assert "decoder checkpoint" in capsys.readouterr().err
