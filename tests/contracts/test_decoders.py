"""The Decoder contract, for all registered decoders."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.registered_parts import check_config, names, parts
from tiny_audio.decoders import DECODERS, Decoder, DecoderConfig
from tiny_audio.registry import Entry
from tiny_audio.testing import DECODER_CHECKS

PARTS = parts(DECODERS)


@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_config(entry: Entry[DecoderConfig, Decoder]) -> None:
    check_config(entry)


# SmolLM2 is built by the code of Llama, and computed by the same class of transformers.
@pytest.mark.parametrize("check", DECODER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.name, marks=[pytest.mark.slow] if entry.name == "smollm2" else [])
        for entry in PARTS
    ],
)
def test_contract(entry: Entry[DecoderConfig, Decoder], check: Callable[[DecoderConfig], None]) -> None:
    check(entry.config.tiny())
