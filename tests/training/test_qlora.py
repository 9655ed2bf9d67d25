"""QLoRA: adapters on quantized weights, from training to every kind of export."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Document, changed
from tests.support.models import decoder_losses, outputs
from tests.support.training import (
    ALONE,
    LORA,
    RecordingCallback,
    exported,
    gather,
    logged,
    parse,
    recipe_on,
    run,
    run_in_two_parts,
)
from tests.support.worlds import in_processes
from tiny_audio.cli import main
from tiny_audio.commands.run import Run
from tiny_audio.config import UserError
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.export.load import load_model
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.pretrained.quantization import quantized_layers
from tiny_audio.training.assembly import assemble
from tiny_audio.training.checkpoint import read_weights, set_weights
from tiny_audio.training.initialize import StartingPoint
from tiny_audio.training.precision import set_types

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Search for bitsandbytes without importing it. The import would take seconds in every test process.
    pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
]
QUERIES = "decoder.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Document, Path]:
    """Return a recipe, and the folder of its finished run. Tests must not change the folder."""
    folder = tmp_path_factory.mktemp("qlora")
    document = changed(
        recipe_on(folder),
        decoder__lora=LORA | {"dora": True},
        decoder__quantization="nf4",
        generation__max_new_tokens=8,
    )
    run(document, folder / "run")
    return document, folder / "run"


def trained(stage: tuple[Document, Path]) -> TinyAudioModel:
    """Return the model with the weights of the last checkpoint and the data types of training."""
    document, folder = stage
    recipe = parse(document)
    model = assemble(recipe, gather(recipe), None)[0]
    set_types(model, "fp32", torch.device("cpu"))
    set_weights(model, lambda: read_weights(folder / "checkpoints", [2], model), ALONE)
    return model.eval()


def export(folder: Path, out: Path, *options: str) -> Path:
    assert main(["export", str(folder), str(out), *options]) == 0
    return out


@pytest.fixture(scope="module")
def small(stage: tuple[Document, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export only the trained weights. Tests must not change the folder."""
    return export(stage[1], tmp_path_factory.mktemp("small") / "small", "--weights", "trained")


def num_quantized(model: TinyAudioModel) -> int:
    return len(list(quantized_layers(model)))


def test_checkpoints_contain_no_frozen_weights(stage: tuple[Document, Path]) -> None:
    model = trained(stage)
    assert num_quantized(model) == 14
    saved = load_file(stage[1] / "checkpoints" / "step-000000002" / "model.safetensors")
    trainable = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert saved.keys() == trainable | {name for name in saved if not name.startswith("decoder.")}
    assert parse(stage[0]).run_id() != parse(changed(stage[0], decoder__quantization=None)).run_id()


@pytest.mark.slow  # test_adapters.py tests this without quantization
def test_a_continued_run_has_the_same_weights(stage: tuple[Document, Path], tmp_path: Path) -> None:
    document, folder = stage
    run_in_two_parts(document, tmp_path / "run")
    assert exported(tmp_path / "run") == exported(folder)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_processes_can_train(stage: tuple[Document, Path], tmp_path: Path, parallel: str) -> None:
    document = changed(stage[0], execution__parallel=parallel)
    in_processes(2, lambda rank: Run(parse(document), "run", tmp_path / "two", RecordingCallback()).complete())
    assert logged(tmp_path / "two", "loss") == pytest.approx(logged(stage[1], "loss"), rel=1e-4)
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (stage[1], tmp_path / "two"))
    assert one.keys() == two.keys()


def test_every_export_computes_the_same(stage: tuple[Document, Path], small: Path, tmp_path: Path) -> None:
    """The dequantized weights of an export are exactly the weights that the adapters were trained on."""
    _, folder = stage
    model = trained(stage)
    plain, tokenizer = load_model(folder)
    assert num_quantized(plain) == 0
    assert torch.equal(decoder_losses(plain, tokenizer), decoder_losses(model, tokenizer))
    wanted = outputs(model, tokenizer)
    assert outputs(plain, tokenizer) == wanted
    loaded, _ = load_model(small)
    assert num_quantized(loaded) == 14
    assert torch.equal(decoder_losses(loaded, tokenizer), decoder_losses(model, tokenizer))
    merged, _ = load_model(export(small, tmp_path / "merged", "--merge-lora"))
    assert num_quantized(merged) == 0
    torch.testing.assert_close(decoder_losses(merged, tokenizer), decoder_losses(model, tokenizer), rtol=1e-5, atol=0)
    assert outputs(merged, tokenizer) == wanted
    written = load_file(small / "model.safetensors")
    assert not {name for name in written if name.startswith("decoder.") and ".lora_" not in name}
    assert "bitsandbytes" in (small / "requirements.txt").read_text()
    assert "bitsandbytes" not in (folder / "model" / "requirements.txt").read_text()
    step = export(folder, tmp_path / "step", "--step", "2", "--weights", "trained")
    assert (step / "model.safetensors").read_bytes() == (small / "model.safetensors").read_bytes()
    loaded.save_pretrained(tmp_path / "again")
    again = TinyAudioModel.from_pretrained(tmp_path / "again")
    assert torch.equal(decoder_losses(again, tokenizer), decoder_losses(model, tokenizer))


