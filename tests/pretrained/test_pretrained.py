"""Loading of checkpoints from folders. If a tensor is missing or unexpected, the error names the tensor."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.support.messages import assert_names
from tests.support.part_checkpoints import assert_same_tensors, change, decoder, encoder, hubert, smollm3, whisper
from tiny_audio.config import UserError
from tiny_audio.decoders import DECODERS, DecoderContext
from tiny_audio.encoders import ENCODERS, EncoderContext
from tiny_audio.pretrained.building import attention_implementation
from tiny_audio.pretrained.checkpoints import published_architecture

LAYER = "hubert.encoder.layers.0.attention.q_proj.weight"


# --- checkpoints that load


def test_hubert_from_a_checkpoint_with_a_ctc_head(tmp_path: Path) -> None:
    model = hubert(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {"lm_head.weight", "hubert.masked_spec_embed"} <= saved.keys(), "released checkpoints have these tensors"
    assert_same_tensors(encoder("hubert", tmp_path).model, model.hubert)  # type: ignore[arg-type]


def test_hubert_from_a_checkpoint_without_a_head(tmp_path: Path) -> None:
    model = hubert(tmp_path / "whole").hubert
    model.save_pretrained(tmp_path / "bare")
    assert "masked_spec_embed" in load_file(tmp_path / "bare" / "model.safetensors")
    assert_same_tensors(encoder("hubert", tmp_path / "bare").model, model)  # type: ignore[arg-type]


def test_hubert_in_the_format_of_the_released_checkpoints(tmp_path: Path) -> None:
    """The released checkpoints are pickles. Their weight norm has the tensor names of older versions of torch."""
    model = hubert(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        key = "hubert.encoder.pos_conv_embed.conv"
        tensors[f"{key}.{old}"] = tensors.pop(f"{key}.parametrizations.weight.{new}")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert_same_tensors(encoder("hubert", tmp_path).model, model.hubert)  # type: ignore[arg-type]


def test_the_encoder_of_a_whole_whisper_checkpoint(tmp_path: Path) -> None:
    model = whisper(tmp_path)
    assert_same_tensors(encoder("whisper", tmp_path).model, model.model.encoder)  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [True, False])
def test_smollm3_can_be_loaded(tmp_path: Path, tied: bool) -> None:
    model = smollm3(tmp_path, tie_word_embeddings=tied)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    loaded: Any = decoder(tmp_path)
    assert_same_tensors(loaded.model, model)
    weights = loaded.model.get_input_embeddings().weight, loaded.model.get_output_embeddings().weight
    assert (weights[0] is weights[1]) is tied


def test_tied_embeddings_can_be_stored_twice(tmp_path: Path) -> None:
    smollm3(tmp_path)
    change(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    loaded: Any = decoder(tmp_path)
    assert loaded.model.get_input_embeddings().weight is loaded.model.get_output_embeddings().weight
    assert loaded.architecture()["tie_word_embeddings"] is True


def test_a_head_that_differs_from_tied_embeddings_is_kept(tmp_path: Path) -> None:
    """The config says that the head is tied to the embeddings, but the checkpoint has different weights for it. A
    decoder that is built from the config must not lose these weights."""
    smollm3(tmp_path)
    change(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
    loaded: Any = decoder(tmp_path)
    config = DECODERS.parse({"name": "smollm3", "pretrained": str(tmp_path)})
    rebuilt: Any = DECODERS.build(config, DecoderContext(None, json.loads(json.dumps(loaded.architecture()))))
    rebuilt.load_state_dict(loaded.state_dict())
    assert_same_tensors(rebuilt, loaded)
    assert not torch.equal(loaded.model.get_input_embeddings().weight, loaded.model.get_output_embeddings().weight)


def test_frozen_weights_keep_their_type_and_trained_weights_are_float32(tmp_path: Path) -> None:
    smollm3(tmp_path / "whole").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert {tensor.dtype for tensor in decoder(tmp_path / "half").parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in decoder(tmp_path / "half", freeze=False).parameters()} == {torch.float32}


def test_dropout_probabilities_come_from_the_recipe(tmp_path: Path) -> None:
    noisy = {"hidden_dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3, "feat_proj_dropout": 0.3}
    hubert(tmp_path, **noisy, layerdrop=0.5, mask_time_prob=0.4, mask_feature_prob=0.4)
    torch.manual_seed(0)
    audio, lengths = 0.1 * torch.randn(2, 16_000), torch.tensor([16_000, 9_000])
    part: Any = encoder("hubert", tmp_path, freeze=False)
    with torch.no_grad():
        still, trained = part.eval()(audio, lengths).values, part.train()(audio, lengths).values
    assert torch.equal(still, trained)
    config = part.model.config
    assert {getattr(config, name) for name in (*noisy, "final_dropout", "layerdrop", "mask_time_prob")} == {0.0}
    part = encoder("hubert", tmp_path, freeze=False, dropout=0.2)
    assert {getattr(part.model.config, name) for name in (*noisy, "final_dropout")} == {0.2}
    assert part.model.config.layerdrop == 0.0


def test_a_part_can_be_rebuilt_without_its_checkpoint(tmp_path: Path) -> None:
    hubert(tmp_path / "moved")
    built = encoder("hubert", tmp_path / "moved")
    architecture = json.loads(json.dumps(built.architecture()))
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    config = ENCODERS.parse({"name": "hubert", "pretrained": str(tmp_path / "moved")})
    rebuilt = ENCODERS.build(config, EncoderContext(architecture))
    assert rebuilt.state_dict().keys() == built.state_dict().keys()


def test_loading_does_not_report_unused_tensors(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hubert(tmp_path)
    capfd.readouterr()
    encoder("hubert", tmp_path)
    printed = capfd.readouterr()
    assert "LOAD REPORT" not in printed.out + printed.err


# --- adapters


def test_adapters_are_added_to_the_targets(tmp_path: Path) -> None:
    smollm3(tmp_path)
    part = decoder(tmp_path, lora={"rank": 3, "alpha": 6.0, "targets": ["q_proj", "k_proj"]})
    trainable = {name: tensor for name, tensor in part.named_parameters() if tensor.requires_grad}
    # 2 layers, 32 channels, rank 3. A layer has 4 query heads and 2 key heads with 8 channels each.
    assert sum(tensor.numel() for tensor in trainable.values()) == 2 * 3 * ((32 + 32) + (32 + 16))
    assert sorted(trainable) == sorted(
        f"model.model.layers.{layer}.self_attn.{target}.lora_{side}.default.weight"
        for layer in (0, 1)
        for target in ("q_proj", "k_proj")
        for side in "AB"
    )
    plain = decoder(tmp_path)
    tokens = torch.arange(3, 9)[None]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        before = plain(plain.embed(tokens), mask, mask)
        assert torch.equal(part(part.embed(tokens), mask, mask), before), "new adapters change nothing"
        for name, tensor in trainable.items():
            if "lora_B" in name:
                tensor.fill_(0.1)
        assert not torch.equal(part(part.embed(tokens), mask, mask), before)


def test_targets_can_be_the_end_of_a_path(tmp_path: Path) -> None:
    hubert(tmp_path)
    lora = {"rank": 2, "alpha": 2.0, "targets": ["layers.1.attention.q_proj", "output_dense"]}
    part = encoder("hubert", tmp_path, lora=lora)
    adapted = {name.split(".lora_")[0] for name, tensor in part.named_parameters() if tensor.requires_grad}
    assert adapted == {
        "model.encoder.layers.1.attention.q_proj",
        "model.encoder.layers.0.feed_forward.output_dense",
        "model.encoder.layers.1.feed_forward.output_dense",
    }


@pytest.mark.parametrize(
    ("target", "hint"),
    [("qproj", "did you mean 'q_proj'? "), ("nowhere.k_proj", "did you mean 'down_proj'? "), ("self_attn", "")],
)
def test_unknown_targets_are_rejected(tmp_path: Path, target: str, hint: str) -> None:
    smollm3(tmp_path)
    allowed = "Allowed: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    lora = {"rank": 2, "alpha": 2.0, "targets": ["k_proj", target]}
    if "." not in target:  # SmolLM3's layers are known, so the config rejects the target
        with pytest.raises(ValidationError) as refused:
            decoder(tmp_path, lora=lora)
        assert_names(refused.value, f"lora.targets: smollm3 {target!r}; {hint}{allowed.replace('lm_head, ', '')}")
    with pytest.raises(UserError) as caught:
        decoder(tmp_path, name="causal_lm", lora=lora)
    assert_names(caught.value, f"lora.targets: {target!r}; {hint}{allowed}")


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        (
            {"freeze": False, "lora": {"rank": 2, "alpha": 2.0, "targets": ["q_proj"]}},
            "lora freeze: true",
        ),
        (
            {"overrides": {"hidden_size": 32}},
            "overrides init: random",
        ),
        (
            {"train_front_end": True},
            "train_front_end freeze: true",
        ),
        ({"lora": {"rank": 2, "alpha": 2.0, "targets": []}}, "at least 1 item"),
    ],
)
def test_contradicting_fields_are_rejected(fields: dict[str, Any], values: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ENCODERS.parse({"name": "hubert", **fields})
    assert_names(caught.value, values)


# --- checkpoints that do not load


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    hubert(tmp_path)
    change(tmp_path, lambda tensors: tensors.pop(LAYER))
    with pytest.raises(UserError) as caught:
        encoder("hubert", tmp_path)
    assert_names(caught.value, f"{tmp_path} HubertModel; 1 missing: encoder.layers.0.attention.q_proj.weight;")


def test_unexpected_tensors_are_named(tmp_path: Path) -> None:
    hubert(tmp_path)
    more = {f"hubert.extra.{index}": torch.zeros(1) for index in range(7)}
    change(tmp_path, lambda tensors: tensors.update(more))
    names = ", ".join(f"hubert.extra.{index}" for index in range(5))
    with pytest.raises(UserError, match=re.escape(f"; 7 unexpected: {names}, …; ")):
        encoder("hubert", tmp_path)


def test_a_tensor_with_another_shape_is_named(tmp_path: Path) -> None:
    hubert(tmp_path)
    change(tmp_path, lambda tensors: tensors.update({LAYER: torch.zeros(3, 5)}))
    message = "encoder.layers.0.attention.q_proj.weight [3, 5] instead of [32, 32]; "
    with pytest.raises(UserError, match=re.escape(message)):
        encoder("hubert", tmp_path)


def test_a_missing_head_is_an_error_unless_it_is_tied(tmp_path: Path) -> None:
    """This head is not tied, so its tensor is required. A tied head has the weights of the embeddings."""
    smollm3(tmp_path, tie_word_embeddings=False)
    change(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"SmolLM3ForCausalLM; 1 missing: lm_head\.weight; "):
        decoder(tmp_path)


def test_a_checkpoint_of_another_family_is_rejected(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whisper(tmp_path)
    message = rf"^{re.escape(str(tmp_path))} .*'whisper'.*'hubert'"
    capfd.readouterr()
    with pytest.raises(UserError, match=message):
        encoder("hubert", tmp_path)
    assert capfd.readouterr().err == "", "transformers must not print its own warning"
    architecture = published_architecture(ENCODERS.parse({"name": "hubert", "pretrained": str(tmp_path)}))
    with pytest.raises(UserError, match=message):
        ENCODERS.build(ENCODERS.parse({"name": "hubert", "pretrained": str(tmp_path)}), EncoderContext(architecture))


@pytest.mark.parametrize("path", ["/no/such/folder", "./no/such/folder", "~/no/such/folder"])
def test_a_missing_folder_is_an_error(path: str) -> None:
    with pytest.raises(UserError, match=f"^hubert: .*{re.escape(repr(os.path.expanduser(path)))}"):
        encoder("hubert", path)


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    message = rf"^hubert: {re.escape(repr(str(tmp_path)))} .*config\.json .*model_type"
    for content in (None, "{}"):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=message):
            encoder("hubert", tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b'{"model_type": "hubert", "hidden_size": "wide"}', "'hidden_size'"),
        ("config.json", b"{", "JSON"),
        ("config.json", b"[]", "config\\.json.*list"),
        ("config.json", b"", "JSON"),
        ("model.safetensors", b"abc", "safetensors"),
        ("model.safetensors", None, r"model\.safetensors"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    hubert(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=f"^hubert: .*{re.escape(str(tmp_path))}.*{message}.*[Dd]ownload"):
        encoder("hubert", tmp_path)


@pytest.mark.parametrize("size", [0x3C20, 0x3C3C], ids=[" <", "<<"])
def test_a_safetensors_file_can_begin_like_a_web_page(tmp_path: Path, size: int) -> None:
    """The first 8 bytes of the file are the size of its header. For some sizes, they begin with "<"."""
    hubert(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(size.to_bytes(8, "little") + content[8:end].ljust(size) + content[end:])
    assert path.read_bytes().lstrip()[:1] == b"<"
    encoder("hubert", tmp_path)


@pytest.mark.parametrize("content", [b"<a>", b"<html>", b"\n <!doctype html><html>", b"<script>{}</script>"])
def test_web_pages_under_the_name_of_weights_are_named(tmp_path: Path, content: bytes) -> None:
    hubert(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is a web page"):
        encoder("hubert", tmp_path)


# --- random weights


def test_unknown_overrides_are_rejected() -> None:
    config = ENCODERS.parse({"name": "hubert", "init": "random", "overrides": {"hiden_size": 32}})
    with pytest.raises(UserError) as caught:
        ENCODERS.build(config, EncoderContext())
    assert_names(caught.value, "overrides: HubertConfig 'hiden_size'; 'hidden_size'")


def test_overrides_that_do_not_fit_together_are_rejected() -> None:
    """Each value is valid, but Whisper's width must be a multiple of the number of heads."""
    tiny: Any = ENCODERS.entry("whisper").config.tiny()
    config = ENCODERS.parse({"name": "whisper", "init": "random", "overrides": {**tiny.overrides, "d_model": 7}})
    message = "^overrides .*: embed_dim must be divisible by num_heads"
    for device in ("cpu", "meta"):
        with torch.device(device), pytest.raises(UserError, match=message):
            ENCODERS.build(config, EncoderContext())


