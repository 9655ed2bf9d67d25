"""Build the parts of a model with matching sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

from tiny_audio.decoders import DECODERS, Decoder, DecoderConfig, DecoderContext
from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig, EncoderContext
from tiny_audio.model.config import TinyAudioConfig
from tiny_audio.projectors import PROJECTORS, Projector, ProjectorConfig, ProjectorContext


class Parts(NamedTuple):
    """An encoder, a projector and a decoder with matching sizes."""

    encoder: Encoder
    projector: Projector
    decoder: Decoder
    embedding_rms: float
    """Root mean square of the decoder's token embeddings. The projector was built with this number."""


def build_parts(
    encoder: EncoderConfig,
    projector: ProjectorConfig,
    decoder: DecoderConfig,
    tokenizer: Any = None,
    *,
    encoder_architecture: dict[str, Any] | None = None,
    decoder_architecture: dict[str, Any] | None = None,
    embedding_rms: float | None = None,
) -> Parts:
    """Build an encoder, a projector and a decoder with matching sizes.

    Args:
        tokenizer: see :class:`DecoderContext`.
        encoder_architecture, decoder_architecture: results of ``Encoder.architecture`` and ``Decoder.architecture`` for
            parts that were built before. If given, no checkpoints are read.
        embedding_rms: root mean square of the decoder's token embeddings. If None, it is measured.

    Raises:
        UserError: a part cannot be built (see :mod:`tiny_audio.pretrained.building`).
    """
    built_encoder = ENCODERS.build(encoder, EncoderContext(encoder_architecture))
    built_decoder = DECODERS.build(decoder, DecoderContext(tokenizer, decoder_architecture))
    rms = built_decoder.embedding_rms() if embedding_rms is None else embedding_rms
    context = ProjectorContext(built_encoder.dim, built_decoder.dim, built_encoder.frame_rate, rms)
    return Parts(built_encoder, PROJECTORS.build(projector, context), built_decoder, rms)


def rebuild_parts(config: TinyAudioConfig) -> Parts:
    """Build the parts of a saved model without their checkpoints."""
    return build_parts(
        ENCODERS.parse(config.encoder),
        PROJECTORS.parse(config.projector),
        DECODERS.parse(config.decoder),
        encoder_architecture=config.encoder_architecture,
        decoder_architecture=config.decoder_architecture,
        embedding_rms=config.embedding_rms,
    )
