"""Contract checks of parts (encoders, projectors and decoders), sources and providers, for your own tests.

    from tiny_audio.testing import check_projector

    def test_my_projector() -> None:
        check_projector(MyConfig.tiny())

A failed check raises an ``AssertionError`` that contains the ``name`` of the config and the violated requirement. To
run single checks, use :data:`ENCODER_CHECKS`, :data:`PROJECTOR_CHECKS`, :data:`DECODER_CHECKS`, :data:`SOURCE_CHECKS`
and :data:`PROVIDER_CHECKS`.
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
    """Run :data:`ENCODER_CHECKS` on a small encoder that has ``init: random`` and no dropout."""
    for check in ENCODER_CHECKS:
        check(config)


def check_projector(config: ProjectorConfig) -> None:
    """Run :data:`PROJECTOR_CHECKS` on a small projector without dropout."""
    for check in PROJECTOR_CHECKS:
        check(config)


def check_decoder(config: DecoderConfig) -> None:
    """Run :data:`DECODER_CHECKS` on a small decoder that has ``init: random``, a ``tokenizer`` and no dropout."""
    for check in DECODER_CHECKS:
        check(config)


def check_source(config: SourceConfig, context: SourceContext) -> None:
    """Run :data:`SOURCE_CHECKS` on a source with a few usable clips."""
    for check in SOURCE_CHECKS:
        check(config, context)


def check_provider(config: ProviderConfig) -> None:
    """Run :data:`PROVIDER_CHECKS` on a provider.

    The checks transcribe clips, so a provider behind an API needs a valid key or a test server.
    """
    for check in PROVIDER_CHECKS:
        check(config)
