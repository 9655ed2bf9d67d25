"""A randomly changed recipe can be loaded, or gives an error message for the user. It never gives a traceback."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import tiny_recipe
from tiny_audio.config import UserError
from tiny_audio.recipe import Recipe, load_recipe

FULL: dict[str, Any] = {
    **tiny_recipe(Path("clips")),
    "ctc": {"weight": 0.5},
    "prompt": {"system": "/no_think", "user": "Write: {audio}"},
    "augmentation": {
        "spec_augment": {"num_time_masks": 1},
        "speed": [0.9, 1.0],
        "silence": {},
        "white_noise": {"snr_db": [5, 30]},
    },
    "generation": {"num_beams": 4, "ctc_weight": 0.3, "ctc_search": True},
    "evaluation": {"normalizer": "lower", "group_by": "speaker"},
}
HUBERT = {
    "name": "hubert", "init": "random", "freeze": False,
    "overrides": {"conv_kernel": [10, 3, 3], "conv_stride": [5, 4, 4], "conv_dim": [8, 8, 8]},
}  # fmt: skip
LORA = {"rank": 2, "alpha": 4.0, "targets": ["q_proj"]}
SYNTHETIC = {"name": "synthetic", "grammars": ["digits"], "voices": ["f1"], "rate_wpm": [120, 200]}
VARIANTS: list[dict[str, Any]] = [
    FULL,
    {**FULL, "encoder": HUBERT},
    {**FULL, "decoder": {"name": "smollm3", "lora": LORA}, "training": {"steps": 5, "learning_rate": 1, "tf32": False}},
    {**FULL, "data": {"train": {"a": SYNTHETIC}, "max_duration_s": 5.0}},
]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**32, 2**63 - 1, -(2**63), 2**63, 10**30, 10**400, 1.5, 1e308, -1e308, 5e-324]),
    st.floats(),
    st.text(max_size=12),
    st.text("\ud800\udfff\x00\x07\u2028\ufeff😀é\\\"'{}[]:#&*!|>%@`-", max_size=8),
    st.sampled_from(["whisper", "hubert", "swiglu", "smollm3", "manifest", "synthetic", "random", "{audio}", "name"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(max_size=6), st.sampled_from(["name", "path", "extends"])), inner, max_size=3
        ),
    ),
    max_leaves=6,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (dict or list, one of its keys or indices) for ``value`` and everything in it."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from places(value[key])


def replace(draw: Callable[..., Any], document: Any) -> None:
    container, key = draw(st.sampled_from(list(places(document))))
    container[key] = draw(VALUES)


def remove(draw: Callable[..., Any], document: Any) -> None:
    container, key = draw(st.sampled_from(list(places(document))))
    del container[key]


def insert(draw: Callable[..., Any], document: Any) -> None:
    container, key = draw(st.sampled_from(list(places(document))))
    if isinstance(container, dict):
        container[draw(st.one_of(st.text(max_size=8), st.just(str(key)[:-1]), st.just("name")))] = draw(VALUES)
    else:
        container.insert(key, draw(VALUES))


def transplant(draw: Callable[..., Any], document: Any) -> None:
    """Replace one value by another value of the recipe."""
    (source, key), (container, place) = (draw(st.sampled_from(list(places(document)))) for _ in range(2))
    container[place] = copy.deepcopy(source[key])


def nest(draw: Callable[..., Any], document: Any) -> None:
    container, key = draw(st.sampled_from(list(places(document))))
    for _ in range(draw(st.integers(1, 120))):
        container[key] = [container[key]]


@st.composite
def mutated(draw: Callable[..., Any]) -> str:
    document = copy.deepcopy(draw(st.sampled_from(VARIANTS)))
    for _ in range(draw(st.integers(1, 4))):
        if not document:
            break
        draw(st.sampled_from([replace, replace, remove, insert, transplant, nest]))(draw, document)
    return json.dumps(document, ensure_ascii=draw(st.booleans()))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "recipe.yaml"


def check(file: Path, content: bytes, overrides: Sequence[str] = ()) -> None:
    file.write_bytes(content)
    try:
        recipe = load_recipe(file, overrides)
    except UserError as error:
        lines = str(error).splitlines()
        assert lines
        assert max(map(len, lines)) < 1500
        return
    assert isinstance(recipe, Recipe)
    assert len(recipe.run_id()) == 8
    assert Recipe.model_validate_json(recipe.model_dump_json()).run_id() == recipe.run_id()


def test_the_variants_are_valid(file: Path) -> None:
    for variant in VARIANTS:
        file.write_text(json.dumps(variant))
        assert isinstance(load_recipe(file), Recipe)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(text=mutated())
def test_mutated_documents(file: Path, text: str) -> None:
    check(file, text.encode(errors="surrogatepass"))


@pytest.mark.slow
@settings(max_examples=3_000, deadline=None)
@given(text=mutated())
def test_many_mutated_documents(file: Path, text: str) -> None:
    check(file, text.encode(errors="surrogatepass"))


PLAIN = """\
# A recipe as a person writes it.
encoder: whisper
projector: {name: swiglu, stack: 5}
decoder:
  name: smollm3
  revision: 'abc'
data:
  train:
    clips: {name: manifest, path: clips.jsonl}
training:
  steps: 100
  learning_rate: 1e-4  # at its highest
  adam_betas: [0.9, 0.98]
prompt:
  user: "Write: {audio}"
"""
SNIPPETS = [
    b"&a ", b"*a", b"!!python/object:x ", b"<<: ", b"? ", b"---\n", b"...\n", b"\t", b"\x00", b"\xff", b"\xef\xbb\xbf",
    b"|\n", b">-\n", b"- ", b": ", b"{", b"}", b"[", b"]", b'"', b"'", b"#", b"%YAML 9.9\n", b"~", b"\\ud800", b"\r",
    b"\n", b"extends: recipe.yaml\n", b"extends: .\n", b"1e999", b"9" * 30, "é".encode(), "\u2028".encode(),
]  # fmt: skip


@st.composite
def mutated_bytes(draw: Callable[..., Any]) -> bytes:
    content = PLAIN.encode()
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 12)))
        middle = draw(
            st.one_of(st.sampled_from(SNIPPETS), st.binary(max_size=4), st.just(content[start:end] * 2), st.just(b""))
        )
        content = content[:start] + middle + content[end:]
    return content


def test_the_plain_recipe_is_valid(file: Path) -> None:
    file.write_text(PLAIN)
    assert load_recipe(file).training.learning_rate == 1e-4


@settings(max_examples=50, deadline=None, derandomize=True)
@given(content=mutated_bytes())
def test_mutated_text(file: Path, content: bytes) -> None:
    check(file, content)


@pytest.mark.slow
@settings(max_examples=3_000, deadline=None)
@given(content=mutated_bytes())
def test_many_mutated_texts(file: Path, content: bytes) -> None:
    check(file, content)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(content=st.binary(max_size=200))
def test_random_bytes(file: Path, content: bytes) -> None:
    check(file, content)


PATHS = st.sampled_from(
    ["training.steps", "projector", "projector.name", "encoder.overrides.x", "a.b", "data.train.x", "x"]
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    overrides=st.lists(
        st.one_of(st.text(max_size=20), st.tuples(PATHS, st.text(max_size=12)).map("=".join)), max_size=3
    )
)
def test_random_overrides(file: Path, overrides: list[str]) -> None:
    check(file, PLAIN.encode(), overrides)
