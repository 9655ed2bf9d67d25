"""W2v-BERT 2.0 (Barrault et al. 2023, arXiv 2312.05187): a Conformer pre-trained on 4.5 million hours of speech."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig, EncoderContext
from tiny_audio.encoders._layers import check_no_adapter, keep_layers, wav2vec_settings, weighted_layers
from tiny_audio.frames import SAMPLE_RATE, Frames, length_mask
from tiny_audio.pretrained.building import architecture_of, build_or_load, transformers_config
from tiny_audio.pretrained.trainable import prepare_training

WINDOW = 400
"""Length of the analysis window in samples, 25 ms."""
HOP = 160
"""Samples between filter-bank frames, 10 ms."""
NUM_FFT = 512
PREEMPHASIS = 0.97
STACK = 2
"""Number of filter-bank frames per encoder frame."""

_NOT_USED = (r"lm_head\..*", r"(wav2vec2_bert\.)?masked_spec_embed")
"""Regular expressions for unused keys: the CTC head, and the learned vector of transformers' own SpecAugment."""


class W2vBertConfig(EncoderConfig):
    """W2v-BERT 2.0: filter-bank front end, 50 frames per second, clips of any length."""

    # Relative positions are a bias on the attention. Flash Attention does not support biases.
    attentions: ClassVar[tuple[str, ...]] = ("sdpa", "eager")
    linear_layers: ClassVar[tuple[str, ...] | None] = (
        "projection",
        "linear_q",
        "linear_k",
        "linear_v",
        "linear_out",
        "intermediate_dense",
        "output_dense",
    )
    ctc_head: ClassVar[str | None] = "lm_head"

    name: Literal["w2v-bert"] = "w2v-bert"
    pretrained: str = "facebook/w2v-bert-2.0"
    """Hub id or local folder of a W2v-BERT checkpoint, with or without a CTC head."""

    def num_frames(self, num_samples: int) -> int:
        """Return half the number of full analysis windows, rounded down."""
        return int(_num_frames(torch.tensor(num_samples)))

    def max_duration_s(self) -> float | None:
        """Return None: positions are relative, so there is no limit."""
        return None

    def front_end(self) -> dict[str, Any]:
        """Return the settings of the front end. Each input of the layers is a pair of filter-bank frames."""
        mels = self.known_fields().get("feature_projection_input_dim", 160) // STACK
        return {"sampling_rate": SAMPLE_RATE, "num_mel_bins": mels, "stride": STACK}

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with two layers of 32 channels."""
        overrides: dict[str, Any] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "feature_projection_input_dim": 80,
            "conv_depthwise_kernel_size": 7,
        }
        return cls(init="random", overrides=overrides, freeze=False)


@ENCODERS.register
def build_w2v_bert(config: W2vBertConfig, context: EncoderContext) -> Encoder:
    """Build W2v-BERT from a checkpoint with or without a CTC head, or with random weights."""
    from transformers import Wav2Vec2BertConfig as Architecture
    from transformers import Wav2Vec2BertModel

    architecture = transformers_config(
        Architecture,
        config,
        context.architecture,
        **wav2vec_settings(config),
        conformer_conv_dropout=config.dropout,
    )
    check_no_adapter(architecture, config)
    cut = keep_layers(architecture, config, r"(wav2vec2_bert\.)?encoder\.layers")
    rebuilt = context.architecture is not None
    model = build_or_load(Wav2Vec2BertModel, architecture, config, rebuilt=rebuilt, ignored=(*_NOT_USED, *cut))
    prepare_training(model, config)
    return W2vBertEncoder(model, config)


class W2vBertEncoder(Encoder):
    """transformers' W2v-BERT with filter-bank features."""

    def __init__(self, model: Any, config: W2vBertConfig) -> None:
        super().__init__()
        self.model = model
        self.dim: int = model.config.hidden_size
        self.frame_rate = SAMPLE_RATE / HOP / STACK
        self.num_mels: int = model.config.feature_projection_input_dim // STACK
        self.weighted = weighted_layers(config, model.config.num_hidden_layers)

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return half the number of full analysis windows, rounded down, at least 1."""
        return _num_frames(num_samples)

    def features(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        """Compute filter-bank features ``[B, F, mels]`` like Kaldi and W2v-BERT's feature extractor. F is even.

        Each bin of a clip has mean 0 and variance 1. If the number of analysis windows is odd, the last window is
        dropped, but the mean and the variance include it.
        """
        num_windows = _num_windows(lengths)
        size = (int(num_windows.max()) - 1) * HOP + WINDOW
        audio = waveforms.float()[:, :size]
        audio = F.pad(audio * length_mask(lengths, audio.shape[1]), (0, size - audio.shape[1]))
        # [B, S] -> [B, F, 400], in the range of 16-bit integers
        windows = audio.unfold(1, WINDOW, HOP) * 2**15
        windows = windows - windows.mean(-1, keepdim=True)
        windows = windows - PREEMPHASIS * torch.cat([windows[..., :1], windows[..., :-1]], dim=-1)
        taper = torch.hann_window(WINDOW, periodic=False, device=audio.device) ** 0.85
        power = torch.fft.rfft(windows * taper, NUM_FFT).abs() ** 2
        filters = _mel_filters(self.num_mels).to(power)
        # [B, F, bins] -> [B, F, mels]; without autocast, so that features are the same in training and inference
        with torch.autocast(power.device.type, enabled=False):
            mel = (power @ filters).clamp(min=torch.finfo(torch.float32).eps).log()
        mask = length_mask(num_windows, mel.shape[1])[..., None]
        count = num_windows[:, None, None]
        mean = (mel * mask).sum(1, keepdim=True) / count
        variance = ((mel - mean) ** 2 * mask).sum(1, keepdim=True) / (count - 1)
        values = (mel - mean) / torch.sqrt(variance + 1e-7)
        paired = STACK * (num_windows // STACK)
        return Frames(values[:, : int(paired.max())], paired, SAMPLE_RATE / HOP)

    def encode(self, features: Frames) -> Frames:
        """Stack pairs of filter-bank frames, then run the layers. Padded frames are zeroed and masked throughout."""
        # [B, 2·T, mels] -> [B, T, 2·mels]
        values = torch.unflatten(features.values, 1, (-1, STACK)).flatten(2)
        stacked = Frames(values, features.lengths // STACK, self.frame_rate)
        projection = self.model.feature_projection
        hidden, _ = projection(stacked.values.to(projection.layer_norm.weight.dtype))

        def run() -> Tensor:
            output: Tensor = self.model.encoder(hidden, attention_mask=stacked.mask()).last_hidden_state
            return output

        frames = run() if self.weighted is None else self.weighted(self.model.encoder.layers, run)
        return Frames(frames, stacked.lengths, self.frame_rate)

    def architecture(self) -> dict[str, Any]:
        """Return the transformers config in JSON form."""
        return architecture_of(self.model.config)


def _num_windows(num_samples: Tensor) -> Tensor:
    """Return the number of full analysis windows in a clip. Clips shorter than two windows are padded."""
    return (num_samples.clamp(min=WINDOW + HOP) - WINDOW) // HOP + 1


def _num_frames(num_samples: Tensor) -> Tensor:
    return _num_windows(num_samples) // STACK


@lru_cache(maxsize=4)
def _mel_filters(num_mels: int) -> Tensor:
    """Return the filters ``[bins, mels]`` between 20 Hz and 8 kHz."""
    from torchaudio.compliance import kaldi

    with torch.device("cpu"):  # even if the model is built on the meta device
        filters, _ = kaldi.get_mel_banks(num_mels, NUM_FFT, SAMPLE_RATE, 20.0, SAMPLE_RATE / 2, 100.0, -500.0, 1.0)
    # Kaldi's filters have no weights for the Nyquist bin. Add zeros for this bin.
    return F.pad(filters, (0, 1)).T.contiguous()
