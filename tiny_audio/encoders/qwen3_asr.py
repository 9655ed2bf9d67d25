"""Qwen3-ASR's encoder: convolutions on chunks of 1 s, attention in windows of 8 s (arXiv 2601.21337)."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig, EncoderContext
from tiny_audio.encoders._initialization import scale_by_fan_in
from tiny_audio.encoders._layers import keep_layers, weighted_layers
from tiny_audio.encoders._log_mel import HOP, WINDOW, front_end, limit_range, log_mel, mel_filters, reflect
from tiny_audio.frames import SAMPLE_RATE, Frames, length_mask
from tiny_audio.pretrained.building import architecture_of, build_or_load, transformers_config
from tiny_audio.pretrained.config import ALL_ATTENTIONS
from tiny_audio.pretrained.packing import VARLEN, Packing
from tiny_audio.pretrained.trainable import prepare_training

SHORTEST = 8_000
"""Minimum number of samples, 0.5 s. Shorter clips are padded with silence to this length, as in Qwen's own code."""
STRIDE = 8
"""Mel frames per encoder frame within a chunk, from three convolutions of stride 2."""

_NOT_USED = (
    # In Qwen's own format, the tensors of the projector to the language model are stored with those of the encoder.
    r"proj[12]\..*",
    r"thinker\.(model|lm_head)\..*",
    r"model\.(language_model|multi_modal_projector)\..*",
    r"(lm_head|score)\..*",
)
"""Regular expressions for keys of a whole model that do not belong to the encoder."""


class Qwen3AsrConfig(EncoderConfig):
    """Qwen3-ASR: log-mel front end, 13 frames per second, clips of any length."""

    attentions: ClassVar[tuple[str, ...]] = ALL_ATTENTIONS
    linear_layers: ClassVar[tuple[str, ...] | None] = (
        "conv_out",
        "q_proj",
        "k_proj",
        "v_proj",
        "out_proj",
        "fc1",
        "fc2",
    )
    sections: ClassVar[tuple[str, ...]] = ("thinker_config", "audio_config")
    other_model_types: ClassVar[tuple[str, ...]] = ("qwen3_asr_audio_encoder",)
    prefix: ClassVar[str | None] = r"(thinker\.|model\.)?audio_tower\."

    name: Literal["qwen3-asr"] = "qwen3-asr"
    pretrained: str = "Qwen/Qwen3-ASR-1.7B"
    """Hub id or local folder of a Qwen3-ASR checkpoint, in Qwen's or transformers' format. Only its encoder is
    loaded."""

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of all chunks. A chunk has one frame for every eight mel frames, rounded up."""
        return int(_num_frames(_num_mel_frames(torch.tensor(num_samples)), 2 * self.known_fields().get("n_window", 50)))

    def max_duration_s(self) -> float | None:
        """Return None: positions restart in every chunk, so there is no limit."""
        return None

    def front_end(self) -> dict[str, Any]:
        """Return the settings of the front end, which computes one mel frame per 10 ms."""
        return front_end(self.known_fields().get("num_mel_bins", 128))

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with two layers of 32 channels and attention in windows of 1 s."""
        overrides: dict[str, Any] = {
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 8,
            "downsample_hidden_size": 4,
            "n_window_infer": 100,
        }
        return cls(init="random", overrides=overrides, freeze=False)


@ENCODERS.register
def build_qwen3_asr(config: Qwen3AsrConfig, context: EncoderContext) -> Encoder:
    """Build the encoder of a Qwen3-ASR checkpoint, or an encoder with random weights."""
    from transformers import Qwen3ASREncoder as Layers
    from transformers import Qwen3ASREncoderConfig as Architecture

    architecture = transformers_config(Architecture, config, context.architecture)
    cut = keep_layers(architecture, config, r"layers")
    rebuilt = context.architecture is not None
    model = build_or_load(Layers, architecture, config, rebuilt=rebuilt, ignored=(*_NOT_USED, *cut))
    if config.init == "random" and not rebuilt:
        scale_by_fan_in(model)
    prepare_training(model, config)
    return Qwen3AsrEncoder(model, config)


