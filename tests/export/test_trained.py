"""Exports without base weights, which are loaded from their checkpoints. Merged adapters. The export command."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.encoder_checkpoints import original
from tests.support.hub_cache import COMMIT, repository_in, use_cache
from tests.support.models import GREEDY, TRANSCRIPTS, assemble, change_config, losses, outputs, write_decoder
from tests.support.remote_code import offline, run_alone, run_here
from tiny_audio.cli import main
from tiny_audio.config import UserError
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.decoders import DECODERS, build_tokenizer
from tiny_audio.encoders import ENCODERS
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.export.load import load_model
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.prompt import PromptConfig, build_prompt
from tiny_audio.projectors import PROJECTORS

QUERIES_AND_VALUES = ["q_proj", "v_proj"]
LORA = {"rank": 2, "alpha": 4.0, "targets": QUERIES_AND_VALUES}
EVERY_LAYER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the checkpoints of an encoder and a decoder."""
    folder = tmp_path_factory.mktemp("published")
    original("hubert").save_pretrained(folder / "encoder")
    write_decoder(folder / "decoder")
    return folder


@pytest.fixture
def bases(published: Path, tmp_path: Path) -> dict[str, str]:
    """Copy the checkpoints of ``published``, so that a test may change them. Return the folder of each part."""
    shutil.copytree(published, tmp_path / "bases")
    return {kind: str(tmp_path / "bases" / kind) for kind in ("encoder", "decoder")}


def trained(
    bases: dict[str, str], *, lora: bool = True, targets: Sequence[str] = QUERIES_AND_VALUES, **encoder: Any
) -> tuple[TinyAudioModel, Any]:
    """Return a model with frozen base weights, and its tokenizer. Random trainable matrices imitate training.

    ``targets`` are the layers of the decoder that get adapters.
    """
    adapters = {"lora": LORA} if lora else {}
    own = {"lora": LORA | {"targets": list(targets)}} if lora else {}
    decoder = DECODERS.parse({"name": "smollm3", "pretrained": bases["decoder"], **own})
    tokenizer = build_tokenizer(decoder, TRANSCRIPTS)
    torch.manual_seed(1)
    model = TinyAudioModel.assemble(
        ENCODERS.parse({"name": "hubert", "pretrained": bases["encoder"], **adapters, **encoder}),
        PROJECTORS.entry("swiglu").config.tiny(),  # type: ignore[attr-defined]
        decoder,
        tokenizer=tokenizer,
        prompt=build_prompt(PromptConfig(), tokenizer),
        ctc_vocabulary=CtcVocabulary.of(TRANSCRIPTS),
        generation=GREEDY,
    )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        if parameter.requires_grad and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4 if "lora" not in name else 0.3)
    return model.eval(), tokenizer


@pytest.mark.parametrize("lora", [False, True])
def test_only_trained_weights_are_written(tmp_path: Path, bases: dict[str, str], lora: bool) -> None:
    model, tokenizer = trained(bases, lora=lora)
    export_model(model, tokenizer, tmp_path / "all")
    export_model(model, tokenizer, tmp_path / "trained", weights="trained")
    saved = load_file(tmp_path / "trained" / "model.safetensors")
    frozen = {name for name, tensor in model.named_parameters() if not tensor.requires_grad}
    assert not saved.keys() & frozen
    assert {name for name, tensor in model.named_parameters() if tensor.requires_grad} == saved.keys() & dict(
        model.named_parameters()
    ).keys()
    assert any("lora_A" in name for name in saved) == lora
    references = json.loads((tmp_path / "trained" / "config.json").read_text())["base_weights"]
    assert references["decoder"]["dtype"] == "bfloat16"
    assert references["encoder"]["dtype"] == "float32"
    assert all(len(reference["fingerprint"]) == 64 for reference in references.values())
    whole, _ = load_model(tmp_path / "all")
    loaded, loaded_tokenizer = load_model(tmp_path / "trained")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert outputs(loaded, loaded_tokenizer) == outputs(whole, tokenizer)
    assert any(outputs(loaded, tokenizer)["ids"])


@pytest.mark.parametrize("targets", [QUERIES_AND_VALUES, EVERY_LAYER])
def test_types_of_training_are_restored(tmp_path: Path, bases: dict[str, str], targets: Sequence[str]) -> None:
    """With ``EVERY_LAYER``, most of the decoder's tensors are fp32 adapters, but frozen weights are loaded as bf16."""
    model, tokenizer = trained(bases, targets=targets)
    for tensor in model.parameters():
        if not tensor.requires_grad:
            tensor.data = tensor.data.to(torch.bfloat16)
    export_model(model, tokenizer, tmp_path / "model", weights="trained")
    loaded, _ = load_model(tmp_path / "model", types_as_saved=True)
    for name, tensor in model.named_parameters():
        assert dict(loaded.named_parameters())[name].dtype == tensor.dtype, name
        assert torch.equal(dict(loaded.named_parameters())[name], tensor), name


