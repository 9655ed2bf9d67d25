"""A loaded export equals the exported model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

from tests.support.fast import fast_ones
from tests.support.models import JOINT, assemble, losses, outputs
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.export.load import load_model
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.projectors import PROJECTORS


def combinations() -> Iterator[Any]:
    """Yield pairs that contain every encoder and every decoder, each pair with or without adapters."""
    encoders, decoders = ENCODERS.names(), DECODERS.names()
    for lora in (False, True):
        for index in range(max(len(encoders), len(decoders))):
            encoder, decoder = encoders[index % len(encoders)], decoders[(index + lora) % len(decoders)]
            # The fast run has one pair without adapters, because test_combinations.py saves and loads each part.
            marks = [] if lora or index == 0 else [pytest.mark.slow]
            yield pytest.param(
                encoder, decoder, lora, id=f"{encoder}-{decoder}-{'lora' if lora else 'plain'}", marks=marks
            )


@pytest.mark.parametrize(("encoder", "decoder", "lora"), list(combinations()))
def test_a_loaded_model_equals_the_exported_model(tmp_path: Path, encoder: str, decoder: str, lora: bool) -> None:
    model, tokenizer = assemble(encoder, decoder, lora=lora, generation=JOINT)
    export_model(model, tokenizer, tmp_path / "model")
    loaded, loaded_tokenizer = load_model(tmp_path / "model")
    for kind in ("state_dict", "named_buffers", "named_parameters"):
        own, found = dict(getattr(model, kind)()), dict(getattr(loaded, kind)())
        assert own.keys() == found.keys()
        for name, tensor in own.items():
            assert torch.equal(tensor, found[name]), name
    assert any("lora_A.default" in name and "base_layer" not in name for name in own) == lora
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert outputs(loaded, loaded_tokenizer) == outputs(model, tokenizer)
    # On some CPUs, the order of sums, and thus the rounding, depends on the memory addresses of the weights.
    torch.testing.assert_close(losses(loaded, loaded_tokenizer), losses(model, tokenizer), rtol=1e-6, atol=0)


# Only three projectors are in the fast run, because test_combinations.py saves and loads each projector.
@pytest.mark.parametrize("projector", fast_ones(PROJECTORS.names(), "qformer", "ctc_compress", "moe"))
def test_every_projector_can_be_exported_and_loaded(tmp_path: Path, projector: str) -> None:
    model, tokenizer = assemble(projector=projector)
    export_model(model, tokenizer, tmp_path / "model")
    loaded, loaded_tokenizer = load_model(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    # If a matrix product has few columns, the memory alignment of its inputs can change the last bit of the result.
    torch.testing.assert_close(losses(loaded, loaded_tokenizer), losses(model, tokenizer), rtol=1e-6, atol=0)


def test_the_folder_is_complete_and_has_no_base_model(tmp_path: Path) -> None:
    model, tokenizer = assemble(lora=True)
    before = model.config.to_dict()
    export_model(model, tokenizer, tmp_path / "model")
    assert model.config.to_dict() == before
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} < files
    assert {"processor_config.json", "modeling_tiny_audio.py", "pipeline_tiny_audio.py"} < files
    assert "adapter_config.json" not in files
    assert {Path(name).suffix for name in files} <= {".json", ".safetensors", ".py", ".jinja", ".txt"}  # no pickles
    assert all((tmp_path / "model" / name).is_file() for name in files)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "base_model_name_or_path" not in json.dumps(config)
    assert config["generation"]["num_beams"] == 1
    assert config["auto_map"]["AutoModel"] == "modeling_tiny_audio.TinyAudioModel"


def test_attention_of_another_machine_is_not_exported(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    model.config.encoder = {**model.config.encoder, "attention": "flash_attention_2"}
    export_model(model, tokenizer, tmp_path / "model")
    load_model(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["encoder"]["attention"] == "auto"


def test_mixed_types_are_saved_but_loaded_as_one_type(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    model.decoder.to(torch.bfloat16)
    export_model(model, tokenizer, tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in saved.values()} == {"torch.float32", "torch.bfloat16"}
    loaded, _ = load_model(tmp_path / "model")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert outputs(loaded, tokenizer) == outputs(model.float(), tokenizer)
    half = TinyAudioModel.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert outputs(half, tokenizer)["ids"]


def test_types_can_be_restored(tmp_path: Path) -> None:
    """A model that is trained in bf16 has frozen weights in bf16, but trained weights in fp32. Both are restored."""
    model, tokenizer = assemble(lora=True)
    for tensor in model.parameters():
        if not tensor.requires_grad:
            tensor.data = tensor.data.to(torch.bfloat16)
    export_model(model, tokenizer, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model", types_as_saved=True)
    types = {name: tensor.dtype for name, tensor in model.named_parameters()}
    assert len(set(types.values())) == 2
    assert {name: tensor.dtype for name, tensor in loaded.named_parameters()} == types
    with torch.autocast("cpu", torch.bfloat16):
        assert outputs(loaded, tokenizer) == outputs(model, tokenizer)
    export_model(loaded, tokenizer, tmp_path / "again")
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    assert {name: tensor.dtype for name, tensor in again.items()} == {n: tensor.dtype for n, tensor in first.items()}


def test_export_and_loading_print_nothing_and_restore_logging_settings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = assemble()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_info()
    try:
        capfd.readouterr()
        export_model(model, tokenizer, tmp_path / "model")
        load_model(tmp_path / "model")
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
    finally:
        transformers_logging.set_verbosity(verbosity)
    assert transformers_logging.set_tqdm_hook(None) is None
    assert capfd.readouterr() == ("", "")
