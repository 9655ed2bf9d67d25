"""The common base of HuBERT, wav2vec 2.0 and WavLM, which have the same front end."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Collection
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from tiny_audio.encoders import Encoder, EncoderConfig, EncoderContext
from tiny_audio.encoders._layers import check_no_adapter, keep_layers, wav2vec_settings, weighted_layers
from tiny_audio.frames import SAMPLE_RATE, Frames, length_mask
from tiny_audio.pretrained.building import architecture_of, build_or_load, transformers_config
from tiny_audio.pretrained.packing import PACKED, Packing
from tiny_audio.pretrained.trainable import prepare_training

KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
"""Kernel sizes and strides of the convolutions if the checkpoint's config does not set them. The product of the strides
is 320 samples per frame."""

LINEAR_LAYERS = ("projection", "q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense")
"""Names of the linear layers that all three families have."""

TINY: dict[str, Any] = {
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
"""Config fields for two layers of 32 channels. The front end has a layer norm, so padding does not affect frames."""


class WaveformConfig(EncoderConfig, ABC):
    """Base class of the configs of HuBERT, wav2vec 2.0 and WavLM."""

    linear_layers: ClassVar[tuple[str, ...] | None] = LINEAR_LAYERS
    ctc_head: ClassVar[str | None] = "lm_head"

    normalize: bool = True
    """Scale each clip to mean 0 and variance 1. Checkpoints with layer norms in their front end, such as the large
    checkpoints of HuBERT and WavLM, expect this. The base checkpoints have a group norm instead. The group norm removes
    the mean and the scale of a clip, so this setting does not change their output."""
    train_front_end: bool = False
    """Train the convolutions of the front end, too. If false, no gradient is computed for them."""

    @model_validator(mode="after")
    def _check_front_end(self) -> Self:
        if self.train_front_end and self.freeze:
            raise ValueError(
                "train_front_end has no effect with freeze: true; remove train_front_end, or set freeze: false"
            )
        return self

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames after the convolutions."""
        known = self.known_fields()
        kernels, strides = known.get("conv_kernel", KERNELS), known.get("conv_stride", STRIDES)
        return int(_num_frames(torch.tensor(num_samples), kernels, strides))

    def max_duration_s(self) -> float | None:
        """Return None: positions are relative, so there is no limit."""
        return None

    def front_end(self) -> dict[str, Any]:
        """Return the settings of the front end. With a group norm, ``normalize`` has no effect and is left out."""
        has_group_norm = self.known_fields().get("feat_extract_norm", "group") == "group"
        return {"sampling_rate": SAMPLE_RATE} | ({} if has_group_norm else {"do_normalize": self.normalize})


def build_waveform_encoder(
    model_class: Any,
    config: WaveformConfig,
    context: EncoderContext,
    *,
    not_used: Collection[str] = (),
    attention: str | None = None,
) -> WaveformEncoder:
    """Build an encoder with random weights, or from a checkpoint with or without a CTC head.

    Args:
        model_class: the family's ``transformers`` model class without a head.
        not_used: regular expressions for checkpoint keys that the encoder does not use. The CTC head's keys are always
            ignored.
        attention: name of transformers' attention implementation. If None, the implementation in the config is used.

    Raises:
        UserError: the checkpoint has an adapter, has no layer ``config.layer``, or cannot be loaded.
    """
    architecture = transformers_config(
        model_class.config_class,
        config,
        context.architecture,
        **wav2vec_settings(config),
    )
    check_no_adapter(architecture, config)
    prefix = rf"({model_class.base_model_prefix}\.)?"
    cut = keep_layers(architecture, config, rf"{prefix}encoder\.layers")
    # Ignore the CTC head, and the learned vector of transformers' own SpecAugment.
    ignored = (r"lm_head\..*", rf"{prefix}masked_spec_embed", *not_used, *cut)
    rebuilt = context.architecture is not None
    model = build_or_load(model_class, architecture, config, rebuilt=rebuilt, ignored=ignored, attention=attention)
    prepare_training(model, config)
    if not config.train_front_end:
        # Setting requires_grad to False is not enough: transformers would still compute gradients for the input.
        model.feature_extractor._freeze_parameters()
    return WaveformEncoder(model, config)


class WaveformEncoder(Encoder):
    """A HuBERT, wav2vec 2.0 or WavLM model of transformers."""

    def __init__(self, model: Any, config: WaveformConfig) -> None:
        super().__init__()
        self.model = model
        self.normalize = config.normalize
        self.packs = config.attention in PACKED
        self.dim: int = model.config.hidden_size
        self.frame_rate = SAMPLE_RATE / math.prod(model.config.conv_stride)
        # A group norm computes statistics over time, so padding would affect every frame. Run such a front end on one
        # clip at a time.
        self.per_clip: bool = model.config.feat_extract_norm == "group"
        self.weighted = weighted_layers(config, model.config.num_hidden_layers)
        if config.layer != "last" and model.config.do_stable_layer_norm:
            model.encoder.layer_norm = nn.Identity()  # skip the norm, which was trained only on the last layer's output

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return the number of frames after the convolutions. A clip shorter than one frame counts as one frame."""
        return _num_frames(num_samples, self.model.config.conv_kernel, self.model.config.conv_stride)

    def features(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        """Run the convolutions, and return features ``[B, T, C]``."""
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
        audio = audio.to(self.model.feature_extractor.conv_layers[0].conv.weight.dtype)
        frame_lengths = self.num_frames(lengths)
        if self.per_clip:
            clips = [
                self.model.feature_extractor(row[None, : max(int(length), shortest)])[0].T
                for row, length in zip(audio, lengths, strict=True)
            ]
            values = nn.utils.rnn.pad_sequence(clips, batch_first=True)
        else:
            # [B, C, T] -> [B, T, C]
            values = self.model.feature_extractor(audio).transpose(1, 2)
        return Frames(values[:, : int(frame_lengths.max())], frame_lengths, self.frame_rate)

    def encode(self, features: Frames) -> Frames:
        """Run the projection, positional convolution and layers. Padded frames are zeroed and masked throughout.

        If the attention supports packing, the clips are packed into one sequence without padding. They are packed after
        the positional convolution, which would otherwise read across the borders between clips.
        """
        # The convolutions may be frozen in half precision while the layers train in full precision.
        values = features.values.to(self.model.feature_projection.projection.weight.dtype)
        projected = self.model.feature_projection(values)
        # Some families also return the features before the projection.
        hidden = projected[0] if isinstance(projected, tuple) else projected

        packing = Packing.of(features.mask()) if self.packs else None

        def run() -> Tensor:
            output: Tensor
            if packing is None:
                output = self.model.encoder(hidden, attention_mask=features.mask()).last_hidden_state
                return output
            zeroed = hidden.masked_fill(~features.mask()[..., None], 0)
            # Pack the output of the encoder's dropout, which is the last module before the layers.
            hook = self.model.encoder.dropout.register_forward_hook(lambda *step: packing.pack(step[-1]))
            try:
                output = self.model.encoder(zeroed, **packing.attention()).last_hidden_state
            finally:
                hook.remove()
            return output

        frames = run() if self.weighted is None else self.weighted(self.model.encoder.layers, run)
        return Frames(packing.unpack(frames) if packing else frames, features.lengths, self.frame_rate)

    def architecture(self) -> dict[str, Any]:
        """Return the transformers config in JSON form."""
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
