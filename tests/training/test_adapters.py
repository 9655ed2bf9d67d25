"""DoRA and rank-stabilized LoRA, from training to every form of export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Document, changed
from tests.support.models import decoder_losses, outputs
from tests.support.training import LORA, exported, gather, parse, recipe_on, run, run_in_two_parts
from tiny_audio.cli import main
from tiny_audio.config import UserError
from tiny_audio.export.load import load_model
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.plan._step import Shape, dry_run
from tiny_audio.training.assembly import assemble
from tiny_audio.training.initialize import StartingPoint

pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = LORA | {"rank": 4, "dora": True, "rslora": True}
QUERIES = "decoder.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Document, Path]:
    """Return a recipe, and the folder of its finished run. Tests must not change the folder."""
    folder = tmp_path_factory.mktemp("adapters")
    document = changed(recipe_on(folder), decoder__lora=BOTH, generation__max_new_tokens=8)
    run(document, folder / "run")
    return document, folder / "run"


def start_from(document: Document, path: Path, lora: Document | None) -> TinyAudioModel:
    recipe = parse(changed(document, decoder__lora=lora, training__init_from={"path": str(path), "parts": None}))
    assert recipe.training.init_from is not None
    return assemble(recipe, gather(recipe), StartingPoint(recipe.training.init_from))[0]


def test_all_trainable_tensors_are_saved_and_counted(stage: tuple[Document, Path]) -> None:
    document, folder = stage
    recipe = parse(document)
    model = assemble(recipe, gather(recipe), None)[0]
    trainable = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    magnitudes = [name for name in trainable if "magnitude" in name]
    assert len(magnitudes) == 4, "queries and values of two layers"
    saved = load_file(folder / "checkpoints" / "step-000000002" / "model.safetensors")
    assert saved.keys() >= trainable.keys()
    assert all(not torch.equal(saved[name], trainable[name]) for name in magnitudes), "training changes them"
    planned = dry_run(recipe, Shape(2, 1.0), "cpu").parameters
    in_decoder = sum(tensor.numel() for name, tensor in trainable.items() if name.startswith("decoder."))
    assert planned["decoder"]["trainable"] == in_decoder


def test_a_continued_run_has_the_same_weights(stage: tuple[Document, Path], tmp_path: Path) -> None:
    document, folder = stage
    run_in_two_parts(document, tmp_path / "run")
    assert exported(tmp_path / "run") == exported(folder)


def test_every_export_computes_the_same(stage: tuple[Document, Path], tmp_path: Path) -> None:
    _, folder = stage
    forms = {"trained": ["--weights", "trained"], "merged": ["--merge-lora"], "step": ["--step", "2"]}
    model, tokenizer = load_model(folder)
    wanted, scores = outputs(model, tokenizer), decoder_losses(model, tokenizer)
    assert model.decoder.get_submodule(QUERIES.removeprefix("decoder.")).scaling == {"default": 4.0 / 2}
    for name, options in forms.items():
        assert main(["export", str(folder), str(tmp_path / name), *options]) == 0
        loaded, _ = load_model(tmp_path / name)
        torch.testing.assert_close(decoder_losses(loaded, tokenizer), scores, rtol=1e-5, atol=0)
        assert outputs(loaded, tokenizer) == wanted
    assert not any("lora" in name for name in load_file(tmp_path / "merged" / "model.safetensors"))
    whole, small = (load_file(path / "model.safetensors") for path in (folder / "model", tmp_path / "trained"))
    assert {name for name in whole if ".lora_" in name} <= small.keys() < whole.keys()


def test_adapters_of_an_export_can_be_trained_further(
    stage: tuple[Document, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that loads adapters keeps their DoRA magnitudes. New magnitudes are the row norms of the loaded weights."""
    document, folder = stage
    whole = load_file(folder / "model" / "model.safetensors")
    continued = start_from(document, folder, BOTH).state_dict()
    assert all(torch.equal(continued[name], tensor) for name, tensor in whole.items())
    with pytest.raises(UserError, match=r"decoder\.lora: .*dora: True, rslora: True"):
        start_from(document, folder, LORA | {"rank": 4})
    assert main(["export", str(folder), str(tmp_path / "merged"), "--merge-lora"]) == 0
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    fresh = start_from(document, tmp_path / "merged", LORA | {"dora": True}).state_dict()
    lengths = merged[f"{QUERIES}.weight"].norm(dim=1)
    torch.testing.assert_close(fresh[f"{QUERIES}.lora_magnitude_vector.default.weight"], lengths)
    first = assemble(parse(document), gather(parse(document)), None)[0].state_dict()
    assert not torch.allclose(first[f"{QUERIES}.lora_magnitude_vector.default.weight"], lengths)
