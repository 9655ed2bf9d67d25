"""Tiny checkpoints of every encoder family, written by transformers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tiny_audio.encoders import ENCODERS, Encoder, EncoderContext
from tiny_audio.encoders._waveform import WaveformConfig

SAMPLE_RATE = 16_000
WAVEFORM_FAMILIES = tuple(entry.name for entry in ENCODERS.entries() if issubclass(entry.config, WaveformConfig))
FAMILIES = tuple(entry.name for entry in ENCODERS.entries())

LANGUAGE_MODEL: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Config fields of the language model, for families whose published models contain one."""
QFORMER = {
    "model_type": "blip_2_qformer",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 12,
}

DEPTH_FIELDS = {"whisper": "encoder_layers", "qwen3-asr": "encoder_layers", "granite-speech": "num_layers"}
"""Name of the config field with the number of layers, by family. Other families use ``num_hidden_layers``."""

GROUP_NORM = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}


def original(name: str, head: str | None = None, **fields: Any) -> Any:
    """Create a transformers model with random weights, of the class that published checkpoints have.

    The model includes the decoder or head of that class. Noise is added to all weights, because norms and biases that
    keep their initial values would hide loading errors.

    Args:
        name: the encoder family.
        head: another transformers class for the model, such as ``HubertModel``.
        fields: further config fields of the encoder.
    """
    torch.manual_seed(0)
    overrides = ENCODERS.entry(name).config.tiny().overrides | fields  # type: ignore[attr-defined]
    if name == "whisper":
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        decoder = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 60}
        config = transformers.WhisperConfig(**overrides | tokens | decoder | {"dropout": 0.1})
        model: Any = transformers.WhisperForConditionalGeneration(config)
    elif name == "parakeet":
        kind = head or "ParakeetForCTC"
        more = {} if kind == "ParakeetForCTC" else {"decoder_hidden_size": 16, "num_decoder_layers": 1}
        tokens = {"vocab_size": 20, "pad_token_id": 19}
        config = getattr(transformers, kind.replace("For", "") + "Config")(encoder_config=overrides, **tokens, **more)
        model = getattr(transformers, kind)(config)
    elif name == "granite-speech":
        projector = QFORMER | {"encoder_hidden_size": overrides["hidden_dim"]}
        granite = transformers.GraniteConfig(**LANGUAGE_MODEL)
        config = transformers.GraniteSpeechConfig(
            encoder_config=overrides, projector_config=projector, text_config=granite.to_dict(), audio_token_index=9
        )
        model = transformers.GraniteSpeechForConditionalGeneration(config)
    elif name == "qwen3-asr":
        qwen = transformers.Qwen3Config(**LANGUAGE_MODEL)
        config = transformers.Qwen3ASRConfig(
            audio_config=overrides | {"output_dim": 16}, text_config=qwen.to_dict(), audio_token_id=9
        )
        model = transformers.Qwen3ASRForConditionalGeneration(config)
    else:
        config_class = _config_class(name)
        model_class = getattr(transformers, head) if head else transformers.MODEL_FOR_CTC_MAPPING[config_class]
        model = model_class(config_class(**{"vocab_size": 12} | overrides))
    numbers = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if key.endswith("running_var"):
                tensor.add_(torch.rand(tensor.shape, generator=numbers))
            elif (tensor.is_floating_point() and tensor.requires_grad) or key.endswith("running_mean"):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=numbers))
    return model.eval()


@cache
def _config_class(name: str) -> Any:
    """Return the class of the transformers config that our encoder uses."""
    with torch.random.fork_rng(devices=[]):
        encoder: Any = ENCODERS.build(ENCODERS.entry(name).config.tiny(), EncoderContext())
    return type(encoder.model.config)


def bare(name: str, model: Any) -> Any:
    """Return the encoder of a model that :func:`original` created."""
    if name in ("whisper", "granite-speech"):
        return model.model.encoder
    if name == "qwen3-asr":
        return model.model.audio_tower
    return model.encoder if name == "parakeet" else getattr(model, model.base_model_prefix)


def build(name: str, folder: Path, **fields: Any) -> Encoder:
    """Build our encoder from a checkpoint."""
    return ENCODERS.build(ENCODERS.parse({"name": name, "pretrained": str(folder), **fields}), EncoderContext()).eval()


def speech(seconds: float, seed: int = 0) -> np.ndarray[Any, Any]:
    """Create noise with changing volume and a constant offset. Normalization must remove the offset."""
    samples = np.arange(round(seconds * SAMPLE_RATE))
    noise = np.random.default_rng(seed).normal(0, 0.1, len(samples))
    return (0.05 + noise * (1.1 + np.sin(samples / 1000))).astype(np.float32)
