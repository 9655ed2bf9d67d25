"""The part of `examples/vllm` that does not need vLLM: the config of an export, and the number of audio embeddings.

Tests that need vLLM are in `examples/vllm/tests`.
"""

from __future__ import annotations

import ast
import importlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.models import assemble
from tests.support.paths import ROOT
from tiny_audio.export.formats.huggingface import export_model

pytestmark = pytest.mark.usefixtures("one_thread")
PACKAGE = ROOT / "examples" / "vllm"


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE))


@pytest.fixture(scope="module")
def model() -> Any:
    return assemble()[0]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "model"
    export_model(*assemble(), folder)
    return folder


def config(folder: Path) -> Any:
    return importlib.import_module("tiny_audio_vllm.config").TinyAudioConfig.from_pretrained(folder)


def test_the_entry_point_exists() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    module, function = project["entry-points"]["vllm.general_plugins"]["tiny_audio"].split(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert not [name for name in project["dependencies"] if name.startswith("tiny-audio")]


def test_the_package_does_not_import_tiny_audio() -> None:
    """vLLM and tiny_audio need different versions of torch. The plugin needs only the code in the export."""
    files = list((PACKAGE / "tiny_audio_vllm").glob("*.py"))
    assert len(files) >= 5
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "tiny_audio" not in {name.split(".")[0] for name in names}, path.name


def test_the_config_has_prompt_and_decoder(export: Path, model: Any) -> None:
    found = config(export)
    prefix, suffix = model.config.prompt_prefix_ids, model.config.prompt_suffix_ids
    assert found.prompt_ids == [*prefix, found.audio_token_id, *suffix]
    assert found.audio_token_id not in {*prefix, *suffix, model.config.end_token_id}
    assert 0 <= found.audio_token_id < found.text_config.vocab_size
    assert found.get_text_config().architectures == ["SmolLM3ForCausalLM"]
    assert found.text_config.hidden_size == model.decoder.dim


@pytest.mark.parametrize(
    "changes",
    [
        {"base_weights": {"encoder": {}}},
        {"decoder": {"name": "smollm3", "lora": {"rank": 2}}},
        {"decoder_architecture": {"model_type": "whisper_encoder"}},
    ],
    ids=str,
)
def test_exports_that_vllm_cannot_load_are_rejected(export: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    document = json.loads((export / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(document | changes))
    with pytest.raises(ValueError, match=r"merge-lora|whisper_encoder"):
        config(tmp_path)


def test_there_are_as_many_placeholders_as_embeddings(export: Path, model: Any) -> None:
    parts = importlib.import_module("tiny_audio_vllm.parts").parts_for_counting(str(export), None)
    for num_samples in (800, 16_000, 31_999):
        waveform = torch.zeros(1, num_samples)
        with torch.no_grad():
            _, lengths = model.projector(model.encode(waveform, torch.tensor([num_samples])))
        assert parts.num_embeddings(num_samples) == int(lengths[0])
    assert {parameter.device.type for parameter in parts.encoder.parameters()} == {"meta"}
