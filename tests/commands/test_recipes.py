"""``recipes`` lists, prints and copies the shipped recipes. Other commands accept the name of a shipped recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.conftest import Output
from tests.support.paths import RECIPES
from tiny_audio.runtime.shipped_recipes import shipped_recipes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_list_has_each_recipe_with_its_claim_and_hardware(call: Output) -> None:
    code, out, _ = call("recipes")
    assert code == 0
    listed = [line.split()[0] for line in out.splitlines() if line[0] != " "]
    assert listed == list(shipped_recipes())
    assert out.count("Hardware: ") == len(listed)
    rows = json.loads(call("recipes", "--json")[1])
    assert [row["name"] for row in rows] == listed
    assert all(row["claim"] and row["hardware"] for row in rows)


def test_a_recipe_is_printed(call: Output) -> None:
    assert call("recipes", "laptop") == (0, (RECIPES / "laptop.yaml").read_text(), "")


def test_a_copy_can_be_edited_and_validated(call: Output) -> None:
    assert call("recipes", "projectors/conv", "--copy", ".")[0] == 0
    assert call("recipes", "an4", "--copy", "mine.yaml")[0] == 0
    for path in ("conv.yaml", "mine.yaml"):
        assert call("validate", path)[::2] == (0, "")


def test_a_copy_overwrites_nothing(call: Output) -> None:
    Path("laptop.yaml").write_text("mine")
    for to in ("laptop.yaml", "."):
        code, out, err = call("recipes", "laptop", "--copy", to)
        assert (code, out) == (2, "")
        assert err.startswith("error: laptop.yaml already exists")
    assert Path("laptop.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["quickstrat"], "'quickstart'"),
        (["laptop", "--copy", "nowhere/mine.yaml"], "nowhere"),
        (["--copy", "mine.yaml"], "--copy mine.yaml"),
        (["laptop", "--json"], "--json"),
    ],
)
def test_invalid_arguments_are_rejected(call: Output, arguments: list[str], named: str) -> None:
    code, out, err = call("recipes", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert named in err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["validate"], ["plan", "--gpu", "a40"], ["show"], ["sweep", "training.seed=0,1", "--dry-run"]],
    ids=lambda arguments: arguments[0],
)
def test_commands_accept_a_recipe_name(call: Output, arguments: list[str]) -> None:
    command, *options = arguments
    code, out, err = call(command, "quickstart", *options)
    assert (code, err) == (0, "")
    assert out


@pytest.mark.parametrize("command", ["run", "doctor", "probe", "bench projectors"])
def test_slow_commands_accept_a_recipe_name(call: Output, command: str) -> None:
    code, out, err = call(*command.split(), "quickstart", "training.step=1")
    assert (code, out) == (2, "")
    assert err.startswith("error: quickstart ")
    assert "training.step" in err


def test_a_local_file_has_priority_with_a_note(call: Output) -> None:
    call("recipes", "laptop", "--copy", ".")
    code, out, err = call("validate", "laptop")
    assert (code, out.startswith("laptop is valid")) == (0, True)
    assert err.startswith("using the file laptop.yaml")
    assert call("validate", "laptop.yaml")[2] == ""