def test_exports_without_bitsandbytes(
    stage: tuple[Document, Path],
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exports with all weights can be written and loaded without bitsandbytes. For an export with only the trained
    weights, an error names bitsandbytes."""
    _, folder = stage
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert outputs(*load_model(folder))["transcripts"]
    export(folder, tmp_path / "merged", "--merge-lora")
    with pytest.raises(UserError, match=r"quantization: nf4 .*pip install 'bitsandbytes>="):
        load_model(small)
    capsys.readouterr()
    assert main(["export", str(folder), str(tmp_path / "other"), "--weights", "trained"]) == 2
    assert "pip install 'bitsandbytes>=" in capsys.readouterr().err


@pytest.mark.slow  # test_adapters.py tests this without quantization
def test_an_export_can_be_trained_further(stage: tuple[Document, Path], tmp_path: Path) -> None:
    """The merged weights of an export are quantized for further training. The next export contains them even with
    ``--weights trained``, because no base checkpoint contains them."""
    document, folder = stage
    merged = export(folder, tmp_path / "merged", "--merge-lora")
    two = changed(
        document,
        decoder__lora=LORA,
        decoder__quantization="int8",
        training__init_from={"path": str(merged), "parts": None},
        training__steps=1,
    )
    recipe = parse(two)
    assert recipe.training.init_from is not None
    model = assemble(recipe, gather(recipe), StartingPoint(recipe.training.init_from))[0]
    weights = load_file(merged / "model.safetensors")
    layer = model.get_submodule(f"{QUERIES}.base_layer")
    torch.testing.assert_close(layer.weight, weights[f"{QUERIES}.weight"], rtol=0, atol=0.005)
    run(two, tmp_path / "two")
    small = export(tmp_path / "two", tmp_path / "small", "--weights", "trained")
    assert f"{QUERIES}.base_layer.weight" in load_file(small / "model.safetensors")
    assert json.loads((small / "config.json").read_text())["decoder"]["quantization"] is None
    tokenizer = load_model(small)[1]
    assert outputs(load_model(small)[0], tokenizer) == outputs(load_model(tmp_path / "two")[0], tokenizer)


def test_an_export_without_base_weights_can_be_trained_further(stage: tuple[Document, Path], small: Path) -> None:
    recipe = parse(changed(stage[0], training__init_from={"path": str(small), "parts": None}))
    assert recipe.training.init_from is not None
    model = assemble(recipe, gather(recipe), StartingPoint(recipe.training.init_from))[0]
    wanted = trained(stage)
    for name, tensor in wanted.named_parameters():
        assert torch.equal(tensor, model.get_parameter(name)), name
    # Weights that were dequantized and quantized again differ slightly, because nf4 also rounds the scales.
    again, first = (one.get_submodule(f"{QUERIES}.base_layer").weight for one in (model, wanted))
    assert (again - first).norm() < 0.02 * first.norm()


def test_half_precision_is_restored(stage: tuple[Document, Path], tmp_path: Path) -> None:
    """On a GPU, frozen weights are dequantized to bf16 in training, and also after loading an export."""
    model, (_, tokenizer) = trained(stage), load_model(stage[1])
    for tensor in model.parameters():
        if not tensor.requires_grad:
            tensor.data = tensor.data.to(torch.bfloat16)
    for _, layer in quantized_layers(model):
        layer.set_type(torch.bfloat16)
    export_model(model, tokenizer, tmp_path / "small", weights="trained")
    loaded, _ = load_model(tmp_path / "small", types_as_saved=True)
    assert num_quantized(loaded) == 14
    for (_, ours), (_, wanted) in zip(quantized_layers(loaded), quantized_layers(model), strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours.weight, wanted.weight)


def test_a_changed_base_checkpoint_is_rejected(stage: tuple[Document, Path], small: Path, tmp_path: Path) -> None:
    shutil.copytree(stage[1].parent / "lm", tmp_path / "lm")
    own = Path(shutil.copytree(small, tmp_path / "own"))
    config = json.loads((own / "config.json").read_text())
    config["decoder"]["pretrained"] = str(tmp_path / "lm")
    (own / "config.json").write_text(json.dumps(config))
    assert num_quantized(load_model(own)[0]) == 14, "a copy of the checkpoint in another folder is accepted"
    weights = (tmp_path / "lm" / "model.safetensors").read_bytes()
    (tmp_path / "lm" / "model.safetensors").write_bytes(weights[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"decoder: .*lm'"):
        load_model(own)
