"""The subset of YAML that recipes may use. The tests check the position and the values in each error message."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_audio.config import UserError
from tiny_audio.runtime.yaml_file import (
    MAX_DEPTH,
    dump_yaml,
    parse_mapping,
)

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("+7", 7),
        ("010", 10),
        ("1_000", 1000),
        ("9223372036854775807", 2**63 - 1),
        ("1e-4", 1e-4),
        ("1e5", 1e5),
        ("2.", 2.0),
        (".5", 0.5),
        ("-1.5E+3", -1500.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("0o17", "0o17"),
        ("1_", "1_"),
        ("1.2.3", "1.2.3"),
        ("<<", "<<"),
        ("=", "="),
        ("'1'", "1"),
        ('"true"', "true"),
        ('"\\u00e9"', "é"),
        ("😀 café", "😀 café"),
        ('"\\ud83d\\ude00"', "😀"),
        ("[1, [2, x]]", [1, [2, "x"]]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("&name 5", 5),
    ],
)
def test_scalars_are_read_as_users_expect(text: str, value: object) -> None:
    read = parse_mapping(f"key: {text}", "r.yaml")["key"]
    assert read == value
    assert type(read) is type(value)


def test_nan_is_read() -> None:
    assert math.isnan(parse_mapping("key: .nan", "r.yaml")["key"])


def test_a_block_of_text_keeps_its_lines() -> None:
    assert parse_mapping("key: |\n  one\n  two\n", "r.yaml") == {"key": "one\ntwo\n"}


def test_json_is_yaml() -> None:
    assert parse_mapping('{"a": [1, 2.5, true, null, "x"]}', "r.yaml") == {"a": [1, 2.5, True, None, "x"]}


TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(["1e-4", "12e34567", "no", "null", "010", "1_000", "~", "",
                       "\x85", "a\u2028 b", "\ufeff", "a\r\nb ", "- a", "a: b", "*x", "&x", "!t", "{", "#"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(max_size=5), TREES, max_size=4))
def test_dumped_documents_can_be_read(document: dict[str, Any]) -> None:
    assert parse_mapping(dump_yaml(document), "r.yaml") == document


def test_a_dump_has_no_aliases_and_keeps_the_order_of_keys() -> None:
    shared = [1, 2]
    assert dump_yaml({"b": shared, "a": shared}) == "b:\n- 1\n- 2\na:\n- 1\n- 2\n"
    assert dump_yaml({"revision": "12e3", "rate": 1e-5}) == "revision: '12e3'\nrate: 1.0e-05\n"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A short text with aliases of aliases, which would expand to 9⁹ values."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^r.yaml .*empty"),
        ("# a comment only", "empty"),
        ("just words", "^r.yaml .*'just words'"),
        ("- a\n- b", r"\['a', 'b'\]"),
        ("5", "5$"),
        ("x" * 5000, r"'x{76}\.\.\.$"),
        ("a: 1\nb: 2\na: 3", "r.yaml, line 3, column 1: duplicate key 'a'"),
        ("a: {b: 1, 'b': 2}", "r.yaml, line 1, column 11: duplicate key 'b'"),
        ("a: &x 1\nb: *x", "line 2, column 4: aliases"),
        ("a: &x [*x]", "aliases"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "line 3, column 7: aliases"),
        (BOMB, "aliases"),
        ("a: 1\n---\nb: 2", "r.yaml, line 2, column 1: .*but found another document"),
        (
            "a: !!python/object:os.system x",
            "line 1, column 4: tags .*'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("a: !!python/object/apply:os.system ['echo']", "tags"),
        ("a: !!binary aGk=", "tags .*'tag:yaml.org,2002:binary'"),
        ("a: !!set {x, y}", "tags .*'tag:yaml.org,2002:set'"),
        ("a: !!bool perhaps", "tags .*'tag:yaml.org,2002:bool'"),
        ("a: !mine 5", "tags .*'!mine'"),
        ("a: !!map [1]", "tags .*'tag:yaml.org,2002:map'"),
        ("1: x", "line 1, column 1: keys .*1"),
        ("true: x", "keys .*True"),
        ("a:\n  1.5: x", "line 2, column 3: keys .*1.5"),
        ("~: x", "keys .*None"),
        ("? [a, b]\n: x", r"keys .*\['a', 'b'\]"),
        ("? {a: 1}\n: x", "keys .*{'a': 1}"),
        ("a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, rf"nested more than {MAX_DEPTH} levels deep"),
        ("a: " + "[" * 100_000, rf"nested more than {MAX_DEPTH} levels deep"),
        ("a: " + "{b: " * 50_000, rf"nested more than {MAX_DEPTH} levels deep"),
        ("\n".join(" " * depth + "a:" for depth in range(300)), rf"nested more than {MAX_DEPTH} levels deep"),
        ("a: [1, 2", "line 1, column 9: .*expected ',' or ']'"),
        ("a: 'open", "found unexpected end of stream"),
        ("a:\n\tb: 1", r"line 2, column 1: .*cannot start any token"),
        ("a: b: c", "mapping values are not allowed here"),
        ("a: 1\n b: 2", "line 2, column 3: mapping values are not allowed here"),
        ("a: @x", "cannot start any token"),
        ("a: %x", "cannot start any token"),
        ("%YAML 3.0\n---\na: 1", "incompatible YAML document"),
        ("a: &x 1\nb: &x 2", "duplicate anchor|found duplicate anchor"),
        ("a: \0", r"r.yaml .*unacceptable character #x0000"),
        ("a: \x07", "unacceptable character #x0007"),
        ("a: \udcff", "unacceptable character #xdcff"),
        ('a: "\\ud800"', "line 1, column 4: .*surrogate"),
        ('a: "\\UFFFFFFFF"', "r.yaml"),
        ('a: "\\U00110000"', "r.yaml"),
        ("a: 9223372036854775808", "line 1, column 4: '9223372036854775808' is too large"),
        ("a: " + "9" * 100_000, r"'9{76}\.\.\. is too large"),
    ],
)
def test_unsupported_yaml_is_rejected(text: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        parse_mapping(text, "r.yaml")
    assert "r.yaml" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.monotonic() - started < 5


def test_huge_numbers_are_read_fast() -> None:
    assert parse_mapping("a: 1." + "0" * 200_000 + "e0", "r.yaml") == {"a": 1.0}
    assert parse_mapping("a: 1e999999999", "r.yaml") == {"a": math.inf}
