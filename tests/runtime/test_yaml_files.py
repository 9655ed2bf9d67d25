"""Recipe files, ``extends``, and overrides. The tests check the location and the values in each error message."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny_audio.config import UserError
from tiny_audio.runtime.yaml_file import (
    MAX_BYTES,
    MAX_EXTENDS,
    apply_overrides,
    read_yaml,
)

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00", r"recipe.yaml .*UTF-8 .*byte 0"),
        (b"a: caf\xe9", r"recipe.yaml .*UTF-8 .*byte 6"),
        (bytes(range(256)), "recipe.yaml is "),
        (b"a: 1\x00", "unacceptable character #x0000"),
        (b"a: 1\n" * (MAX_BYTES // 5 + 1), "recipe.yaml .*256 KiB"),
        (b"", "empty"),
    ],
)
def test_files_that_are_not_recipes_are_rejected(write_recipe: Write, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_yaml(write_recipe(content))


def test_a_byte_order_mark_is_not_part_of_the_first_key(write_recipe: Write) -> None:
    assert read_yaml(write_recipe(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")) == {"a": 1, "b": 2}


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml .*Allowed: .*quickstart"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder"):
        read_yaml(tmp_path)


def test_a_path_below_a_file_is_an_error(write_recipe: Write) -> None:
    with pytest.raises(UserError, match=r"^cannot read .*recipe.yaml/x: .*Not a directory"):
        read_yaml(write_recipe("a: 1") / "x")


def test_an_impossible_path_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^cannot read .*embedded null"):
        read_yaml(Path("a\0b"))
    with pytest.raises(UserError, match=r"^cannot read .*File name too long"):
        read_yaml(Path("a" * 5000))


def test_a_link_to_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(UserError, match=r"^cannot read .*loop.yaml: .*Too many levels of symbolic links"):
        read_yaml(tmp_path / "loop.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_an_error(write_recipe: Write) -> None:
    path = write_recipe("a: 1")
    path.chmod(0)
    with pytest.raises(UserError, match=r"^cannot read .*Permission denied"):
        read_yaml(path)


def test_an_endless_file_is_an_error() -> None:
    with pytest.raises(UserError, match="256 KiB"):
        read_yaml(Path("/dev/zero"))


# --- extends


def test_extends_merges_mappings_key_by_key_and_replaces_the_rest(write_recipe: Write) -> None:
    write_recipe("a: {x: 1, y: [1, 2]}\nb: 1\nc: {z: 1}\n", "base.yaml")
    child = write_recipe("extends: base.yaml\na: {y: [3]}\nc: null\nd: 4\n")
    assert read_yaml(child) == {"a": {"x": 1, "y": [3]}, "b": 1, "d": 4}


def test_null_removes_a_field_of_the_base(write_recipe: Write) -> None:
    write_recipe("data: {train: {a: x, b: {name: y}}}\nctc: {weight: 1}", "base.yaml")
    child = write_recipe("extends: base.yaml\ndata: {train: {a: null}}\nctc: null")
    assert read_yaml(child) == {"data": {"train": {"b": {"name": "y"}}}}


def test_null_for_a_field_that_the_base_lacks_is_kept(write_recipe: Write) -> None:
    """The field is misspelled. If ``null`` removed it, validation would not notice, and the base's value would stay."""
    write_recipe("augmentation: {spec_augment: {num_time_masks: 2}}", "base.yaml")
    child = write_recipe("extends: base.yaml\naugmentation: {spec_agument: null}")
    assert read_yaml(child) == {"augmentation": {"spec_augment": {"num_time_masks": 2}, "spec_agument": None}}


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


def test_the_length_of_a_chain_is_limited(write_recipe: Write) -> None:
    write_recipe("a: 1", "r0.yaml")
    for number in range(1, MAX_EXTENDS + 1):
        path = write_recipe(f"extends: r{number - 1}.yaml", f"r{number}.yaml")
    with pytest.raises(UserError, match=r"extends: .*r8.yaml -> .*r0.yaml .*8 files"):
        read_yaml(path)
    assert read_yaml(path.with_name("r7.yaml")) == {"a": 1}


