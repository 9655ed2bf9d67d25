"""HuBERT (Hsu et al. 2021, arXiv 2106.07447): masked prediction of hidden units, from raw waveforms."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from tiny_audio.encoders import ENCODERS, Encoder, EncoderContext
from tiny_audio.encoders._waveform import TINY, WaveformConfig, build_waveform_encoder
from tiny_audio.pretrained.config import ALL_ATTENTIONS


class HubertConfig(WaveformConfig):
    """HuBERT: convolutions on the waveform, 50 frames per second, clips of any length."""

    attentions: ClassVar[tuple[str, ...]] = ALL_ATTENTIONS

    name: Literal["hubert"] = "hubert"
    pretrained: str = "facebook/hubert-xlarge-ls960-ft"
    """Hub id or local folder of a HuBERT checkpoint, with or without a CTC head."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config with two layers of 32 channels."""
        return cls(init="random", overrides=TINY, freeze=False)


@ENCODERS.register
def build_hubert(config: HubertConfig, context: EncoderContext) -> Encoder:
    """Build HuBERT from a checkpoint with or without a CTC head, or with random weights."""
    from transformers import HubertModel

    return build_waveform_encoder(HubertModel, config, context)
