"""The Encoder contract, for all registered encoders."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.registered_parts import check_config, names, parts
from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig
from tiny_audio.registry import Entry
from tiny_audio.testing import ENCODER_CHECKS

PARTS = parts(ENCODERS)


@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_config(entry: Entry[EncoderConfig, Encoder]) -> None:
    check_config(entry)


@pytest.mark.parametrize("check", ENCODER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_contract(entry: Entry[EncoderConfig, Encoder], check: Callable[[EncoderConfig], None]) -> None:
    check(entry.config.tiny())
