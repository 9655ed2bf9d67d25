"""HuBERT (Hsu et al. 2021, arXiv 2106.07447): masked prediction of hidden units, from raw waveforms."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig, EncoderContext
from tiny_audio.frames import Frames, length_mask
from tiny_audio.pretrained import architecture_of, attention_for, load_weights, prepare_training, transformers_config

SAMPLE_RATE = 16_000
KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
"""The convolutions of every published HuBERT: 320 samples a frame."""


class HubertConfig(EncoderConfig):
    """HuBERT: convolutions on the waveform, 50 frames a second, any length."""

    name: Literal["hubert"] = "hubert"
    pretrained: str = "facebook/hubert-xlarge-ls960-ft"
    """Hub id or local folder of a HuBERT checkpoint, with or without a CTC head."""
    normalize: bool = True
    """Give each clip mean 0 and variance 1, as the released checkpoints expect."""
    train_front_end: bool = False
    """Train the convolutions too. Where they do not train, no gradient is computed for them."""

    @model_validator(mode="after")
    def _check_front_end(self) -> Self:
        if self.train_front_end and self.freeze:
            raise ValueError("train_front_end has no effect under freeze: true; remove it, or set freeze: false")
        return self

    def num_frames(self, num_samples: int) -> int:
        """Frames after the convolutions."""
        kernels, strides = (self.overrides.get(key, value) for key, value in _CONVOLUTIONS.items())
        return int(_num_frames(torch.tensor(num_samples), kernels, strides))

    def max_duration_s(self) -> float | None:
        """Positions are relative: no limit."""
        return None

    @classmethod
    def tiny(cls) -> Self:
        """Two layers of 32 channels, of the kind that takes a mask."""
        overrides: dict[str, Any] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "conv_dim": [16] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "conv_bias": True,
        }
        return cls(init="random", overrides=overrides, freeze=False)


_CONVOLUTIONS: dict[str, Any] = {"conv_kernel": KERNELS, "conv_stride": STRIDES}
_NOT_USED = (r"lm_head\..*", r"(hubert\.)?masked_spec_embed")
"""A CTC head, and the vector of transformers' own SpecAugment."""


@ENCODERS.register
def build_hubert(config: HubertConfig, context: EncoderContext) -> Encoder:
    """HuBERT from a checkpoint, with or without a CTC head on it, or a random one."""
    from transformers import HubertConfig as Architecture
    from transformers import HubertModel

    architecture = transformers_config(
        Architecture,
        config,
        context.architecture,
        hidden_dropout=config.dropout,
        activation_dropout=config.dropout,
        attention_dropout=config.dropout,
        feat_proj_dropout=config.dropout,
        final_dropout=config.dropout,
        layerdrop=0.0,
        # SpecAugment is the recipe's `augmentation`, for every encoder alike.
        apply_spec_augment=False,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
    )
    architecture._attn_implementation = attention_for(config)
    if context.architecture is not None:
        model = HubertModel._from_config(architecture)
    else:
        model = load_weights(HubertModel, architecture, config, ignored=_NOT_USED)
    prepare_training(model, config)
    # The learned mask vector is of use only inside transformers' own SpecAugment.
    if getattr(model, "masked_spec_embed", None) is not None:
        model.masked_spec_embed.requires_grad_(False)
    if not config.train_front_end:  # requires_grad alone would leave the gradient flowing through their input
        model.feature_extractor._freeze_parameters()
    return HubertEncoder(model, config.normalize)


class HubertEncoder(Encoder):
    """transformers' HuBERT with padding kept out of every statistic."""

    def __init__(self, model: Any, normalize: bool) -> None:
        super().__init__()
        self.model = model
        self.normalize = normalize
        self.dim: int = model.config.hidden_size
        self.frame_rate = SAMPLE_RATE / math.prod(model.config.conv_stride)
        # Group norm takes its statistics over time: there, padding would leak into every frame.
        self.per_clip: bool = model.config.feat_extract_norm == "group"

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Frames after the convolutions; a clip shorter than one frame counts as one."""
        return _num_frames(num_samples, self.model.config.conv_kernel, self.model.config.conv_stride)

    def features(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        """Convolution features ``[B, T, C]``; clip by clip where the front end normalises over time."""
        mask = length_mask(lengths, waveforms.shape[1])
        audio = waveforms.float() * mask
        if self.normalize:
            count = lengths.clamp(min=1)[:, None]
            mean = audio.sum(1, keepdim=True) / count
            variance = (((audio - mean) * mask) ** 2).sum(1, keepdim=True) / count
            audio = (audio - mean) * mask / torch.sqrt(variance + 1e-7)
        shortest = _receptive_field(self.model.config.conv_kernel, self.model.config.conv_stride)
        if audio.shape[1] < shortest:
            audio = torch.nn.functional.pad(audio, (0, shortest - audio.shape[1]))
        audio = audio.to(self.model.feature_projection.projection.weight.dtype)
        frame_lengths = self.num_frames(lengths)
        if self.per_clip:
            clips = [
                self.model.feature_extractor(row[None, : max(int(length), shortest)])[0].T
                for row, length in zip(audio, lengths, strict=True)
            ]
            values = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        else:
            # [B, C, T] -> [B, T, C]
            values = self.model.feature_extractor(audio).transpose(1, 2)
        return Frames(values[:, : int(frame_lengths.max())], frame_lengths, self.frame_rate)

    def encode(self, features: Frames) -> Frames:
        """Projection, positional convolution and layers, padded frames zeroed and masked throughout."""
        hidden = self.model.feature_projection(features.values)
        hidden = self.model.encoder(hidden, attention_mask=features.mask()).last_hidden_state
        return Frames(hidden, features.lengths, self.frame_rate)

    def architecture(self) -> dict[str, Any]:
        """The transformers config."""
        return architecture_of(self.model.config)


def _receptive_field(kernels: Any, strides: Any) -> int:
    samples = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def _num_frames(num_samples: Tensor, kernels: Any, strides: Any) -> Tensor:
    frames = num_samples.clamp(min=_receptive_field(kernels, strides))
    for kernel, stride in zip(kernels, strides, strict=True):
        frames = (frames - kernel) // stride + 1
    return frames
