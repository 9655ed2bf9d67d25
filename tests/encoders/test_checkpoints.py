"""Encoders from every kind of published checkpoint. Each encoder gets all tensors that the original encoder has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.support.encoder_checkpoints import FAMILIES, GROUP_NORM, WAVEFORM_FAMILIES, bare, build, original
from tests.support.fast import fast_ones
from tests.support.messages import assert_names
from tests.support.part_checkpoints import change
from tiny_audio.config import UserError
from tiny_audio.encoders import ENCODERS, EncoderContext
from tiny_audio.pretrained.checkpoints import published_architecture

KINDS = [
    *((name, None) for name in FAMILIES),
    ("wav2vec2", "Wav2Vec2ForPreTraining"),
    ("parakeet", "ParakeetForRNNT"),
    ("parakeet", "ParakeetForTDT"),
]

DIFFERENT = ("hubert", "parakeet", "granite-speech")
"""The families in the fast run of tests whose code is the same for all families. HuBERT reads waveforms, Parakeet has a
log-mel front end, and a checkpoint of Granite Speech contains a whole speech language model."""


def assert_loads(folder: Path, name: str, model: Any, **fields: Any) -> None:
    """Check that all tensors of the original encoder are loaded, except the mask vector for SpecAugment."""
    own, its = build(name, folder, **fields).state_dict(), model.state_dict()
    its.pop("masked_spec_embed", None)
    assert own.keys() == {f"model.{key}" for key in its}
    for key, tensor in its.items():
        assert torch.equal(own[f"model.{key}"], tensor), key


@pytest.mark.parametrize(("name", "head"), KINDS)
def test_checkpoints_with_a_head_or_decoder(tmp_path: Path, name: str, head: str | None) -> None:
    whole = original(name, head)
    whole.save_pretrained(tmp_path)
    saved, model = load_file(tmp_path / "model.safetensors"), bare(name, whole)
    assert len(saved) > len(model.state_dict()), "the checkpoint also contains a head or a decoder"
    assert_loads(tmp_path, name, model)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "whisper"])
def test_checkpoints_of_the_encoder_only(tmp_path: Path, name: str) -> None:
    model = bare(name, original(name))
    model.save_pretrained(tmp_path)
    assert_loads(tmp_path, name, model)


def test_the_first_layers_of_whisper_without_a_head(tmp_path: Path) -> None:
    """A checkpoint of WhisperModel has keys without the prefix ``model.``."""
    original("whisper").model.save_pretrained(tmp_path)
    assert any(key.startswith("encoder.layers.1.") for key in load_file(tmp_path / "model.safetensors"))
    assert len(build("whisper", tmp_path, layer=1).model.layers) == 1


@pytest.mark.parametrize("name", WAVEFORM_FAMILIES)
def test_base_checkpoints(tmp_path: Path, name: str) -> None:
    whole = original(name, **GROUP_NORM)
    whole.save_pretrained(tmp_path)
    assert_loads(tmp_path, name, bare(name, whole))


@pytest.mark.parametrize("name", WAVEFORM_FAMILIES)
def test_weight_norm_with_its_old_names(tmp_path: Path, name: str) -> None:
    """Most released checkpoints of these families are pickles. The tensors of their weight norm have the names of older
    versions of torch."""
    whole = original(name)
    whole.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        key = f"{whole.base_model_prefix}.encoder.pos_conv_embed.conv"
        tensors[f"{key}.{old}"] = tensors.pop(f"{key}.parametrizations.weight.{new}")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert_loads(tmp_path, name, bare(name, whole))


@pytest.mark.parametrize("name", fast_ones(FAMILIES, *DIFFERENT))
def test_an_unexpected_tensor_is_named(tmp_path: Path, name: str) -> None:
    original(name).save_pretrained(tmp_path)
    change(tmp_path, lambda tensors: tensors.update({"extra.weight": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"; 1 unexpected: extra\.weight; "):
        build(name, tmp_path)


@pytest.mark.parametrize("name", fast_ones(FAMILIES, *DIFFERENT))
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    original(name).save_pretrained(tmp_path)
    key = next(key for key in load_file(tmp_path / "model.safetensors") if "layers.1." in key and "decoder" not in key)
    change(tmp_path, lambda tensors: tensors.pop(key))
    with pytest.raises(UserError, match=r"; 1 missing: \S*layers\.1\."):
        build(name, tmp_path)


def test_missing_statistics_of_a_batch_norm_are_named(tmp_path: Path) -> None:
    original("parakeet").save_pretrained(tmp_path)
    change(tmp_path, lambda tensors: tensors.pop("encoder.layers.0.conv.norm.running_mean"))
    with pytest.raises(UserError, match=r"1 missing: layers\.0\.conv\.norm\.running_mean"):
        build("parakeet", tmp_path)


def test_training_does_not_change_statistics_of_a_batch_norm(tmp_path: Path) -> None:
    original("parakeet").save_pretrained(tmp_path)
    encoder = build("parakeet", tmp_path, freeze=False).train()
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    encoder(torch.randn(2, 16_000), torch.tensor([16_000, 9_000])).values.sum().backward()
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "hubert"])
def test_a_checkpoint_of_another_family_is_rejected(tmp_path: Path, name: str) -> None:
    original("hubert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))} .*'hubert' .*'[\w-]+'"):
        build(name, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{}", "parakeet: .*config.json .*model_type"),
        ('{"model_type": "parakeet_ctc", "encoder_config": {"model_type": "parakeet_encoder", "hidden_size": "x"}}',
         "parakeet: .*'hidden_size'"),
    ],
)  # fmt: skip
def test_a_damaged_config_of_a_whole_recognizer_is_an_error(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=message):
        build("parakeet", tmp_path)


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "w2v-bert"])
def test_checkpoints_with_add_adapter_are_rejected(tmp_path: Path, name: str) -> None:
    original(name, add_adapter=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path))}: add_adapter .*{name}"):
        build(name, tmp_path)
    config = ENCODERS.parse({"name": name, "init": "random", "overrides": {"add_adapter": True}})
    with pytest.raises(UserError, match=f"^{name}: add_adapter "):
        ENCODERS.build(config, EncoderContext())


# --- fields


@pytest.mark.parametrize(
    ("name", "attention", "allowed"),
    [
        ("wavlm", "flash_attention_2", "auto, sdpa"),
        ("wavlm", "eager", "auto, sdpa"),
        ("w2v-bert", "flash_attention_2", "auto, sdpa, eager"),
        ("parakeet", "flash_attention_2", "auto, sdpa, eager"),
        ("granite-speech", "eager", "auto, sdpa"),
    ],
)
def test_unsupported_attention_is_rejected(name: str, attention: str, allowed: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ENCODERS.parse({"name": name, "attention": attention})
    assert_names(caught.value, f"attention: {name} {attention}; {allowed}")


@pytest.mark.parametrize("name", ["hubert", "wav2vec2", "whisper", "qwen3-asr"])
def test_families_with_flash_attention(name: str) -> None:
    """Both transformers and the family's config state that these families support Flash Attention."""
    model = bare(name, original(name))
    assert model._supports_flash_attn
    assert "flash_attention_2" in ENCODERS.entry(name).config.attentions


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_on_unknown_layers_are_rejected(name: str) -> None:
    lora = {"rank": 2, "alpha": 4.0, "targets": ["query"]}
    with pytest.raises(ValidationError) as caught:
        ENCODERS.parse({"name": name, "lora": lora})
    assert_names(caught.value, f"lora.targets: {name} 'query'; Allowed:")


