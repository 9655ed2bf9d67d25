"""Projectors with other settings than ``tiny()``: the contract, the number of parameters, and invalid settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.support.messages import assert_names
from tests.support.projectors import (
    CARD,
    CONTENT_DECIDES,
    CONTEXT,
    ENTRIES,
    SMALL,
    built,
    configured,
    embed,
    noise,
)
from tiny_audio.config import UserError
from tiny_audio.projectors import PROJECTORS, ProjectorConfig
from tiny_audio.recipe import load_recipe
from tiny_audio.registry import Entry
from tiny_audio.testing import PROJECTOR_CHECKS, check_projector

pytestmark = pytest.mark.usefixtures("one_thread")


SETTINGS = [
    ("linear", {"stack": 1, "hidden_dim": 16}),
    ("mlp", {"hidden_dim": 30, "bias": True}),
    ("mlp", {"merge": "average", "hidden_norm": True, "activation": "silu"}),
    ("conv", {"strides": [5], "hidden_dim": 16}),
    ("conv", {"strides": [1, 2, 2], "kernel_sizes": [3, 2, 5], "channels": 8, "hidden_dim": 16}),
    ("qformer", {"mode": "global", **SMALL}),
    ("qformer", {"window": 18, "num_queries": 2, "num_layers": 3, "cross_attention_every": 2, **SMALL}),
    ("qformer", {"window": 4, "num_queries": 4, "num_layers": 1, **SMALL}),
    ("transformer", {"stack": 1, "num_layers": 1, **SMALL}),
    ("moe", {"strides": [3], "kernel_sizes": [5], "num_experts": 2, "hidden_dim": 16}),
    ("ctc_compress", {"blanks": "drop"}),
]


@pytest.mark.parametrize(("name", "fields"), SETTINGS)
def test_contract_holds_at_other_settings(name: str, fields: dict[str, Any]) -> None:
    check_projector(configured(name, **fields))


@pytest.mark.parametrize("check", PROJECTOR_CHECKS, ids=lambda check: check.__name__)
def test_contract_holds_for_salmonns_qformer(check: Callable[[ProjectorConfig], None]) -> None:
    config = configured("qformer", window=17, num_queries=1, cross_attention_every=2, **SMALL)
    if check.__name__ == "check_gradients":
        # With a single query, the only attention weight is always 1, so the query layer of self-attention gets no
        # gradient. The original Q-Former has the same property.
        with pytest.raises(
            AssertionError, match=r"gradient of layers\.0\.self_attention\.attention\.query\.weight is all"
        ):
            check(config)
    else:
        check(config)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_max_embeddings_is_exact(entry: Entry[Any, Any]) -> None:
    """``max_embeddings`` is the exact number of embeddings of a clip. ``ctc_compress`` is left out, because its number
    depends on the content."""
    if entry.name in CONTENT_DECIDES:
        assert entry.config.needs_ctc
        return
    projector = PROJECTORS.build(entry.config.tiny(), CONTEXT).eval()
    for size in range(1, 70):
        embeddings, (length,) = embed(projector, noise(size))
        assert length == embeddings.shape[1] == int(projector.max_embeddings(torch.tensor([size])))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_config_cites_a_paper(entry: Entry[Any, Any]) -> None:
    summary, blank, *evidence = (entry.config.__doc__ or "").split("\n")
    assert summary.endswith(".")
    assert not blank.strip()
    assert re.search(r"arXiv \d{4}\.\d{5}", " ".join(evidence)), "the docstring cites no paper"


@pytest.mark.parametrize(
    ("name", "fields", "wanted"),
    [
        ("swiglu", {}, 6400 + 2 * 6400 * 8192 + 8192 * 2048),
        ("linear", {}, 6400 * 2048 + 2048 + 2048 * 2048 + 2048),
        ("mlp", {}, 5120 * 2048 + 2048 * 2048),
        ("mlp", {"hidden_dim": 4096, "bias": True}, 5120 * 4096 + 4096 + 4096 * 2048 + 2048),
        ("conv", {}, 5 * 1280 * 1280 + 1280 + 1280 * 2048 + 2048 + 2048 * 2048 + 2048),
        (
            "moe",
            {},
            2 * (2 * 1280 * 1280 + 1280) + 4 * 1280 + 4 + 4 * (1280 * 2048 + 2048 + 2048 * 2048 + 2048),
        ),
    ],
)
def test_parameter_counts_at_the_model_cards_widths(name: str, fields: dict[str, Any], wanted: int) -> None:
    with torch.device("meta"):
        projector = built(name, CARD, **fields)
    assert sum(tensor.numel() for tensor in projector.parameters()) == wanted + 2048


def test_swiglu_equals_the_model_cards_projector() -> None:
    with torch.device("meta"):
        projector = built("swiglu", CARD)
    assert list(projector.state_dict()) == [
        "norm.weight",
        "gate.weight",
        "up.weight",
        "down.weight",
        "output_norm.weight",
    ]
    assert sum(tensor.numel() for tensor in projector.parameters()) == 121_643_264


@pytest.mark.parametrize(
    ("name", "fields", "values"),
    [
        (
            "qformer",
            {"dim": 100},
            "dim 100 num_heads 16 112",
        ),
        (
            "transformer",
            {"num_heads": 7},
            "dim 1024 num_heads 7 1029",
        ),
        (
            "transformer",
            {"dim": 24, "num_heads": 8},
            "dim 24 num_heads 8 3",
        ),
        (
            "qformer",
            {"mode": "global", "window": 15},
            "window 15 mode global mode: windowed",
        ),
        (
            "qformer",
            {"num_queries": 4},
            "window 15 num_queries 4 16",
        ),
        (
            "qformer",
            {"window": 3, "num_queries": 5},
            "window 3 num_queries 5 5",
        ),
        (
            "qformer",
            {"num_layers": 2, "cross_attention_every": 3},
            "cross_attention_every 3 num_layers 2",
        ),
        (
            "conv",
            {"strides": [2, 2], "kernel_sizes": [3]},
            "kernel_sizes 1 strides 2",
        ),
        (
            "moe",
            {"strides": [2, 4], "kernel_sizes": [3, 3]},
            "kernel 3 stride 4 kernel_sizes",
        ),
        ("conv", {"strides": []}, "should have at least 1 item"),
        ("moe", {"num_experts": 1}, "should be greater than or equal to 2"),
        ("qformer", {"num_layers": 10**9}, "should be less than or equal to 100"),
        ("transformer", {"dropout": 1.0}, "should be less than 1"),
    ],
)
def test_contradicting_settings_are_rejected(name: str, fields: dict[str, Any], values: str) -> None:
    with pytest.raises(ValidationError) as caught:
        configured(name, **fields)
    assert_names(caught.value, values)


def test_ctc_compress_needs_a_ctc_head(document: Any, write_recipe: Callable[..., Path]) -> None:
    document["projector"] = "ctc_compress"
    message = "projector.ctc_compress: "
    with pytest.raises(UserError, match=re.escape(message)):
        load_recipe(write_recipe(document))
    assert load_recipe(write_recipe({**document, "ctc": {}})).projector == configured("ctc_compress")


def test_a_recipe_can_set_lists_and_modes(document: Any, write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(document)
    assert load_recipe(path, ["projector=conv", "projector.strides=[2,2]"]).projector == configured(
        "conv", strides=[2, 2]
    )
    assert load_recipe(path, ["projector=qformer", "projector.mode=global"]).projector.min_frames() == 1
    with pytest.raises(UserError) as caught:
        load_recipe(path, ["projector=qformer", "projector.num_heads=3"])
    assert_names(caught.value, "projector.qformer: dim 1024 num_heads 3 1026")
