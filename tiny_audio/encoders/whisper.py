"""Whisper's encoder on clips of any length up to 30 s (Radford et al. 2022, arXiv 2212.04356)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig, EncoderContext
from tiny_audio.encoders._initialization import scale_by_fan_in
from tiny_audio.encoders._layers import keep_layers, weighted_layers
from tiny_audio.encoders._log_mel import HOP, LEAST, WINDOW, front_end, log_mel, mel_filters
from tiny_audio.frames import SAMPLE_RATE, Frames
from tiny_audio.pretrained.building import architecture_of, build_or_load, transformers_config
from tiny_audio.pretrained.config import ALL_ATTENTIONS
from tiny_audio.pretrained.packing import PACKED, Packing
from tiny_audio.pretrained.trainable import prepare_training

_LEAST_OF_ANY_LEVEL = -16.0
"""log10 of the lowest allowed power with ``level_invariant``. It is so low that, even in very soft speech, only the
relative limit has an effect: 80 dB below the clip's maximum. Features can then be independent of the loudness."""


class WhisperConfig(EncoderConfig):
    """Whisper: log-mel front end, 50 frames per second, clips of up to 30 s, not padded to 30 s."""

    attentions: ClassVar[tuple[str, ...]] = ALL_ATTENTIONS
    linear_layers: ClassVar[tuple[str, ...] | None] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

    name: Literal["whisper"] = "whisper"
    pretrained: str = "openai/whisper-large-v3-turbo"
    """Hub id or local folder of a complete Whisper checkpoint. Its decoder is not used."""
    level_invariant: bool = False
    """Make a clip's features independent of its loudness. Whisper's checkpoints were trained without this."""

    def num_frames(self, num_samples: int) -> int:
        """Return half the number of mel frames, rounded up."""
        return -(-max(1, -(-num_samples // HOP)) // 2)

    def max_duration_s(self) -> float | None:
        """Return the duration in seconds that the position embeddings cover: 20 ms each, 30 s with the usual 1,500."""
        positions = self.known_fields().get("max_source_positions", 1500)
        return positions * 2 * HOP / SAMPLE_RATE if isinstance(positions, int) else None

    def front_end(self) -> dict[str, Any]:
        """Return the settings of the front end, which computes one mel frame per 10 ms."""
        return front_end(self.known_fields().get("num_mel_bins", 80))

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with two layers of 32 channels."""
        overrides: dict[str, Any] = {
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 40,
            "max_source_positions": 750,
        }
        return cls(init="random", overrides=overrides, freeze=False)


@ENCODERS.register
def build_whisper(config: WhisperConfig, context: EncoderContext) -> Encoder:
    """Build the encoder of a complete Whisper checkpoint, or an encoder with random weights."""
    from transformers import WhisperConfig as Architecture
    from transformers import WhisperModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Layers

    architecture = transformers_config(
        Architecture,
        config,
        context.architecture,
        dropout=config.dropout,
        attention_dropout=config.dropout,
        activation_dropout=config.dropout,
        encoder_layerdrop=0.0,
    )
    cut = keep_layers(architecture, config, r"(model\.)?encoder\.layers")
    rebuilt = context.architecture is not None
    # Load the complete model. transformers' WhisperEncoder.from_pretrained would match no key of a complete checkpoint.
    complete = not rebuilt and config.init == "pretrained"
    model_class, ignored = WhisperModel if complete else Layers, (r"proj_out\.weight", *cut)
    model = build_or_load(model_class, architecture, config, rebuilt=rebuilt, ignored=ignored)
    if complete:
        model = model.encoder
    elif not rebuilt:
        # With transformers' initial weights, the output of a narrow encoder's convolutions would be much smaller than
        # the position embeddings (0.02 compared with 0.7), so learning would start hundreds of steps late.
        scale_by_fan_in(model)
    prepare_training(model, config)
    return WhisperEncoder(model, config)


class WhisperEncoder(Encoder):
    """transformers' Whisper layers, after a front end that does not pad clips to 30 s."""

    def __init__(self, model: Any, config: WhisperConfig) -> None:
        super().__init__()
        self.model = model
        self.dim: int = model.config.d_model
        self.frame_rate = SAMPLE_RATE / HOP / 2
        self.level_invariant = config.level_invariant
        self.packs = config.attention in PACKED
        self.max_frames: int = model.config.max_source_positions
        # The sinusoidal positions stay fixed, even if the encoder trains from scratch.
        model.embed_positions.requires_grad_(False)
        self.weighted = weighted_layers(config, model.config.encoder_layers)
        if config.layer != "last":
            model.layer_norm = nn.Identity()  # skip the norm, which was trained only on the last layer's output

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return half the number of mel frames, rounded up."""
        return (self._num_mel_frames(num_samples) + 1) // 2

    def features(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        """Compute log-mel features ``[B, F, mels]`` like Whisper.

        Features are raised to at least 80 dB below the clip's maximum. With ``level_invariant``, the features of each
        clip are also shifted, so that all clips have the same maximum, which is typical of loud speech. The start of a
        clip is padded by reflection. The end is padded with silence, as in Whisper's 30 s window.
        """
        num_mel_frames = self._num_mel_frames(lengths)
        size = int(num_mel_frames.max()) * HOP
        precise = torch.promote_types(waveforms.dtype, torch.float32)
        audio = waveforms.to(precise) * (torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None])
        audio = F.pad(audio, (0, max(0, size + WINDOW // 2 - audio.shape[1])))[:, : size + WINDOW // 2]
        # Reflect the first samples, and keep the samples that F windows cover. The last window starts at `size - HOP`.
        audio = torch.cat([audio[:, 1 : WINDOW // 2 + 1].flip(1), audio[:, : size + WINDOW // 2 - HOP]], dim=1)
        least = _LEAST_OF_ANY_LEVEL if self.level_invariant else LEAST
        mel = log_mel(audio, mel_filters(self.model.config.num_mel_bins), least)
        frames = Frames(mel, num_mel_frames, SAMPLE_RATE / HOP)
        loudest = mel.masked_fill(~frames.mask()[..., None], least).amax(dim=(1, 2), keepdim=True)
        mel = torch.maximum(mel, loudest - 8.0)
        if self.level_invariant:
            mel = mel - loudest.clamp(min=least + 8.0) + 1.0  # without the clamp, silence would be amplified
        return Frames((mel + 4.0) / 4.0, num_mel_frames, frames.rate)

    def encode(self, features: Frames) -> Frames:
        """Run two convolutions (strides 1 and 2), then the layers. Padded frames are masked."""
        from transformers.masking_utils import create_bidirectional_mask

        model = self.model
        lengths = (features.lengths + 1) // 2
        if int(lengths.max()) > self.max_frames:
            raise ValueError(
                f"a clip of {int(lengths.max()) / self.frame_rate:.1f} s is longer than the "
                f"{self.max_frames / self.frame_rate:.0f} s that this encoder accepts; split the clip"
            )
        # The convolutions read beyond the end of a clip, so the padding must be zero, as for a single clip.
        hidden = features.zeroed().values.to(model.conv1.weight.dtype).transpose(1, 2)
        hidden = F.gelu(model.conv1(hidden)) * features.mask()[:, None]
        # [B, D, F] -> [B, F/2, D]
        hidden = F.gelu(model.conv2(hidden)).transpose(1, 2)
        hidden = hidden + model.embed_positions.weight[: hidden.shape[1]]
        hidden = F.dropout(hidden, p=model.dropout, training=model.training)
        frames = Frames(hidden, lengths, self.frame_rate)
        packing = Packing.of(frames.mask()) if self.packs else None
        if packing:
            mask, attention = None, packing.attention()
        else:
            mask = create_bidirectional_mask(config=model.config, inputs_embeds=hidden, attention_mask=frames.mask())
            attention = {}

        def run() -> Tensor:
            state = packing.pack(hidden) if packing else hidden
            for layer in model.layers:
                state = layer(state, mask, **attention)
            output: Tensor = model.layer_norm(state)
            return output

        values = run() if self.weighted is None else self.weighted(model.layers, run)
        return Frames(packing.unpack(values) if packing else values, lengths, self.frame_rate)

    def architecture(self) -> dict[str, Any]:
        """Return the transformers config in JSON form."""
        return architecture_of(self.model.config)

    @staticmethod
    def _num_mel_frames(num_samples: Tensor) -> Tensor:
        return ((num_samples + HOP - 1) // HOP).clamp(min=1)
