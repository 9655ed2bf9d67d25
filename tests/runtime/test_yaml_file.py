"""What YAML may say, what it may not, and how files and overrides are laid over each other."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_audio.config import UserError
from tiny_audio.runtime.yaml_file import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_EXTENDS,
    apply_overrides,
    dump_yaml,
    parse_mapping,
    read_yaml,
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
def test_scalars_are_read_as_people_mean_them(text: str, value: object) -> None:
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


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(max_size=5), TREES, max_size=4))
def test_what_is_dumped_reads_back(document: dict[str, Any]) -> None:
    assert parse_mapping(dump_yaml(document), "r.yaml") == document


def test_a_dump_has_no_aliases_and_keeps_the_order_of_keys() -> None:
    shared = [1, 2]
    assert dump_yaml({"b": shared, "a": shared}) == "b:\n- 1\n- 2\na:\n- 1\n- 2\n"
    assert dump_yaml({"revision": "12e3", "rate": 1e-5}) == "revision: '12e3'\nrate: 1.0e-05\n"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml must be a mapping of sections such as `encoder:`, and is empty"),
        ("# a comment only", "and is empty"),
        ("just words", "r.yaml must be a mapping .* and is 'just words'"),
        ("- a\n- b", r"and is \['a', 'b'\]"),
        ("5", "and is 5"),
        ("x" * 5000, r"and is 'x{76}\.\.\.$"),
        ("a: 1\nb: 2\na: 3", "r.yaml, line 3, column 1: duplicate key 'a'; remove one of them"),
        ("a: {b: 1, 'b': 2}", "r.yaml, line 1, column 11: duplicate key 'b'"),
        ("a: &x 1\nb: *x", "line 2, column 4: aliases are not supported; write the value out, or use `extends`"),
        ("a: &x [*x]", "aliases are not supported"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "line 3, column 7: aliases are not supported"),
        (BOMB, "aliases are not supported"),
        ("a: 1\n---\nb: 2", "r.yaml, line 2, column 1: .*but found another document"),
        (
            "a: !!python/object:os.system x",
            "line 1, column 4: tags such as 'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("a: !!python/object/apply:os.system ['echo']", "tags such as .* are not supported; remove it"),
        ("a: !!binary aGk=", "tags such as 'tag:yaml.org,2002:binary' are not supported"),
        ("a: !!set {x, y}", "tags such as 'tag:yaml.org,2002:set' are not supported"),
        ("a: !!bool perhaps", "tags such as 'tag:yaml.org,2002:bool' are not supported"),
        ("a: !mine 5", "tags such as '!mine' are not supported"),
        ("a: !!map [1]", "tags such as 'tag:yaml.org,2002:map' are not supported"),
        ("1: x", "line 1, column 1: keys must be names, not 1"),
        ("true: x", "keys must be names, not True"),
        ("a:\n  1.5: x", "line 2, column 3: keys must be names, not 1.5"),
        ("~: x", "keys must be names, not None"),
        ("? [a, b]\n: x", r"keys must be names, not \['a', 'b'\]"),
        ("? {a: 1}\n: x", "keys must be names, not {'a': 1}"),
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
        ("a: \0", r"r.yaml is no valid YAML: unacceptable character #x0000"),
        ("a: \x07", "unacceptable character #x0007"),
        ("a: \udcff", "unacceptable character #xdcff"),
        ('a: "\\ud800"', "line 1, column 4: half of a surrogate pair is no character"),
        ('a: "\\UFFFFFFFF"', "r.yaml is no valid YAML: "),
        ('a: "\\U00110000"', "r.yaml is no valid YAML: "),
        ("a: 9223372036854775808", "line 1, column 4: '9223372036854775808' is too large a number"),
        ("a: " + "9" * 100_000, r"'9{76}\.\.\. is too large a number"),
    ],
)
def test_what_yaml_may_not_say(text: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        parse_mapping(text, "r.yaml")
    assert "r.yaml" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.monotonic() - started < 5


def test_numbers_as_wide_as_the_file_are_read_fast() -> None:
    assert parse_mapping("a: 1." + "0" * 200_000 + "e0", "r.yaml") == {"a": 1.0}
    assert parse_mapping("a: 1e999999999", "r.yaml") == {"a": math.inf}


# --- files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00", r"recipe.yaml is no text in UTF-8 \(byte 0\); is it a recipe\?"),
        (b"a: caf\xe9", r"recipe.yaml is no text in UTF-8 \(byte 6\)"),
        ("a: 1".encode("utf-16"), r"no text in UTF-8|unacceptable character"),
        (bytes(range(256)), "recipe.yaml is no"),
        (b"a: 1\x00", "unacceptable character #x0000"),
        (
            b"a: 1\n" * (MAX_BYTES // 5 + 1),
            "recipe.yaml is larger than 256 KiB; a recipe is a small file, is this one?",
        ),
        (b"", "must be a mapping of sections such as `encoder:`, and is empty"),
    ],
)
def test_files_that_are_no_recipe(write_recipe: Write, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_yaml(write_recipe(content))


def test_a_byte_order_mark_is_no_part_of_the_first_key(write_recipe: Write) -> None:
    assert read_yaml(write_recipe(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")) == {"a": 1, "b": 2}


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^there is no recipe at .*nowhere.yaml; recipes that ship .* are in recipes/$"
    ):
        read_yaml(tmp_path / "nowhere.yaml")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; give the recipe file in it$"):
        read_yaml(tmp_path)


def test_a_path_below_a_file(write_recipe: Write) -> None:
    with pytest.raises(UserError, match=r"^cannot read .*recipe.yaml/x: .*Not a directory"):
        read_yaml(write_recipe("a: 1") / "x")


def test_a_path_that_no_file_can_have() -> None:
    with pytest.raises(UserError, match=r"^cannot read .*embedded null"):
        read_yaml(Path("a\0b"))
    with pytest.raises(UserError, match=r"^cannot read .*File name too long"):
        read_yaml(Path("a" * 5000))


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(UserError, match=r"^cannot read .*loop.yaml: .*Too many levels of symbolic links"):
        read_yaml(tmp_path / "loop.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(write_recipe: Write) -> None:
    path = write_recipe("a: 1")
    path.chmod(0)
    with pytest.raises(UserError, match=r"^cannot read .*Permission denied"):
        read_yaml(path)


def test_an_endless_file() -> None:
    with pytest.raises(UserError, match="larger than 256 KiB"):
        read_yaml(Path("/dev/zero"))


# --- extends


def test_extends_merges_mappings_key_by_key_and_replaces_the_rest(write_recipe: Write) -> None:
    write_recipe("a: {x: 1, y: [1, 2]}\nb: 1\nc: {z: 1}\n", "base.yaml")
    child = write_recipe("extends: base.yaml\na: {y: [3]}\nc: null\nd: 4\n")
    assert read_yaml(child) == {"a": {"x": 1, "y": [3]}, "b": 1, "d": 4}


def test_null_takes_back_what_the_base_says(write_recipe: Write) -> None:
    write_recipe("data: {train: {a: x, b: {name: y}}}\nctc: {weight: 1}", "base.yaml")
    child = write_recipe("extends: base.yaml\ndata: {train: {a: null}}\nctc: null\nother: null")
    assert read_yaml(child) == {"data": {"train": {"b": {"name": "y"}}}}


@pytest.mark.parametrize(
    ("base", "child", "merged"),
    [
        ("{name: conv, stride: 2}", "{kernel: 3}", {"name": "conv", "stride": 2, "kernel": 3}),
        ("{name: conv, stride: 2}", "{name: conv, kernel: 3}", {"name": "conv", "stride": 2, "kernel": 3}),
        ("{name: conv, stride: 2}", "{name: linear, width: 3}", {"name": "linear", "width": 3}),
        ("{name: conv, stride: 2}", "linear", "linear"),
        ("{name: conv, stride: 2}", "conv", "conv"),
        ("conv", "{stride: 2}", {"name": "conv", "stride": 2}),
        ("conv", "{name: linear}", {"name": "linear"}),
        ("{stride: 2}", "{name: conv}", {"name": "conv"}),
        ("[1]", "{stride: 2}", {"stride": 2}),
    ],
)
def test_extends_merges_a_part_or_replaces_it_by_another(
    write_recipe: Write, base: str, child: str, merged: object
) -> None:
    write_recipe(f"projector: {base}", "base.yaml")
    assert read_yaml(write_recipe(f"extends: base.yaml\nprojector: {child}")) == {"projector": merged}


def test_extends_through_a_chain_in_folders(write_recipe: Write, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_recipe("a: 1\nb: 1\nc: 1", "sub/root.yaml")
    write_recipe("extends: root.yaml\nb: 2\nc: 2", "sub/middle.yaml")
    assert read_yaml(write_recipe("extends: sub/middle.yaml\nc: 3")) == {"a": 1, "b": 2, "c": 3}


def test_a_chain_may_not_be_longer_than_its_bound(write_recipe: Write) -> None:
    write_recipe("a: 1", "r0.yaml")
    for number in range(1, MAX_EXTENDS + 1):
        path = write_recipe(f"extends: r{number - 1}.yaml", f"r{number}.yaml")
    with pytest.raises(UserError, match=r"extends: .*r8.yaml -> .*r0.yaml goes in a circle, or is longer than 8 files"):
        read_yaml(path)
    assert read_yaml(path.with_name("r7.yaml")) == {"a": 1}


def test_a_circle(write_recipe: Write) -> None:
    write_recipe("extends: recipe.yaml", "base.yaml")
    with pytest.raises(UserError, match=r"extends: .*recipe.yaml -> .*base.yaml -> .*recipe.yaml goes in a circle"):
        read_yaml(write_recipe("extends: base.yaml"))
    with pytest.raises(UserError, match=r"goes in a circle"):
        read_yaml(write_recipe("extends: ./recipe.yaml"))


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("nowhere.yaml", r"recipe.yaml: extends: there is no recipe at .*nowhere.yaml"),
        (".", r"recipe.yaml: extends: .* is a folder"),
        ("recipe.yaml/x", r"recipe.yaml: extends: cannot read .*Not a directory"),
        ('"a\\0b"', r"recipe.yaml: extends: cannot read .*embedded null"),
        ("binary.bin", r"recipe.yaml: extends: .*binary.bin is no text in UTF-8"),
        ("list.yaml", r"list.yaml must be a mapping of sections"),
        ("5", r"recipe.yaml: extends must be the path of a recipe, not 5"),
        ("[a.yaml, b.yaml]", r"recipe.yaml: extends must be the path of a recipe, not \['a.yaml', 'b.yaml'\]"),
        ("''", r"recipe.yaml: extends must be the path of a recipe, not ''"),
        ("null", r"recipe.yaml: extends must be the path of a recipe, not None"),
    ],
)
def test_a_base_that_is_none(write_recipe: Write, extends: str, message: str) -> None:
    write_recipe(b"\xff\xfe", "binary.bin")
    write_recipe("- a", "list.yaml")
    with pytest.raises(UserError, match=message):
        read_yaml(write_recipe(f"extends: {extends}\na: 1"))


# --- overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.steps=100", {"training": {"steps": 100, "seed": 1}, "projector": "conv"}),
        ("training.rate=1e-4", {"training": {"steps": 1, "seed": 1, "rate": 1e-4}, "projector": "conv"}),
        ("a.b.c=no", {"training": {"steps": 1, "seed": 1}, "projector": "conv", "a": {"b": {"c": "no"}}}),
        ("projector=linear", {"training": {"steps": 1, "seed": 1}, "projector": "linear"}),
        ("projector.stride=2", {"training": {"steps": 1, "seed": 1}, "projector": {"name": "conv", "stride": 2}}),
        ("projector.name=linear", {"training": {"steps": 1, "seed": 1}, "projector": {"name": "linear"}}),
        ("training={steps: 5}", {"training": {"steps": 5}, "projector": "conv"}),
        ("training.seed=", {"training": {"steps": 1, "seed": None}, "projector": "conv"}),
        ("training.seed=a=b", {"training": {"steps": 1, "seed": "a=b"}, "projector": "conv"}),
        ("training.seed=[1, 2]", {"training": {"steps": 1, "seed": [1, 2]}, "projector": "conv"}),
        ("data.train.my-set_2.name=x", {
            "training": {"steps": 1, "seed": 1},
            "projector": "conv",
            "data": {"train": {"my-set_2": {"name": "x"}}},
        }),
    ],
)  # fmt: skip
def test_overrides(override: str, expected: dict[str, Any]) -> None:
    document = {"training": {"steps": 1, "seed": 1}, "projector": "conv"}
    assert apply_overrides(document, [override]) == expected
    assert document == {"training": {"steps": 1, "seed": 1}, "projector": "conv"}


def test_the_last_override_wins_and_they_build_on_each_other() -> None:
    assert apply_overrides({}, ["a.x=1", "a.x=2", "a.y=3"]) == {"a": {"x": 2, "y": 3}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.steps",
            "override 'training.steps' is not of the form section.field=value, such as training.steps=100",
        ),
        ("", "override '' is not of the form"),
        ("=5", "override '=5' is not of the form"),
        (".a=5", "override '.a=5' is not of the form"),
        ("a..b=5", "override 'a..b=5' is not of the form"),
        ("a.=5", "override 'a.=5' is not of the form"),
        ("a b=5", "override 'a b=5' is not of the form"),
        ("--training.seed =5", "is not of the form"),
        ("\udcff=5", "is not of the form"),
        (".".join(["a"] * 10_000) + "=1", "is not of the form"),
        ("training.betas.0=5", r"override 'training.betas.0=5': betas is \[1, 2\], which has no field '0'"),
        ("training.steps.x=5", "override 'training.steps.x=5': steps is 1, which has no field 'x'"),
        ("training.steps=[1", "override training.steps, line 1, column 3: .*expected ',' or ']'"),
        ("training.steps=*x", "override training.steps, line 1, column 1: aliases are not supported"),
        ("training.steps=!!python/name:os.system", "override training.steps, line 1, column 1: tags such as"),
        ("training.steps=1\n---\n2", "override training.steps, line 2, column 1: .*another document"),
        ("training.steps=\udcff", "override training.steps is no valid YAML: unacceptable character"),
        ("training.steps={a: 1, a: 2}", "override training.steps, line 1, column 8: duplicate key 'a'"),
        ("extends=other.yaml", "override 'extends=other.yaml': only a file can extend another; write it there"),
    ],
)
def test_overrides_that_say_nothing(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        apply_overrides({"training": {"steps": 1, "betas": [1, 2]}}, [override])
    assert len(str(caught.value)) < 300
    assert not re.search("Traceback", str(caught.value))