def test_a_cycle_is_an_error(write_recipe: Write) -> None:
    write_recipe("extends: recipe.yaml", "base.yaml")
    with pytest.raises(UserError, match=r"extends: .*recipe.yaml -> .*base.yaml -> .*recipe.yaml"):
        read_yaml(write_recipe("extends: base.yaml"))
    with pytest.raises(UserError, match=r"extends: .*recipe.yaml -> "):
        read_yaml(write_recipe("extends: ./recipe.yaml"))


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("nowhere.yaml", r"recipe.yaml: extends: .*nowhere.yaml"),
        (".", r"recipe.yaml: extends: .*folder"),
        ("recipe.yaml/x", r"recipe.yaml: extends: cannot read .*Not a directory"),
        ('"a\\0b"', r"recipe.yaml: extends: cannot read .*embedded null"),
        ("binary.bin", r"recipe.yaml: extends: .*binary.bin .*UTF-8"),
        ("list.yaml", r"list.yaml .*\['a'\]"),
        ("5", r"recipe.yaml: extends .*5"),
        ("[a.yaml, b.yaml]", r"recipe.yaml: extends .*\['a.yaml', 'b.yaml'\]"),
        ("''", r"recipe.yaml: extends .*''"),
        ("null", r"recipe.yaml: extends .*None"),
    ],
)
def test_an_invalid_base_is_an_error(write_recipe: Write, extends: str, message: str) -> None:
    write_recipe(b"\x89PNG\r\n", "binary.bin")
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
        ("training.seed=", {"training": {"steps": 1}, "projector": "conv"}),
        ("training=null", {"projector": "conv"}),
        ("training.rate=null", {"training": {"steps": 1, "seed": 1, "rate": None}, "projector": "conv"}),
        ("training.seed=a=b", {"training": {"steps": 1, "seed": "a=b"}, "projector": "conv"}),
        ("training.seed=[1, 2]", {"training": {"steps": 1, "seed": [1, 2]}, "projector": "conv"}),
        ("data.train.my-set_2.name=x", {
            "training": {"steps": 1, "seed": 1},
            "projector": "conv",
            "data": {"train": {"my-set_2": {"name": "x"}}},
        }),
    ],
)  # fmt: skip
def test_overrides_are_applied(override: str, expected: dict[str, Any]) -> None:
    document = {"training": {"steps": 1, "seed": 1}, "projector": "conv"}
    assert apply_overrides(document, [override]) == expected
    assert document == {"training": {"steps": 1, "seed": 1}, "projector": "conv"}


def test_overrides_are_applied_in_order() -> None:
    assert apply_overrides({}, ["a.x=1", "a.x=2", "a.y=3"]) == {"a": {"x": 2, "y": 3}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.steps",
            "^override 'training.steps' ",
        ),
        ("", "override ''"),
        ("=5", "override '=5'"),
        (".a=5", "override '.a=5'"),
        ("a..b=5", "override 'a..b=5'"),
        ("a.=5", "override 'a.=5'"),
        ("a b=5", "override 'a b=5'"),
        ("--training.seed =5", "^override "),
        ("\udcff=5", "^override "),
        (".".join(["a"] * 10_000) + "=1", "^override "),
        ("training.betas.0=5", r"override 'training.betas.0=5': betas .*\[1, 2\].*'0'"),
        ("training.steps.x=5", "override 'training.steps.x=5': steps .*1.*'x'"),
        ("training.steps=[1", "override training.steps, line 1, column 3: .*expected ',' or ']'"),
        ("training.steps=*x", "override training.steps, line 1, column 1: aliases"),
        ("training.steps=!!python/name:os.system", "override training.steps, line 1, column 1: tags"),
        ("training.steps=1\n---\n2", "override training.steps, line 2, column 1: .*another document"),
        ("training.steps=\udcff", "override training.steps .*unacceptable character"),
        ("training.steps={a: 1, a: 2}", "override training.steps, line 1, column 8: duplicate key 'a'"),
        ("extends=other.yaml", "override 'extends=other.yaml'"),
    ],
)
def test_invalid_overrides_are_rejected(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        apply_overrides({"training": {"steps": 1, "betas": [1, 2]}}, [override])
    assert len(str(caught.value)) < 300
    assert not re.search("Traceback", str(caught.value))
