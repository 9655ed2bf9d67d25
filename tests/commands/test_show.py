"""The commands ``list``, ``schema``, ``validate`` and ``show``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.conftest import Output
from tests.support.paths import RECIPES
from tiny_audio.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_list_as_json(call: Output) -> None:
    code, out, _ = call("list", "--json")
    registered = json.loads(out)
    assert code == 0
    assert list(registered) == ["encoders", "projectors", "decoders", "sources", "providers", "exports"]
    for parts in registered.values():
        assert parts
        assert all(set(part) == {"name", "summary", "module"} and part["summary"] for part in parts)
    assert "whisper" in {part["name"] for part in registered["encoders"]}


def test_one_kind_of_parts_can_be_listed(call: Output) -> None:
    code, out, _ = call("list", "projectors")
    assert code == 0
    assert out.splitlines()[0] == "projectors"
    assert "  swiglu" in out
    assert "whisper" not in out


def test_the_list_fits_a_terminal(call: Output) -> None:
    _, out, _ = call("list")
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_an_unknown_kind_is_an_error(call: Output) -> None:
    code, out, err = call("list", "projector")
    assert (code, out) == (2, "")
    assert err == (
        "error: unknown kind 'projector'; did you mean 'projectors'? "
        "Allowed: decoders, encoders, exports, projectors, providers, sources\n"
    )


def test_the_schema_is_json_and_contains_all_parts(call: Output) -> None:
    code, out, _ = call("schema")
    assert code == 0
    schema = json.loads(out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"encoder", "projector", "decoder", "data", "training", "extends"} <= schema["properties"].keys()
    assert "max_source_positions" not in out
    assert '"stack"' in out


def test_validate(call: Output) -> None:
    path = RECIPES / "quickstart.yaml"
    code, out, err = call("validate", path, "training.steps=1777")
    run_id = load_recipe(path, ["training.steps=1777"]).run_id()
    assert (code, err) == (0, "")
    assert out == f"{path} is valid: whisper, swiglu, smollm3; 1777 steps; run id {run_id}\n"


def test_show_as_json(call: Output, trained: Path) -> None:
    code, out, _ = call("show", trained / "recipe.yaml", "--json")
    shown = json.loads(out)
    assert code == 0
    assert list(shown["parameters"]) == ["encoder", "projector", "decoder", "ctc_head", "total"]
    for part, counts in shown["parameters"].items():
        assert 0 < counts["trainable"] <= counts["total"], part
    sums = {key: sum(row[key] for row in shown["parts"]) for key in ("total", "trainable")}
    assert shown["parameters"]["total"] == sums
    assert shown["approximate"] is True
    assert shown["recipe"]["training"]["steps"] == 20
    assert shown["run_id"] == load_recipe(trained / "recipe.yaml").run_id()


def test_show_counts_what_is_trained(call: Output, trained: Path) -> None:
    """Only the encoder and the projector are compared. The sizes of the other parts depend on the vocabulary, which
    ``show`` does not know, because it does not read the transcripts."""
    shown = json.loads(call("show", trained / "recipe.yaml", "--json")[1])["parameters"]
    report = json.loads((trained / "run" / "report.json").read_text())["parameters"]
    for part in ("encoder", "projector"):
        assert shown[part] == report[part]


def test_show_as_a_table(call: Output, trained: Path) -> None:
    code, out, _ = call("show", trained / "recipe.yaml")
    assert code == 0
    table = out[out.index("part ") :].splitlines()
    assert table[0].split() == ["part", "name", "class", "parameters", "trainable", "dim", "Hz"]
    assert [line.split()[0] for line in table[1:6]] == ["encoder", "projector", "decoder", "ctc_head", "total"]
    assert max(map(len, table)) <= 80
    assert table[-1].startswith("run id ")
