"""Shipped recipes are found by name, unless a local file has the name. Their copies work in any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.paths import RECIPES
from tiny_audio.config import UserError
from tiny_audio.runtime.shipped_recipes import (
    find_file,
    local_instead_of_shipped,
    read_header,
    shipped_files,
    shipped_recipes,
    text_to_edit,
)
from tiny_audio.runtime.yaml_file import read_yaml


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("quickstart", "quickstart.yaml"),
        ("laptop.yaml", "laptop.yaml"),
        ("projectors/linear", "projectors/linear.yaml"),
        ("variants/projectors", "variants/projectors.yaml"),
    ],
)
def test_a_name_is_found_in_any_folder(given: str, file: str) -> None:
    assert find_file(given) == RECIPES / file
    assert local_instead_of_shipped(given) is None
    assert read_yaml(Path(given)) == read_yaml(RECIPES / file)


@pytest.mark.parametrize("local", ["quickstart", "quickstart.yaml"])
def test_a_local_file_has_priority(local: str) -> None:
    Path(local).write_text("a: 1")
    assert read_yaml(Path("quickstart")) == {"a": 1}
    assert local_instead_of_shipped("quickstart") == Path(local)


def test_a_local_folder_has_no_priority() -> None:
    Path("quickstart").mkdir()
    assert find_file("quickstart") == RECIPES / "quickstart.yaml"


def test_the_shipped_file_is_not_a_local_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES)
    assert local_instead_of_shipped("quickstart") is None


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("quickstrat", "quickstart"),
        ("recipes/quickstart.yaml", "quickstart"),
        ("projectors/linaer", "projectors/linear"),
        ("/nowhere/an4.yaml", "an4"),
    ],
)
def test_an_unknown_name_lists_the_known_names(given: str, nearest: str) -> None:
    with pytest.raises(UserError) as raised:
        read_yaml(Path(given))
    assert str(raised.value).startswith(f"{given} ")
    assert f"{nearest!r}" in str(raised.value)
    assert ", ".join(sorted(shipped_recipes())) in str(raised.value)


def test_extends_finds_local_files_first() -> None:
    Path("mine.yaml").write_text("extends: laptop.yaml\na: 1")
    assert read_yaml(Path("mine.yaml")) == read_yaml(RECIPES / "laptop.yaml") | {"a": 1}
    Path("laptop.yaml").write_text("b: 2")
    assert read_yaml(Path("mine.yaml")) == {"a": 1, "b": 2}


@pytest.mark.parametrize("base", ["laptop", "laptop.yaml"])
def test_a_file_can_extend_the_shipped_recipe_with_its_name(base: str) -> None:
    Path("laptop.yaml").write_text(f"extends: {base}\na: 1")
    assert read_yaml(Path("laptop")) == read_yaml(RECIPES / "laptop.yaml") | {"a": 1}


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_copy_is_the_same_recipe_in_any_folder(name: str) -> None:
    Path("copy.yaml").write_text(text_to_edit(name))
    assert read_yaml(Path("copy.yaml")) == read_yaml(RECIPES / f"{name}.yaml")


def test_a_header_has_a_claim_and_the_hardware() -> None:
    header = read_header("slam_asr", shipped_files()["slam_asr"])
    assert header.claim.startswith("SLAM-ASR (Ma et al. 2024")
    assert header.claim.endswith(".")
    assert header.hardware == "one GPU with 80 GB."
    assert all(read_header(name, path).hardware for name, path in shipped_recipes().items())
