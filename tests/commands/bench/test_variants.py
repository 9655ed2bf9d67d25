"""Variants of a benchmark, read from an option or from a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.paths import ROOT
from tiny_audio.commands.bench.variants import read_variants
from tiny_audio.config import UserError
from tiny_audio.projectors import PROJECTORS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_projector_is_a_variant_by_default() -> None:
    assert [variant.label for variant in read_variants(None).compared] == PROJECTORS.names()


def test_variants_are_read_from_text() -> None:
    found = read_variants("swiglu, conv:hidden_dim=16, wide=swiglu:stack=4+hidden_dim=512").compared
    assert [(variant.label, dict(variant.section)) for variant in found] == [
        ("swiglu", {"name": "swiglu"}),
        ("conv hidden_dim=16", {"name": "conv", "hidden_dim": 16}),
        ("wide", {"name": "swiglu", "stack": 4, "hidden_dim": 512}),
    ]


def test_shipped_variants_cover_all_projectors_at_equal_size_and_rate() -> None:
    from tiny_audio.projectors import ProjectorContext

    variants = read_variants(str(ROOT / "recipes" / "variants" / "projectors.yaml"))
    assert sorted(variant.section["name"] for variant in variants.compared) == PROJECTORS.names()
    assert len(variants.controls) == 1
    minute = torch.tensor([3000])
    for variant in variants.compared:
        projector = PROJECTORS.build(variant.config(), ProjectorContext(128, 128, 50.0, 0.05))
        size = sum(tensor.numel() for tensor in projector.parameters())
        assert size == pytest.approx(295_000, rel=0.01), variant.label
        if variant.label != "ctc_compress":
            assert int(projector.max_embeddings(minute)) == 750, variant.label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("swigloo", "unknown projector 'swigloo'; did you mean 'swiglu'?"),
        ("swiglu:stack", "--variants: 'swiglu:stack' must be name, name:field=value+field=value"),
        ("swiglu,,conv", "--variants: '' must be name,"),
        ("swiglu,swiglu", "--variants: 'swiglu' is given twice; give one of the two another label"),
        ("a=b=swiglu", "--variants: the label 'a=b' must have"),
        (f"{'x' * 61}=swiglu", "must have 1 to 60 characters"),
        ("there/is/none.yaml", "there/is/none.yaml"),
    ],
)
def test_invalid_variants_are_rejected(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read_variants(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variant": {"a": "conv"}}, "unknown section 'variant'; did you mean 'variants'?"),
        ({"controls": {"a": "conv"}}, "the section `variants` is missing"),
        ({"variants": ["conv"]}, "variants must map labels to projectors"),
        ({"variants": {"a": 3}}, "a must be a projector's name or its section, not 3"),
        ({"variants": {"a": {"name": "conv", "hiden_dim": 3}}}, "variant a: hiden_dim: Extra inputs are not permitted"),
        ({"variants": {"a, b": "conv"}}, "variants.yaml: the label 'a, b' must have"),
        ({"variants": {"a": "conv"}, "controls": {"": "conv"}}, "variants.yaml: the label '' must have"),
        ({"variants": {"a": "conv"}, "controls": {"a": "conv"}}, "--variants: 'a' is given twice"),
    ],
)
def test_invalid_files_of_variants_are_rejected(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "variants.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(message)):
        read_variants(str(path))
