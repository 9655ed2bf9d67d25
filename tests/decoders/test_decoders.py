"""Decoders from checkpoints with various tokenizers, and causal language models that are rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError

from tests.support import checkpoint_folders
from tests.support.chat_tokenizers import chat_tokenizer
from tests.support.fast import fast_ones
from tests.support.messages import assert_names
from tiny_audio.config import UserError
from tiny_audio.decoders import (
    DECODERS,
    Decoder,
    DecoderConfig,
    DecoderContext,
    _causal_lm,
    build_tokenizer,
    load_tokenizer,
)
from tiny_audio.decoders._causal_lm import configure_dropout, undecodable_ids
from tiny_audio.encoders import ENCODERS
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.prompt import PromptConfig, build_prompt
from tiny_audio.projectors import PROJECTORS

LLAMA: dict[str, Any] = checkpoint_folders.LLAMA | {"tie_word_embeddings": True}
FAMILIES = {
    "smollm2": ("smollm2", "LlamaForCausalLM", {}),
    "smollm3": ("smollm3", "SmolLM3ForCausalLM", {}),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", {"head_dim": 8}),
    "llama": ("llama", "LlamaForCausalLM", {}),
    "gemma3": ("gemma3", "Gemma3ForCausalLM", {"head_dim": 8, "sliding_window": 16, "sliding_window_pattern": 2}),
    "gemma2": ("causal_lm", "Gemma2ForCausalLM", {"head_dim": 8, "sliding_window": 16}),
    "mistral": ("causal_lm", "MistralForCausalLM", {"sliding_window": 16}),
    "pythia": ("causal_lm", "GPTNeoXForCausalLM", {}),
}
SPARE = 7
"""Number of rows in the embedding table for which the tokenizer has no token."""


def checkpoint(family: str, folder: Path, **fields: Any) -> DecoderConfig:
    """Write a random checkpoint with a tokenizer and unusual generation settings. Return the config of its decoder.

    The embedding table has :data:`SPARE` unused rows.
    """
    name, class_name, own = FAMILIES[family]
    tokenizer = chat_tokenizer(family, folder)
    model_class = getattr(transformers, class_name)
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "bos", "eos")}
    sizes = {key: value for key, value in LLAMA.items() if class_name != "GPTNeoXForCausalLM" or "key_value" not in key}
    torch.manual_seed(0)
    architecture = model_class.config_class(**sizes | own | ids | {"vocab_size": len(tokenizer) + SPARE} | fields)
    model = model_class(architecture)
    model.save_pretrained(folder)
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.3, "max_new_tokens": 3}
    (folder / "generation_config.json").write_text(json.dumps(sampling | {"eos_token_id": [0, 1, 2]}))
    return DECODERS.parse({"name": name, "pretrained": str(folder)})


def built(config: DecoderConfig) -> Decoder:
    torch.manual_seed(0)
    return DECODERS.build(config, DecoderContext(build_tokenizer(config, ()))).eval()


def assembled(config: DecoderConfig, max_new_tokens: int = 4) -> tuple[TinyAudioModel, Any]:
    tokenizer = build_tokenizer(config, ())
    torch.manual_seed(0)
    model = TinyAudioModel.assemble(
        ENCODERS.entry("whisper").config.tiny(),  # type: ignore[attr-defined]
        PROJECTORS.entry("swiglu").config.tiny(),  # type: ignore[attr-defined]
        config,
        tokenizer=tokenizer,
        prompt=build_prompt(PromptConfig(system="You are a machine.", user="Transcribe: {audio}"), tokenizer),
        generation=GenerationConfig(max_new_tokens=max_new_tokens),
    )
    return model.eval(), tokenizer


def audio(*sizes: int) -> tuple[torch.Tensor, torch.Tensor]:
    waveforms = 0.1 * torch.randn(len(sizes), max(sizes), generator=torch.Generator().manual_seed(1))
    return waveforms, torch.tensor(sizes)


# --- families with their kinds of tokenizers


@pytest.mark.parametrize("family", fast_ones(["smollm2", "llama", "gemma3", "pythia"], "smollm2", "gemma3"))
def test_a_decoder_learns_transcripts_and_their_end_and_can_be_saved(family: str, tmp_path: Path) -> None:
    """In some families, the pad token is also the end token. If labels with the id of the pad token were masked, the
    model would never learn to end a transcript."""
    config = checkpoint(family, tmp_path / "checkpoint")
    trained = type(config).model_validate({**config.model_dump(), "freeze": False}, strict=False)
    model, tokenizer = assembled(trained, max_new_tokens=20)
    waveforms, lengths = audio(16_000, 9_001)
    texts = ["hello there", "how are you"]
    end = model.config.end_token_id
    targets = [torch.tensor([*tokenizer.encode(text, add_special_tokens=False), end]) for text in texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(waveforms, lengths, targets).decoder_loss.sum() / sum(map(len, targets))
        loss.backward()
        optimizer.step()
        if loss < 0.1:
            break
    found = model.transcribe(waveforms, lengths, tokenizer)
    assert [(row.text, row.truncated) for row in found] == [(text, False) for text in texts]

    model.save_pretrained(tmp_path / "saved")
    rebuilt = TinyAudioModel.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        wanted = model(waveforms, lengths, targets).decoder_loss
        assert torch.equal(rebuilt(waveforms, lengths, targets).decoder_loss, wanted)
    assert [row.text for row in rebuilt.transcribe(waveforms, lengths, tokenizer)] == texts


@pytest.mark.parametrize("family", fast_ones(FAMILIES, "smollm3", "gemma3", "pythia"))
def test_ids_that_cannot_be_decoded_are_never_generated(family: str, tmp_path: Path) -> None:
    config = checkpoint(family, tmp_path)
    tokenizer = build_tokenizer(config, ())
    size = len(tokenizer)
    decoder: Any = built(config)
    assert decoder.architecture()["undecodable_ids"] == [[size, size + SPARE]]
    again: Any = DECODERS.build(config, DecoderContext(None, json.loads(json.dumps(decoder.architecture())))).eval()
    again.load_state_dict(decoder.state_dict())
    embeddings = decoder.embed(torch.arange(12)[None])
    mask = torch.ones(1, 12, dtype=torch.bool)
    with torch.no_grad():  # give the unused rows the highest logits
        for one in (decoder, again):
            one.model.get_output_embeddings().weight[size:] *= 100
        assert (decoder(embeddings, mask, mask).argmax(-1) >= size).any()
    for settings in ({}, {"num_beams": 3}, {"suppress_tokens": [5]}):
        for one in (decoder, again):
            generated = one.generate(embeddings, mask, max_new_tokens=8, do_sample=False, pad_token_id=0, **settings)
            assert int(generated.max()) < size
            assert 5 not in generated or "suppress_tokens" not in settings


@pytest.mark.parametrize("family", ["smollm2", "gemma3", "pythia"])
def test_generation_settings_of_a_checkpoint_are_not_used(family: str, tmp_path: Path) -> None:
    config = checkpoint(family, tmp_path)
    decoder: Any = built(config)
    settings = decoder.model.generation_config
    assert (settings.do_sample, settings.temperature, settings.repetition_penalty) in {
        (None, None, None),
        (False, 1.0, 1.0),
    }
    embeddings, mask = decoder.embed(torch.arange(9)[None]), torch.ones(1, 9, dtype=torch.bool)
    generated = decoder.generate(embeddings, mask, max_new_tokens=8, pad_token_id=0, eos_token_id=None)
    assert generated.shape[1] == 8, "max_new_tokens of the checkpoint is 3"


def test_undecodable_ids_are_given_as_ranges(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("qwen3", tmp_path)
    size = len(tokenizer)
    assert undecodable_ids(tokenizer, size) == []
    assert undecodable_ids(tokenizer, size + 3) == [[size, size + 3]]
    assert undecodable_ids(tokenizer, size - 1) == []

    class WithHoles:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 1, "b": 2, "c": 6}

    assert undecodable_ids(WithHoles(), 9) == [[0, 1], [3, 6], [7, 9]]


# --- dropout, RMS of the embeddings, attention windows


@pytest.mark.parametrize(
    ("class_name", "fields", "quiet"),
    [
        ("LlamaConfig", {"attention_dropout": 0.1}, {}),
        ("GPT2Config", {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}, {}),
        ("OPTConfig", {"dropout": 0.1, "attention_dropout": 0.1}, {"layerdrop": 0.2}),
        ("FalconConfig", {"hidden_dropout": 0.1, "attention_dropout": 0.1}, {}),
        ("MixtralConfig", {"attention_dropout": 0.1}, {"router_jitter_noise": 0.1}),
    ],
)
def test_dropout_probabilities_come_from_the_recipe(
    class_name: str, fields: dict[str, float], quiet: dict[str, float]
) -> None:
    for probability in (0.0, 0.3):
        config = getattr(transformers, class_name)(**fields, **quiet)
        plain = {name: value for name, value in vars(config).items() if name not in fields and name not in quiet}
        configure_dropout(config, probability)
        assert all(getattr(config, name) == probability for name in fields)
        assert all(getattr(config, name) == 0.0 for name in quiet)
        assert {name: vars(config)[name] for name in plain if "drop" not in name} == {
            name: value for name, value in plain.items() if "drop" not in name
        }


def test_dropout_probabilities_of_nested_configs_are_set() -> None:
    config = transformers.MptConfig()
    configure_dropout(config, 0.0)
    assert config.attn_config.attn_pdrop == 0


def test_the_rms_of_gemmas_embeddings_includes_their_scale(tmp_path: Path) -> None:
    config = checkpoint("gemma3", tmp_path)
    decoder: Any = built(config)
    table = decoder.model.get_input_embeddings().weight.detach()
    assert decoder.embedding_rms() == pytest.approx(float(table.pow(2).mean().sqrt()) * 32**0.5, rel=1e-5)


def test_rows_can_be_longer_than_the_attention_window(tmp_path: Path) -> None:
    """Padding does not change the logits of a row, even if the row is longer than the attention window of a layer."""
    config = checkpoint("gemma3", tmp_path, sliding_window=4)
    decoder: Any = built(config)
    assert decoder.model.config.layer_types == ["sliding_attention", "full_attention"]
    rows = [decoder.embed(torch.arange(size) + 3) for size in (23, 9)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=9.0)
    mask = torch.zeros(padded.shape[:2], dtype=torch.bool)
    mask[0], mask[1, :9] = True, True
    with torch.no_grad():
        together = decoder(padded, mask, mask)[23:]
        alone = decoder(rows[1][None], mask[1:, :9], mask[1:, :9])
    assert float((together - alone).abs().max()) <= 1e-5 * float(alone.pow(2).mean().sqrt())


# --- any causal LM


def any_lm(**fields: Any) -> DecoderConfig:
    tiny = DECODERS.entry("causal_lm").config.tiny().model_dump(mode="json")
    return DECODERS.parse({**tiny, **fields})


def sizes(**fields: Any) -> dict[str, Any]:
    return {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64} | fields


def rejection_of(config: DecoderConfig) -> UserError:
    with pytest.raises(UserError) as refusal:
        DECODERS.build(config, DecoderContext(build_tokenizer(config, ["one two three four"])))
    return refusal.value


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"name": "causal_lm"}, "pretrained is missing"),
        ({"name": "causal_lm", "init": "random"}, "tokenizer is missing tokenizer: {kind: bpe} pretrained"),
        (
            {"name": "causal_lm", "init": "random", "model_type": "granite"},
            "tokenizer is missing tokenizer: {kind: bpe} pretrained",
        ),
        (
            {"name": "causal_lm", "init": "random", "tokenizer": {}},
            "model_type: granite",
        ),
        ({"name": "causal_lm", "pretrained": "a/b", "model_type": "llama"}, "model_type: init: random"),
    ],
)
def test_causal_lm_needs_a_checkpoint_or_an_architecture(fields: dict[str, Any], values: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DECODERS.parse(fields)
    assert_names(caught.value, values)


@pytest.mark.parametrize(
    ("model_type", "overrides", "values"),
    [
        (
            "granit",
            {},
            "model_type: 'granit'; 'granite'? Allowed:",
        ),
        ("bart", {}, "causal_lm: bart encoder"),
        ("gemma3", {}, "causal_lm: gemma3 modalities"),
        ("cpmant", {}, "causal_lm: CpmAntForCausalLM inputs_embeds"),
        ("bert", sizes(), "causal_lm: bert causal"),
        ("roberta", sizes(), "causal_lm: roberta token ids"),
        (
            "rwkv",
            {"hidden_size": 32, "num_hidden_layers": 2},
            "causal_lm: rwkv generates padded left",
        ),
        (
            "openai-gpt",
            {"n_embd": 32, "n_layer": 2, "n_head": 4},
            "causal_lm: openai-gpt ValueError: `inputs_embeds`",
        ),
    ],
)
def test_unsupported_architectures_are_rejected(model_type: str, overrides: dict[str, Any], values: str) -> None:
    assert_names(rejection_of(any_lm(model_type=model_type, overrides=overrides)), values)


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
        ("mixtral", sizes(num_key_value_heads=2, num_local_experts=2)),
        ("phi3", sizes(num_key_value_heads=2)),
        ("olmo2", sizes(num_key_value_heads=2)),
        ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}),
    ],
)
def test_supported_architectures_can_be_built_and_rebuilt(model_type: str, overrides: dict[str, Any]) -> None:
    config = any_lm(model_type=model_type, overrides=overrides)
    torch.manual_seed(0)
    decoder = DECODERS.build(config, DecoderContext(build_tokenizer(config, ["one two three four"]))).eval()
    architecture = json.loads(json.dumps(decoder.architecture()))
    rebuilt = DECODERS.build(config, DecoderContext(None, architecture)).eval()
    rebuilt.load_state_dict(decoder.state_dict())
    embeddings, mask = decoder.embed(torch.arange(8).reshape(2, 4)), torch.ones(2, 4, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(decoder(embeddings, mask, mask), rebuilt(embeddings, mask, mask))


def test_a_checkpoint_that_needs_its_own_code_is_rejected(tmp_path: Path) -> None:
    config = checkpoint("pythia", tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"model_type": "wonder"}))
    with pytest.raises(UserError) as caught:
        DECODERS.build(config, DecoderContext(load_tokenizer(str(tmp_path))))
    assert_names(caught.value, "causal_lm:", str(tmp_path), "'wonder'")


def test_unsupported_attention_is_rejected(tmp_path: Path) -> None:
    auto: Any = built(checkpoint("gemma2", tmp_path))
    assert auto.model.config._attn_implementation == "eager", "SDPA would leave the soft cap out"
    config = DECODERS.parse({"name": "causal_lm", "pretrained": str(tmp_path), "attention": "sdpa"})
    with pytest.raises(UserError) as caught:
        built(config)
    assert_names(caught.value, "attention: Gemma2ForCausalLM sdpa; auto, eager, flash_attention_2")


@pytest.mark.parametrize(("kinds", "packs"), [(["conv", "full_attention"], False), (["full_attention"] * 2, True)])
def test_rows_are_packed_only_if_no_layer_reads_across_their_borders(
    kinds: list[str], packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Flash Attention 2 needs a GPU, so the model is built with sdpa.
    monkeypatch.setattr(_causal_lm, "attention_implementation", lambda part: "sdpa")
    overrides = sizes(num_key_value_heads=2, layer_types=kinds)
    config = any_lm(model_type="lfm2", overrides=overrides, attention="flash_attention_2")
    tokenizer = build_tokenizer(config, ["one two three four"])
    with torch.device("meta"):
        decoder: Any = DECODERS.build(config, DecoderContext(tokenizer))
    assert decoder.packs is packs


@pytest.mark.parametrize("target", ["lm_head", "head"])
def test_the_head_cannot_have_an_adapter(target: str) -> None:
    config = any_lm(freeze=True, lora={"rank": 2, "alpha": 2.0, "targets": [target, "q_proj"]})
    assert_names(
        rejection_of(config), f"lora.targets: {target}" if target == "lm_head" else f"lora.targets: {target!r};"
    )