class Qwen3AsrEncoder(Encoder):
    """transformers' Qwen3-ASR encoder on packed frames: the frames of all clips as one sequence without padding."""

    def __init__(self, model: Any, config: Qwen3AsrConfig) -> None:
        super().__init__()
        self.model = model
        self.dim: int = model.config.d_model
        self.chunk: int = 2 * model.config.n_window
        """Number of mel frames in a chunk."""
        self.frames_per_chunk = -(-self.chunk // STRIDE)
        self.window = model.config.n_window_infer // self.chunk * self.frames_per_chunk
        """Number of frames in an attention window."""
        self.frame_rate = SAMPLE_RATE / HOP / self.chunk * self.frames_per_chunk
        self.attention = config.attention
        self.dropout = config.dropout
        for layer in model.layers:
            # Set the dropout here, because transformers ignores `attention_dropout` in this model's config.
            layer.self_attn.attention_dropout = config.dropout
        self.weighted = weighted_layers(config, model.config.encoder_layers)
        if config.layer != "last":
            model.ln_post = nn.Identity()  # skip the norm, which was trained only on the last layer's output

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return the number of frames of all chunks."""
        return _num_frames(_num_mel_frames(num_samples), self.chunk)

    def features(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        """Compute log-mel features ``[B, F, mels]`` like Qwen3-ASR's feature extractor for a single clip."""
        padded = lengths.clamp(min=SHORTEST)
        audio = waveforms.float() * length_mask(lengths, waveforms.shape[1])
        audio = F.pad(audio, (0, max(0, int(padded.max()) - audio.shape[1])))
        mel = log_mel(reflect(audio, padded, WINDOW // 2), mel_filters(self.model.config.num_mel_bins))
        num_mel_frames = _num_mel_frames(padded)
        mel = mel[:, : int(num_mel_frames.max())]  # drop the last window, like the feature extractor
        mel = limit_range(mel, length_mask(num_mel_frames, mel.shape[1]))
        return Frames((mel + 4.0) / 4.0, num_mel_frames, SAMPLE_RATE / HOP)

    def encode(self, features: Frames) -> Frames:
        """Run the convolutions on each chunk, then the layers on each window of the packed frames."""
        model = self.model
        lengths = _num_frames(features.lengths, self.chunk)
        hidden = self._convolve(features, lengths)
        hidden = F.dropout(hidden, p=self.dropout, training=self.training)
        arguments = self._windows(lengths)

        def run() -> Tensor:
            state = hidden
            for layer in model.layers:
                state = layer(state, **arguments)[0]
            output: Tensor = model.ln_post(state)
            return output

        values = run() if self.weighted is None else self.weighted(model.layers, run)
        packing = Packing.of(length_mask(lengths, int(lengths.max())))
        return Frames(packing.unpack(values[None]), lengths, self.frame_rate)

    def architecture(self) -> dict[str, Any]:
        """Return the transformers config in JSON form."""
        return architecture_of(self.model.config)

    def _convolve(self, features: Frames, lengths: Tensor) -> Tensor:
        """Run the convolutions and add positions: ``[B, F, mels]`` -> packed frames ``[T, D]`` of all clips.

        Padding is set to zero, as in transformers' feature extractor. ``lengths [B]`` are numbers of frames.
        """
        model = self.model
        values = features.zeroed().values
        values = torch.unflatten(F.pad(values, (0, 0, 0, -values.shape[1] % self.chunk)), 1, (-1, self.chunk))
        num_chunks = values.shape[1]
        used = length_mask(-(-features.lengths // self.chunk), num_chunks)
        # [B, chunks, F', mels] -> [N, 1, mels, F']; N is the number of chunks with audio
        hidden = values[used].transpose(1, 2)[:, None].to(model.conv2d1.weight.dtype)
        for convolution in (model.conv2d1, model.conv2d2, model.conv2d3):
            hidden = F.gelu(convolution(hidden))
        # [N, C, mels/8, T'] -> [N, T', D]
        hidden = model.conv_out(hidden.permute(0, 3, 1, 2).flatten(2))
        hidden = hidden + model.positional_embedding(self.frames_per_chunk).to(hidden.dtype)
        real = torch.unflatten(length_mask(lengths, num_chunks * self.frames_per_chunk), 1, (num_chunks, -1))
        packed: Tensor = hidden[real[used]]
        return packed

    def _windows(self, lengths: Tensor) -> dict[str, Any]:
        """Return keyword arguments that limit the layers' attention to frames of the same clip and window."""
        sizes = [
            min(self.window, length - start) for length in lengths.tolist() for start in range(0, length, self.window)
        ]
        offsets, longest = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32), max(sizes)
        if self.attention == VARLEN:
            # transformers would split the frames at `cu_seqlens`, and call the attention once per range. But `varlen`
            # splits the frames itself, at `cu_seq_lens_q`. So `cu_seqlens` has only one range, with all frames.
            on_device = offsets.to(lengths.device)
            own = {"cu_seq_lens_q": on_device, "cu_seq_lens_k": on_device}
            return {"cu_seqlens": offsets[[0, -1]], "max_length_q": longest, "max_length_k": longest} | own
        if self.attention == "flash_attention_2":
            offsets = offsets.to(lengths.device)
        return {"cu_seqlens": offsets, "max_seqlen": longest}


def _num_mel_frames(num_samples: Tensor) -> Tensor:
    return num_samples.clamp(min=SHORTEST) // HOP


def _num_frames(num_mel_frames: Tensor, chunk: int) -> Tensor:
    full, rest = num_mel_frames // chunk, num_mel_frames % chunk
    return full * -(-chunk // STRIDE) + -(-rest // STRIDE)
