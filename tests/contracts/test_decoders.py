"""The Decoder contract, for all registered decoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.registered_parts import check_config, names, parts
from tiny_audio.decoders import DECODERS, Decoder, DecoderConfig
from tiny_audio.registry import Entry
from tiny_audio.testing import DECODER_CHECKS

PARTS = parts(DECODERS)


@pytest.mark.parametrize("entry", PARTS, ids=names(PARTS))
def test_config(entry: Entry[DecoderConfig, Decoder]) -> None:
    check_config(entry)


OWN_CHECKS = (
    "check_embeddings",
    "check_logits",
    "check_invariance",
    "check_cache",
    "check_gradients",
    "check_save_load",
)
WINDOW_CHECKS = (
    "check_generation",
    "check_assisted_decoding",
    "check_finite",
    "check_attentions",
    "check_shared_prefix",
)


def contract() -> Iterator[Any]:
    """Return every check of every decoder.

    All families are built by the same code, so the fast run does not do all checks for every family. It does all checks
    for SmolLM3, and none for SmolLM2, which has the same transformers class as Llama. For other families, it does
    ``OWN_CHECKS``. For Gemma 3, it also does ``WINDOW_CHECKS``, because some of its layers have attention windows.

    What the fast run leaves out here is covered elsewhere, for all families: packed rows and shared prefixes in
    tests/pretrained/test_packing.py, training and generation in batches in tests/test_combinations.py, and generated
    ids in tests/decoders/test_equal_transformers.py.
    """
    fast = {
        "smollm2": (),
        "smollm3": [check.__name__ for check in DECODER_CHECKS],
        "gemma3": OWN_CHECKS + WINDOW_CHECKS,
    }
    for entry in PARTS:
        for check in DECODER_CHECKS:
            marks = [] if check.__name__ in fast.get(entry.name, OWN_CHECKS) else [pytest.mark.slow]
            yield pytest.param(entry, check, id=f"{entry.name}-{check.__name__}", marks=marks)


@pytest.mark.parametrize(("entry", "check"), list(contract()))
def test_contract(entry: Entry[DecoderConfig, Decoder], check: Callable[[DecoderConfig], None]) -> None:
    check(entry.config.tiny())