@pytest.mark.parametrize("name", fast_ones(FAMILIES, *DIFFERENT))
def test_adapters_can_name_a_layer(tmp_path: Path, name: str) -> None:
    original(name).save_pretrained(tmp_path)
    attention = "attention" if name in WAVEFORM_FAMILIES else "self_attn"
    special = {"w2v-bert": "self_attn.linear_q", "granite-speech": "attn.to_q"}
    target = f"layers.1.{special.get(name, f'{attention}.q_proj')}"
    encoder = build(name, tmp_path, lora={"rank": 2, "alpha": 4.0, "targets": [target]})
    trainable = [key for key, tensor in encoder.named_parameters() if tensor.requires_grad]
    assert len(trainable) == 2
    assert all(target in key for key in trainable)


# --- without weights


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        pytest.param(name, layer, marks=[] if layer == 1 or name == "whisper" else [pytest.mark.slow])
        for name in FAMILIES
        for layer in ("last", 1, "weighted")
    ],
)
def test_an_encoder_can_be_built_from_a_config_only(tmp_path: Path, name: str, layer: str | int) -> None:
    """Commands that show or plan a recipe build the encoder without weights, on the meta device."""
    original(name).save_pretrained(tmp_path)
    config = ENCODERS.parse({"name": name, "pretrained": str(tmp_path), "layer": layer})
    architecture = published_architecture(config)
    assert architecture is not None
    (tmp_path / "model.safetensors").rename(tmp_path / "later")
    with torch.device("meta"):
        planned = ENCODERS.build(config, EncoderContext(architecture))
    assert {tensor.device.type for tensor in planned.parameters()} == {"meta"}
    (tmp_path / "later").rename(tmp_path / "model.safetensors")
    loaded = build(name, tmp_path, layer=layer)
    shapes = [{key: tensor.shape for key, tensor in part.state_dict().items()} for part in (planned, loaded)]
    assert shapes[0] == shapes[1]
    assert (planned.dim, planned.frame_rate) == (loaded.dim, loaded.frame_rate)