def test_a_part_without_frozen_weights_is_written_as_a_whole(tmp_path: Path, bases: dict[str, str]) -> None:
    model, tokenizer = trained(bases, lora=False, freeze=False)
    with torch.no_grad():
        for tensor in model.encoder.parameters():
            tensor.add_(0.01)
    export_model(model, tokenizer, tmp_path / "model", weights="trained")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["base_weights"].keys() == {"decoder"}
    shutil.rmtree(bases["encoder"])
    assert outputs(load_model(tmp_path / "model")[0], tokenizer) == outputs(model.float(), tokenizer)


def test_random_parts_need_no_reference(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    export_model(model, tokenizer, tmp_path / "model", weights="trained")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["base_weights"] == {}
    assert outputs(load_model(tmp_path / "model")[0], tokenizer) == outputs(model, tokenizer)


def test_a_loaded_model_is_complete_and_is_saved_completely(tmp_path: Path, bases: dict[str, str]) -> None:
    model, tokenizer = trained(bases)
    export_model(model, tokenizer, tmp_path / "model", weights="trained")
    loaded, _ = load_model(tmp_path / "model")
    loaded.save_pretrained(tmp_path / "again")
    shutil.rmtree(Path(bases["encoder"]).parent)
    again = TinyAudioModel.from_pretrained(tmp_path / "again")
    assert outputs(again, tokenizer) == outputs(loaded, tokenizer)
    half = TinyAudioModel.from_pretrained(tmp_path / "again", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}


def test_the_commit_on_the_hub_is_kept(tmp_path: Path, bases: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The export names a commit, and loads it even after the branch in the local hub cache points to another one."""
    cache = tmp_path / "hub"
    names = {kind: f"somebody/{kind}" for kind in bases}
    for kind, folder in bases.items():
        shutil.copytree(folder, repository_in(cache, names[kind]) / "snapshots" / COMMIT)
    use_cache(monkeypatch, cache)
    model, tokenizer = trained(names)
    export_model(model, tokenizer, tmp_path / "model", weights="trained")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert [config[kind]["revision"] for kind in names] == [COMMIT] * 2
    assert [config["base_weights"][kind]["fingerprint"] for kind in names] == [COMMIT] * 2
    moved = COMMIT[::-1]
    write_decoder(cache / "models--somebody--decoder" / "snapshots" / moved, seed=1)
    (cache / "models--somebody--decoder" / "refs" / "main").write_text(moved)
    assert outputs(load_model(tmp_path / "model")[0], tokenizer) == outputs(model.float(), tokenizer)
    shutil.rmtree(cache / "models--somebody--decoder" / "snapshots" / COMMIT)
    with pytest.raises(UserError, match=rf"smollm3: .*'somebody/decoder' .*{COMMIT}"):
        load_model(tmp_path / "model")


def test_a_changed_checkpoint_is_rejected(tmp_path: Path, bases: dict[str, str]) -> None:
    model, tokenizer = trained(bases)
    export_model(model, tokenizer, tmp_path / "model", weights="trained")
    write_decoder(Path(bases["decoder"]), seed=1)
    with pytest.raises(UserError, match=rf"decoder: '{re.escape(bases['decoder'])}'"):
        load_model(tmp_path / "model")
    with pytest.raises(UserError, match=rf"decoder: .*'{re.escape(bases['decoder'])}'"):
        export_model(model, tokenizer, tmp_path / "other", weights="trained")
    assert not (tmp_path / "other").exists()
    shutil.rmtree(bases["decoder"])
    with pytest.raises(UserError, match=rf"smollm3: .*'{re.escape(bases['decoder'])}'"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("encoder/config.json", '"layer_norm_eps": 1e-05', '"layer_norm_eps": 1e-03'),
        ("decoder/chat_template.jinja", "message", "other"),
        pytest.param("decoder/config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-03', marks=pytest.mark.slow),
        pytest.param("decoder/tokenizer.json", '"added_tokens"', '"added"', marks=pytest.mark.slow),
    ],
)
def test_an_edited_base_folder_is_rejected(
    tmp_path: Path, bases: dict[str, str], file: str, before: str, after: str
) -> None:
    model, tokenizer = trained(bases)
    (Path(bases["decoder"]) / "chat_template.jinja").write_text("{{ message }}")
    export_model(model, tokenizer, tmp_path / "model", weights="trained")
    (tmp_path / "bases" / "decoder" / "README.md").write_text("# Mine")
    load_model(tmp_path / "model")
    path = tmp_path / "bases" / file
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    kind = file.partition("/")[0]
    with pytest.raises(UserError, match=rf"^{kind}: '{re.escape(bases[kind])}'"):
        load_model(tmp_path / "model")


def test_hashes_of_older_exports_are_accepted(tmp_path: Path, bases: dict[str, str]) -> None:
    """In older exports, the hash of a checkpoint covers only its weights."""
    model, tokenizer = trained(bases)
    export_model(model, tokenizer, tmp_path / "model", weights="trained")
    references = json.loads((tmp_path / "model" / "config.json").read_text())["base_weights"]
    for kind, reference in references.items():
        weights = (Path(bases[kind]) / "model.safetensors").read_bytes()
        reference["fingerprint"] = sha256(b"model.safetensors" + sha256(weights).digest()).hexdigest()
    change_config(tmp_path / "model", base_weights=references)
    assert outputs(load_model(tmp_path / "model")[0], tokenizer) == outputs(model.float(), tokenizer)
    write_decoder(Path(bases["decoder"]), seed=1)
    with pytest.raises(UserError, match=rf"^decoder: '{re.escape(bases['decoder'])}'"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    "lost", ["decoder.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "ctc_head.bias"]
)
def test_missing_and_unexpected_keys_are_named(tmp_path: Path, bases: dict[str, str], lost: str) -> None:
    model, tokenizer = trained(bases)
    export_model(model, tokenizer, tmp_path / "model", weights="trained")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    del weights[lost]
    save_file(weights, path, metadata={"format": "pt"})
    expected = (
        rf"\d+ tensors of the decoder, .*\d+ .*'{re.escape(bases['decoder'])}'"
        if "lora" in lost
        else r"missing: ctc_head\.bias"
    )
    for load in (load_model, TinyAudioModel.from_pretrained):
        with pytest.raises(UserError, match=expected):
            load(tmp_path / "model")


def test_a_tensor_that_the_checkpoint_lacks_is_named(tmp_path: Path, bases: dict[str, str]) -> None:
    model, tokenizer = trained(bases)
    export_model(model, tokenizer, tmp_path / "model", weights="trained")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    del weights["decoder.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    references = json.loads((tmp_path / "model" / "config.json").read_text())["base_weights"]
    references["decoder"]["tensors"] += 1
    change_config(tmp_path / "model", base_weights=references)
    with pytest.raises(UserError, match=r"^decoder\.\S+\.lora_A\.default\.weight .*missing"):
        load_model(tmp_path / "model")


# Merged adapters


def test_merged_adapters_compute_the_same(tmp_path: Path, bases: dict[str, str]) -> None:
    model, tokenizer = trained(bases)
    export_model(model, tokenizer, tmp_path / "plain")
    assert main(["export", str(tmp_path / "plain"), str(tmp_path / "merged"), "--merge-lora"]) == 0
    loaded, _ = load_model(tmp_path / "merged")
    plain, _ = load_model(tmp_path / "plain")
    assert not any("lora" in name or "base_layer" in name for name in loaded.state_dict())
    layer = "model.encoder.layers.0.attention.q_proj"
    adapted, merged = (model.encoder.get_submodule(layer).double() for model in (plain, loaded))
    own = torch.randn(50, merged.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(merged(own), adapted(own), rtol=1e-6, atol=1e-6)
    loaded, plain = loaded.float(), plain.float()
    torch.testing.assert_close(losses(loaded, tokenizer), losses(plain, tokenizer), rtol=1e-5, atol=0)
    assert outputs(loaded, tokenizer) == outputs(plain, tokenizer)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["encoder"]["lora"], config["decoder"]["lora"]) == (None, None)
    # Merged weights are in fp32. All other weights keep their type.
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    layer = "decoder.model.model.layers.0.self_attn"
    assert weights[f"{layer}.q_proj.weight"].dtype == torch.float32
    assert weights[f"{layer}.k_proj.weight"].dtype == torch.bfloat16


def test_merged_adapters_can_be_exported_without_base_weights(tmp_path: Path, bases: dict[str, str]) -> None:
    """Merged layers are exported, because they differ from the base checkpoint. All other base layers are left out."""
    model, tokenizer = trained(bases)
    export_model(model, tokenizer, tmp_path / "plain", weights="trained")
    command = ["export", str(tmp_path / "plain"), str(tmp_path / "merged"), "--merge-lora", "--weights", "trained"]
    assert main(command) == 0
    saved = load_file(tmp_path / "merged" / "model.safetensors")
    layer = "decoder.model.model.layers.0.self_attn"
    assert f"{layer}.q_proj.weight" in saved
    assert f"{layer}.k_proj.weight" not in saved
    assert outputs(load_model(tmp_path / "merged")[0], tokenizer) == outputs(
        load_model(tmp_path / "plain")[0], tokenizer
    )


LOAD = """
import json, sys
folders = sys.argv[1:]
from transformers import AutoModel, AutoTokenizer
import importlib.util, numpy as np
for absent in ("tiny_audio", "peft"):
    assert importlib.util.find_spec(absent) is None, absent
generator = np.random.default_rng(0)
clips = [generator.normal(0, 0.1, size).astype(np.float32) for size in (16_000, 9_001)]
results = []
for folder in folders:
    from transformers import AutoProcessor
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    batch = processor(clips)
    texts = [[t.text, t.ctc_text, t.truncated] for t in model.transcribe(**batch, tokenizer=processor.tokenizer)]
    results.append({"ids": model.generate(**batch).tolist(), "transcripts": texts})
print(json.dumps(results))
"""


@pytest.mark.parametrize("start", [run_here, pytest.param(run_alone, marks=pytest.mark.slow)])
def test_exports_load_without_this_package_and_peft(
    start: Callable[..., Any], tmp_path: Path, bases: dict[str, str]
) -> None:
    """The base checkpoints name custom code in ``auto_map``. This code must not run."""
    marker = tmp_path / "ran"
    for folder in bases.values():
        path = Path(folder) / "config.json"
        code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": code}))
        (Path(folder) / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    model, tokenizer = trained(bases)
    export_model(model, tokenizer, tmp_path / "plain")
    export_model(trained(bases, lora=False)[0], tokenizer, tmp_path / "frozen", weights="trained")
    assert main(["export", str(tmp_path / "plain"), str(tmp_path / "merged"), "--merge-lora"]) == 0
    folders = [tmp_path / "merged", tmp_path / "frozen"]
    expected = [outputs(*load_model(folder)) for folder in folders]
    installed = ["torch", "torchaudio", "transformers", "pydantic", "soundfile"]
    results = start(LOAD, *folders, cwd=tmp_path, installed=installed, **offline(tmp_path))
    assert results == expected
    assert not marker.exists()


# The command


def rejected(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["export", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("error: ") == 1
    return printed.err


def test_invalid_arguments_are_rejected(
    tmp_path: Path, bases: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    there, to = str(tmp_path / "model"), str(tmp_path / "to")
    assert f"{there}: no such folder" in rejected(capsys, there, to)
    model, tokenizer = trained(bases)
    export_model(model, tokenizer, tmp_path / "model")
    assert "--weights some" in rejected(capsys, there, to, "--weights", "some")
    assert "is the folder of the model itself" in rejected(capsys, there, there)
    assert f"{bases['encoder']} exists" in rejected(capsys, there, bases["encoder"])
    assert "model_type 'hubert'" in rejected(capsys, bases["encoder"], to)
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert "the weights cannot be read" in rejected(capsys, there, to)
    save_file({"a": torch.zeros(1)}, weights, metadata={"format": "pt"})
    assert "the weights do not match config.json: missing: " in rejected(capsys, there, to)
    weights.write_bytes(whole)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "state.json").write_text("{}")
    assert "run: this run has no model yet" in rejected(capsys, str(run_folder), to)
    shutil.copytree(tmp_path / "model", run_folder / "model")
    (run_folder / "report.json").write_text("{}")
    assert "report.json: damaged, or written by another version: KeyError: 'recipe'" in rejected(
        capsys, str(run_folder), to
    )
    assert not Path(to).exists()


def test_the_card_is_copied(tmp_path: Path, bases: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = trained(bases, lora=False)
    export_model(model, tokenizer, tmp_path / "model", card="# Mine\n")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "to"), "--merge-lora"]) == 0
    assert (tmp_path / "to" / "README.md").read_text() == "# Mine\n"
    assert "MB; adapters of 0 layers merged\n" in capsys.readouterr().out
    (tmp_path / "model" / "README.md").write_bytes("# Zürich".encode("latin-1"))
    assert f"{tmp_path / 'model' / 'README.md'}: not a text in UTF-8" in rejected(
        capsys, str(tmp_path / "model"), str(tmp_path / "other")
    )
