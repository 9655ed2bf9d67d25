"""wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477): contrastive learning from raw waveforms."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from tiny_audio.encoders import ENCODERS, Encoder, EncoderContext
from tiny_audio.encoders._waveform import TINY, WaveformConfig, build_waveform_encoder
from tiny_audio.pretrained.config import ALL_ATTENTIONS

_PRETRAINING = (r"quantizer\..*", r"project_q\..*", r"project_hid\..*")
"""Regular expressions for keys of layers that only the contrastive pre-training uses."""


class Wav2Vec2Config(WaveformConfig):
    """wav2vec 2.0: convolutions on the waveform, 50 frames per second, clips of any length."""

    attentions: ClassVar[tuple[str, ...]] = ALL_ATTENTIONS

    name: Literal["wav2vec2"] = "wav2vec2"
    pretrained: str = "facebook/wav2vec2-large-960h-lv60-self"
    """Hub id or local folder of a wav2vec 2.0 checkpoint, with or without a CTC head."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with two layers of 32 channels."""
        return cls(init="random", overrides=TINY, freeze=False)


@ENCODERS.register
def build_wav2vec2(config: Wav2Vec2Config, context: EncoderContext) -> Encoder:
    """Build wav2vec 2.0 from a checkpoint with or without a CTC head, or with random weights."""
    from transformers import Wav2Vec2Model

    return build_waveform_encoder(Wav2Vec2Model, config, context, not_used=_PRETRAINING)
