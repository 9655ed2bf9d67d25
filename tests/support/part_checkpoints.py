"""Tiny checkpoints on disk, and parts built from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    HubertConfig,
    HubertForCTC,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from tiny_audio.decoders import DECODERS, Decoder, DecoderContext
from tiny_audio.encoders import ENCODERS, Encoder, EncoderContext


def hubert(folder: Path, **fields: Any) -> HubertForCTC:
    torch.manual_seed(0)
    config = HubertConfig(**ENCODERS.entry("hubert").config.tiny().overrides, vocab_size=12, **fields)  # type: ignore[attr-defined]
    model = HubertForCTC(config)
    model.save_pretrained(folder)
    return model


def whisper(folder: Path) -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "vocab_size": 60}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    config = WhisperConfig(**ENCODERS.entry("whisper").config.tiny().overrides, **decoder, **tokens)  # type: ignore[attr-defined]
    model = WhisperForConditionalGeneration(config)
    model.save_pretrained(folder)
    return model


def smollm3(folder: Path, **fields: Any) -> SmolLM3ForCausalLM:
    torch.manual_seed(0)
    overrides = DECODERS.entry("smollm3").config.tiny().overrides  # type: ignore[attr-defined]
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 60}
    model = SmolLM3ForCausalLM(SmolLM3Config(**overrides | tokens | fields))
    model.save_pretrained(folder)
    return model


def encoder(name: str, pretrained: Path | str, **fields: Any) -> Encoder:
    config = {"name": name, "pretrained": str(pretrained), **fields}
    return ENCODERS.build(ENCODERS.parse(config), EncoderContext())


def decoder(pretrained: Path | str, **fields: Any) -> Decoder:
    config = {"name": "smollm3", "pretrained": str(pretrained), **fields}
    return DECODERS.build(DECODERS.parse(config), DecoderContext(None))


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def assert_same_tensors(found: nn.Module, wanted: nn.Module) -> None:
    """Check that both have the same tensors. ``wanted`` may also have SpecAugment's mask vector, which is unused."""
    own, its = dict(found.state_dict()), dict(wanted.state_dict())
    its.pop("masked_spec_embed", None)
    assert own.keys() == its.keys()
    for name, tensor in its.items():
        assert torch.equal(own[name], tensor), name
