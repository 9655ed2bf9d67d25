"""Granite Speech's encoder, a Conformer with attention in blocks of 4 s (Saon et al. 2025, arXiv 2505.08699)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig, EncoderContext
from tiny_audio.encoders._initialization import scale_by_fan_in
from tiny_audio.encoders._layers import keep_layers, weighted_layers
from tiny_audio.encoders._log_mel import HOP, WINDOW, limit_range, log_mel, mel_filters, reflect
from tiny_audio.frames import SAMPLE_RATE, Frames, length_mask
from tiny_audio.pretrained.building import architecture_of, build_or_load, transformers_config
from tiny_audio.pretrained.trainable import prepare_training

NUM_FFT = 512
STACK = 2
"""Number of mel frames per encoder frame."""

_NOT_USED = (r"(model\.)?(projector|language_model)\..*", r"lm_head\..*")
"""Regular expressions for keys of a whole model that do not belong to the encoder."""


class GraniteSpeechConfig(EncoderConfig):
    """Granite Speech: log-mel front end, 50 frames per second, clips of any length."""

    # Relative positions are a bias on the attention. Flash Attention does not support biases.
    attentions: ClassVar[tuple[str, ...]] = ("sdpa",)
    linear_layers: ClassVar[tuple[str, ...] | None] = (
        "input_linear",
        "up_proj",
        "down_proj",
        "to_q",
        "to_kv",
        "to_out",
        "out",
        "out_mid",
    )
    sections: ClassVar[tuple[str, ...]] = ("encoder_config",)
    prefix: ClassVar[str | None] = r"(model\.)?encoder\."

    name: Literal["granite-speech"] = "granite-speech"
    pretrained: str = "ibm-granite/granite-4.0-1b-speech"
    """Hub id or local folder of a Granite Speech checkpoint. Only its encoder is loaded."""

    def num_frames(self, num_samples: int) -> int:
        """Return half the number of mel frames, rounded down."""
        return int(_num_frames(torch.tensor(num_samples)))

    def max_duration_s(self) -> float | None:
        """Return None: positions are relative within blocks, so there is no limit."""
        return None

    def front_end(self) -> dict[str, Any]:
        """Return the settings of the front end. Each input of the layers is a pair of mel frames."""
        mels = self.known_fields().get("input_dim", 160) // STACK
        sizes = {"n_fft": NUM_FFT, "win_length": WINDOW, "hop_length": HOP, "n_mels": mels}
        return {"sampling_rate": SAMPLE_RATE, "melspec_kwargs": {"sample_rate": SAMPLE_RATE} | sizes}

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with two layers of 32 channels and blocks of 0.4 s."""
        overrides: dict[str, Any] = {
            "hidden_dim": 32,
            "num_layers": 2,
            "num_heads": 4,
            "feedforward_mult": 1,
            "input_dim": 80,
            "output_dim": 12,
            "context_size": 20,
            "max_pos_emb": 24,
            "conv_kernel_size": 7,
            "conv_expansion_factor": 1,
        }
        return cls(init="random", overrides=overrides, freeze=False)


@ENCODERS.register
def build_granite_speech(config: GraniteSpeechConfig, context: EncoderContext) -> Encoder:
    """Build the encoder of a Granite Speech checkpoint, or an encoder with random weights."""
    from transformers import GraniteSpeechCTCEncoder as Layers
    from transformers import GraniteSpeechEncoderConfig as Architecture

    from tiny_audio.encoders._granite_speech import MaskedConformerLayer

    architecture = transformers_config(Architecture, config, context.architecture, dropout=config.dropout)
    # The middle layer also predicts characters. Store its number before `keep_layers` changes the number of layers.
    middle = getattr(architecture, "middle_layer", architecture.num_layers // 2)
    architecture.middle_layer = middle
    cut = keep_layers(architecture, config, r"layers")
    rebuilt = context.architecture is not None
    model = build_or_load(Layers, architecture, config, rebuilt=rebuilt, ignored=(*_NOT_USED, *cut))
    if config.init == "random" and not rebuilt:
        scale_by_fan_in(model)
    model.layers = nn.ModuleList(MaskedConformerLayer(layer) for layer in model.layers)
    # Allow gradient checkpointing. With the default `main_input_name`, transformers would look for token embeddings,
    # but this encoder has none.
    model.supports_gradient_checkpointing, model.main_input_name = True, "input_features"
    if len(model.layers) <= middle:
        del model.out, model.out_mid  # only layers above the middle layer use the output of these modules
    prepare_training(model, config)
    return GraniteSpeechEncoder(model, config)


class GraniteSpeechEncoder(Encoder):
    """transformers' Granite Speech encoder with masks."""

    def __init__(self, model: Any, config: GraniteSpeechConfig) -> None:
        super().__init__()
        self.model = model
        self.dim: int = model.config.hidden_dim
        self.frame_rate = SAMPLE_RATE / HOP / STACK
        self.num_mels: int = model.config.input_dim // STACK
        self.middle: int = model.config.middle_layer
        self.weighted = weighted_layers(config, model.config.num_layers)

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return half the number of mel frames, rounded down. Every clip counts as at least two mel frames."""
        return _num_frames(num_samples)

    def features(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        """Compute log-mel features ``[B, F, mels]`` like Granite Speech's feature extractor. F is even.

        Features are raised to at least 80 dB below the clip's maximum. If the number of mel frames is odd, the last mel
        frame is dropped, but the maximum includes it.
        """
        padded = lengths.clamp(min=HOP)
        audio = waveforms.float() * length_mask(lengths, waveforms.shape[1])
        audio = F.pad(audio, (0, max(0, int(padded.max()) - audio.shape[1])))
        mel = log_mel(reflect(audio, padded, NUM_FFT // 2), mel_filters(self.num_mels, NUM_FFT, slaney=False))
        mel = limit_range(mel, length_mask(_num_mel_frames(lengths), mel.shape[1])) / 4.0 + 1.0
        paired = STACK * _num_frames(lengths)
        return Frames(mel[:, : int(paired.max())], paired, SAMPLE_RATE / HOP)

    def encode(self, features: Frames) -> Frames:
        """Stack pairs of mel frames, then run the layers. Padded frames are masked throughout."""
        model = self.model
        # [B, 2·T, mels] -> [B, T, 2·mels]
        values = torch.unflatten(features.zeroed().values, 1, (-1, STACK)).flatten(2)
        frames = Frames(values, features.lengths // STACK, self.frame_rate)
        hidden, mask = model.input_linear(values.to(model.input_linear.weight.dtype)), frames.mask()

        def run() -> Tensor:
            state: Tensor = hidden
            for index, layer in enumerate(model.layers, 1):
                state = layer(state, mask, model.attention_dists)
                if index == self.middle < len(model.layers):
                    # Add the middle layer's prediction of characters to the input of the next layer.
                    state = state + model.out_mid(model.out(state).softmax(-1))
            return state

        output = run() if self.weighted is None else self.weighted(model.layers, run)
        return Frames(output, frames.lengths, self.frame_rate)

    def architecture(self) -> dict[str, Any]:
        """Return the transformers config in JSON form."""
        return architecture_of(self.model.config)


def _num_mel_frames(num_samples: Tensor) -> Tensor:
    """Return the number of mel frames, at least two. The first is centered on the first sample."""
    return num_samples.clamp(min=HOP) // HOP + 1


def _num_frames(num_samples: Tensor) -> Tensor:
    return _num_mel_frames(num_samples) // STACK
