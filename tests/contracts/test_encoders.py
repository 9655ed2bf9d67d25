"""The Encoder contract, for all registered encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.registered_parts import check_config, names, parts
from tiny_audio.encoders import ENCODERS, Encoder, EncoderConfig
from tiny_audio.registry import Entry
from tiny_audio.testing import ENCODER_CHECKS

PARTS = parts(ENCODERS)
FAST_FOR = {"check_packing": "whisper", "check_layers": "granite-speech"}


@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_config(entry: Entry[EncoderConfig, Encoder]) -> None:
    check_config(entry)


def contract() -> Iterator[Any]:
    """Return every check of every encoder.

    ``check_packing`` calls ``check_layers``, and both take long. The fast run does ``check_packing`` only for Whisper.
    It does ``check_layers`` only for Granite Speech, whose middle layer also predicts characters. For other encoders,
    tests/encoders/test_layers.py covers layers, and tests/pretrained/test_packing.py covers packed rows. HuBERT and
    wav2vec 2.0 share their code, so the fast run checks only HuBERT.
    """
    for entry in PARTS:
        for check in ENCODER_CHECKS:
            is_elsewhere = entry.name != FAST_FOR.get(check.__name__, entry.name)
            marks = [pytest.mark.slow] if is_elsewhere or entry.name == "wav2vec2" else []
            yield pytest.param(entry, check, id=f"{entry.name}-{check.__name__}", marks=marks)


@pytest.mark.parametrize(("entry", "check"), list(contract()))
def test_contract(entry: Entry[EncoderConfig, Encoder], check: Callable[[EncoderConfig], None]) -> None:
    check(entry.config.tiny())
