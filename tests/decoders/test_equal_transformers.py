"""Outputs of decoders equal those of the transformers models, with weights loaded from a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tests.support.checkpoint_folders import LLAMA
from tests.support.equality import assert_close
from tests.support.fast import fast_ones
from tiny_audio.decoders import DECODERS, Decoder, DecoderContext

TOKENS = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "smollm3 tied": ("smollm3", "SmolLM3ForCausalLM", LLAMA | {"num_hidden_layers": 4}),  # layer 4 has no RoPE
    "smollm3 untied": ("smollm3", "SmolLM3ForCausalLM", LLAMA | {"tie_word_embeddings": False}),
    "smollm2": ("smollm2", "LlamaForCausalLM", LLAMA | {"tie_word_embeddings": True}),
    "llama": ("llama", "LlamaForCausalLM", LLAMA | {"head_dim": 16, "rope_parameters": LLAMA3_ROPE}),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", LLAMA | {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma3": ("gemma3", "Gemma3ForCausalLM", LLAMA | WINDOW | {"head_dim": 16, "final_logit_softcapping": 5.0}),
    "gemma2": (
        "causal_lm",
        "Gemma2ForCausalLM",
        LLAMA | WINDOW | {"head_dim": 16, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0},
    ),
    "granite": (
        "causal_lm",
        "GraniteForCausalLM",
        LLAMA | {"embedding_multiplier": 6.0, "logits_scaling": 4.0, "residual_multiplier": 0.5},
    ),
    "cohere": ("causal_lm", "CohereForCausalLM", LLAMA | {"logit_scale": 0.25}),
    "gpt2": ("causal_lm", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt-neox": ("causal_lm", "GPTNeoXForCausalLM", {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}),
    "bloom": ("causal_lm", "BloomForCausalLM", {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "opt": (
        "causal_lm",
        "OPTForCausalLM",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "max_position_embeddings": 64,
        },
    ),
}


VARIANTS = ("smollm3 untied", "cohere", "gpt-neox", "bloom", "opt")
"""Models that are tested only in the slow run, because other models in MODELS have the same components."""


@pytest.fixture(scope="module", params=fast_ones(MODELS, *(name for name in MODELS if name not in VARIANTS)))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Decoder]:
    """Return a transformers model, and the decoder loaded from its checkpoint."""
    name, class_name, fields = MODELS[request.param]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**fields | TOKENS)).eval()
    with torch.no_grad():
        for path, tensor in model.named_parameters():  # with its small initial weights, the model repeats tokens
            scale = 0.3 if len(tensor) == 60 or path.endswith("bias") else 0.9
            tensor.copy_(scale * torch.randn(tensor.shape))
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    part = DECODERS.parse({"name": name, "pretrained": str(folder)})
    return model, DECODERS.build(part, DecoderContext(None)).eval()


def ids(*lengths: int) -> tuple[Tensor, Tensor]:
    """Return right-padded token ids and their bool mask."""
    rows = [torch.randint(3, 60, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths]
    return pad_sequence(rows, batch_first=True), pad_sequence([row >= 0 for row in rows], batch_first=True)


def test_logits_are_equal(pair: tuple[Any, Decoder]) -> None:
    model, decoder = pair
    tokens, mask = ids(12, 5, 9)
    keep = mask & (torch.arange(12) % 2 == 0)
    with torch.no_grad():
        wanted = model(input_ids=tokens, attention_mask=mask.long()).logits
        assert_close(decoder(decoder.embed(tokens), mask, mask), wanted[mask])
        assert_close(decoder(decoder.embed(tokens), mask, keep), wanted[keep])
        alone = model(input_ids=tokens[1:2, :5]).logits[0]
        assert_close(decoder(decoder.embed(tokens[1:2, :5]), mask[1:2, :5], mask[1:2, :5]), alone)


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"num_beams": 3}, marks=pytest.mark.slow)], ids=["greedy", "beams"]
)
def test_generated_ids_are_equal(pair: tuple[Any, Decoder], settings: dict[str, Any]) -> None:
    model, decoder = pair
    tokens = torch.randint(3, 60, (4, 9), generator=torch.Generator().manual_seed(1))
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 2, "pad_token_id": 2, **settings}
    embeddings, mask = decoder.embed(tokens), torch.ones_like(tokens, dtype=torch.bool)
    found = decoder.generate(embeddings, mask, **settings)
    from_ids = model.generate(input_ids=tokens, attention_mask=mask.long(), **settings)[:, tokens.shape[1] :]
    assert found.tolist() == from_ids.tolist()
    assert len(set(found.flatten().tolist())) > 2, "the model must not always repeat the same tokens"


@torch.no_grad()
def test_embeddings_are_equal(pair: tuple[Any, Decoder]) -> None:
    model, decoder = pair
    table = model.get_input_embeddings()(torch.arange(60))
    assert decoder.dim == table.shape[1]
    assert torch.equal(decoder.embed(torch.arange(60)), table)
    assert decoder.embedding_rms() == pytest.approx(table.pow(2).mean().sqrt().item())
    scale = 32**0.5 if "Gemma" in type(model).__name__ else 1.0
    assert_close(table, scale * model.get_input_embeddings().weight)