def test_invalid_overrides_are_rejected() -> None:
    config = ENCODERS.parse({"name": "hubert", "init": "random", "overrides": {"conv_dim": [16, 16]}})
    with pytest.raises(UserError, match=r"^overrides .*HubertConfig: Configuration for conv"):
        ENCODERS.build(config, EncoderContext())
    config = ENCODERS.parse({"name": "hubert", "init": "random", "overrides": {"hidden_size": "wide"}})
    with pytest.raises(UserError, match=r"^overrides .*HubertConfig: .*'hidden_size'"):
        ENCODERS.build(config, EncoderContext())


def test_only_pretrained_parts_have_a_published_architecture(tmp_path: Path) -> None:
    hubert(tmp_path)
    assert published_architecture(ENCODERS.entry("hubert").config.tiny()) is None  # type: ignore[attr-defined]
    architecture = published_architecture(ENCODERS.parse({"name": "hubert", "pretrained": str(tmp_path)}))
    assert architecture is not None
    assert architecture["hidden_size"] == 32
    with torch.device("meta"):
        built = ENCODERS.build(
            ENCODERS.parse({"name": "hubert", "pretrained": str(tmp_path)}), EncoderContext(architecture)
        )
    assert built.dim == 32
    assert {tensor.device.type for tensor in built.parameters()} == {"meta"}


def test_a_missing_flash_attention_is_named() -> None:
    config: Any = ENCODERS.parse({"name": "hubert", "attention": "flash_attention_2"})
    if torch.cuda.is_available():
        pytest.skip("this test is for machines without a GPU")
    with pytest.raises(UserError, match=r"^attention: flash_attention_2 .*flash-attn"):
        attention_implementation(config)
    assert attention_implementation(config.model_copy(update={"attention": "auto"})) == "sdpa"
    assert attention_implementation(config.model_copy(update={"attention": "eager"})) == "eager"
