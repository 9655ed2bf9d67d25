"""Parakeet's encoder, a Fast Conformer (Rekesh et al. 2023, arXiv 2305.05084)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig, EncoderContext
from tiny_audio.encoders._batch_norm import FixedBatchNorm
from tiny_audio.encoders._initialization import scale_by_fan_in
from tiny_audio.encoders._layers import keep_layers, weighted_layers
from tiny_audio.encoders._log_mel import HOP, WINDOW, front_end, mel_filters
from tiny_audio.frames import SAMPLE_RATE, Frames, length_mask
from tiny_audio.pretrained.building import architecture_of, build_or_load, transformers_config
from tiny_audio.pretrained.trainable import prepare_training

NUM_FFT = 512
PREEMPHASIS = 0.97

_NOT_USED = (r"ctc_head\..*", r"decoder\..*", r"joint\..*", r"encoder_projector\..*")
"""Regular expressions for keys that do not belong to the encoder, in checkpoints of CTC, RNN-T and TDT recognizers."""


class ParakeetConfig(EncoderConfig):
    """Parakeet: log-mel front end, 12.5 frames per second, clips of any length."""

    # Relative positions are a bias on the attention. Flash Attention does not support biases.
    attentions: ClassVar[tuple[str, ...]] = ("sdpa", "eager")
    linear_layers: ClassVar[tuple[str, ...] | None] = (
        "linear",
        "linear1",
        "linear2",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "relative_k_proj",
    )

    sections: ClassVar[tuple[str, ...]] = ("encoder_config",)

    name: Literal["parakeet"] = "parakeet"
    pretrained: str = "nvidia/parakeet-ctc-1.1b"
    """Hub id or local folder of a Parakeet checkpoint in transformers' format: CTC, RNN-T, TDT or encoder only."""

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames after the strided convolutions: an eighth of the mel frames, rounded up."""
        kernel, stride, factor = (self.known_fields().get(name, value) for name, value in _SUBSAMPLING.items())
        return int(_num_frames(_num_mel_frames(torch.tensor(num_samples)), kernel, stride, factor))

    def max_duration_s(self) -> float | None:
        """Return None: relative positions are computed for any length, so there is no limit."""
        return None

    def front_end(self) -> dict[str, Any]:
        """Return the settings of the front end, which computes one mel frame per 10 ms."""
        sizes = {"n_fft": NUM_FFT, "win_length": WINDOW, "preemphasis": PREEMPHASIS}
        return front_end(self.known_fields().get("num_mel_bins", 80)) | sizes

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with two layers of 32 channels."""
        overrides: dict[str, Any] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "num_mel_bins": 40,
            "subsampling_conv_channels": 8,
        }
        return cls(init="random", overrides=overrides, freeze=False)


_SUBSAMPLING: dict[str, Any] = {
    "subsampling_conv_kernel_size": 3,
    "subsampling_conv_stride": 2,
    "subsampling_factor": 8,
}


@ENCODERS.register
def build_parakeet(config: ParakeetConfig, context: EncoderContext) -> Encoder:
    """Build the encoder of a Parakeet checkpoint, or an encoder with random weights."""
    from transformers import ParakeetEncoder as Layers
    from transformers import ParakeetEncoderConfig as Architecture

    architecture = transformers_config(
        Architecture,
        config,
        context.architecture,
        dropout=config.dropout,
        dropout_positions=config.dropout,
        attention_dropout=config.dropout,
        activation_dropout=config.dropout,
        layerdrop=0.0,
    )
    cut = keep_layers(architecture, config, r"(encoder\.)?layers")
    rebuilt = context.architecture is not None
    model = build_or_load(Layers, architecture, config, rebuilt=rebuilt, ignored=(*_NOT_USED, *cut))
    if config.init == "random" and not rebuilt:
        scale_by_fan_in(model)
    for layer in model.layers:
        layer.conv.norm = FixedBatchNorm.of(layer.conv.norm)
    prepare_training(model, config)
    return ParakeetEncoder(model, config)


class ParakeetEncoder(Encoder):
    """transformers' Parakeet encoder, always called with a mask of the real frames."""

    def __init__(self, model: Any, config: ParakeetConfig) -> None:
        super().__init__()
        self.model = model
        self.dim: int = model.config.hidden_size
        self.subsampling = tuple(getattr(model.config, name) for name in _SUBSAMPLING)
        self.frame_rate = SAMPLE_RATE / HOP / self.subsampling[-1]
        self.weighted = weighted_layers(config, model.config.num_hidden_layers)

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return the number of frames after the strided convolutions. Every clip counts as at least one mel frame."""
        return _num_frames(_num_mel_frames(num_samples), *self.subsampling)

    def features(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        """Compute log-mel features ``[B, F, mels]`` like Parakeet's feature extractor.

        Each mel bin of a clip has mean 0 and variance 1.
        """
        num_mel_frames = _num_mel_frames(lengths)
        size = (int(num_mel_frames.max()) - 1) * HOP + NUM_FFT // 2
        audio = waveforms.float()[:, :size]
        audio = torch.cat([audio[:, :1], audio[:, 1:] - PREEMPHASIS * audio[:, :-1]], dim=1)
        audio = audio * length_mask(lengths, audio.shape[1])
        # Add silence at the start, so that the first Fourier transform is centered on the first sample. Add silence at
        # the end, so that the last transform is complete.
        audio = F.pad(audio, (NUM_FFT // 2, size - audio.shape[1]))
        window = torch.hann_window(WINDOW, periodic=False, device=audio.device)
        spectrum = torch.stft(audio, NUM_FFT, HOP, WINDOW, window=window, center=False, return_complex=True)
        power = spectrum.abs() ** 2
        filters = mel_filters(self.model.config.num_mel_bins, NUM_FFT).to(power)
        # [B, bins, F] -> [B, F, mels]; without autocast, so that features are the same in training and inference
        with torch.autocast(power.device.type, enabled=False):
            mel = (torch.einsum("bif,im->bfm", power, filters) + 2.0**-24).log()
        mask = length_mask(num_mel_frames, mel.shape[1])[..., None]
        count = num_mel_frames[:, None, None]
        mean = (mel * mask).sum(1, keepdim=True) / count
        variance = ((mel - mean) ** 2 * mask).sum(1, keepdim=True) / (count - 1).clamp(min=1)
        return Frames((mel - mean) / (variance.sqrt() + 1e-5) * mask, num_mel_frames, SAMPLE_RATE / HOP)

    def encode(self, features: Frames) -> Frames:
        """Run the strided convolutions and the layers. Padded frames are zeroed and masked throughout."""
        values = features.zeroed().values.to(self.model.subsampling.layers[0].weight.dtype)

        def run() -> Tensor:
            output: Tensor = self.model(values, attention_mask=features.mask()).last_hidden_state
            return output

        frames = run() if self.weighted is None else self.weighted(self.model.layers, run)
        return Frames(frames, _num_frames(features.lengths, *self.subsampling), self.frame_rate)

    def architecture(self) -> dict[str, Any]:
        """Return the transformers config in JSON form."""
        return architecture_of(self.model.config)


def _num_mel_frames(num_samples: Tensor) -> Tensor:
    return (num_samples // HOP).clamp(min=1)


def _num_frames(num_mel_frames: Tensor, kernel: int, stride: int, factor: int) -> Tensor:
    frames = num_mel_frames
    for _ in range(int(math.log2(factor))):
        frames = (frames + (kernel - 1) // 2 * 2 - kernel) // stride + 1
    return frames
