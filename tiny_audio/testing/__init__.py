"""Checks of the contracts of parts, sources and providers, for your own tests. All built-in ones pass them.

    from tiny_audio.testing import check_projector

    def test_my_projector() -> None:
        check_projector(MyConfig.tiny())

A failed check raises an ``AssertionError`` that names the part and the violated requirement. To run the checks one by
one, take them from :data:`ENCODER_CHECKS`, :data:`PROJECTOR_CHECKS`, :data:`DECODER_CHECKS`, :data:`SOURCE_CHECKS` and
:data:`PROVIDER_CHECKS`.
"""

from __future__ import annotations

from tiny_audio.decoders import DecoderConfig
from tiny_audio.encoders import EncoderConfig
from tiny_audio.projectors import ProjectorConfig
from tiny_audio.providers import ProviderConfig
from tiny_audio.sources import SourceConfig, SourceContext
from tiny_audio.testing._decoders import CHECKS as DECODER_CHECKS
from tiny_audio.testing._encoders import CHECKS as ENCODER_CHECKS
from tiny_audio.testing._projectors import CHECKS as PROJECTOR_CHECKS
from tiny_audio.testing._providers import CHECKS as PROVIDER_CHECKS
from tiny_audio.testing._sources import CHECKS as SOURCE_CHECKS


def check_encoder(config: EncoderConfig) -> None:
    """Run all of :data:`ENCODER_CHECKS` on a small encoder with ``init: random`` and without dropout."""
    for check in ENCODER_CHECKS:
        check(config)


def check_projector(config: ProjectorConfig) -> None:
    """Run all of :data:`PROJECTOR_CHECKS` on a small projector without dropout."""
    for check in PROJECTOR_CHECKS:
        check(config)


def check_decoder(config: DecoderConfig) -> None:
    """Run all of :data:`DECODER_CHECKS` on a small decoder with ``init: random`` and ``tokenizer``, without dropout."""
    for check in DECODER_CHECKS:
        check(config)


def check_source(config: SourceConfig, context: SourceContext) -> None:
    """Run all of :data:`SOURCE_CHECKS` on a source with a few usable clips."""
    for check in SOURCE_CHECKS:
        check(config, context)


def check_provider(config: ProviderConfig) -> None:
    """Run all of :data:`PROVIDER_CHECKS` on a provider that answers, with its key or with your own server."""
    for check in PROVIDER_CHECKS:
        check(config)
