"""The generated reference pages in ``docs`` are up to date and complete."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.support.paths import ROOT
from tiny_audio.cli import app, main
from tiny_audio.commands.command_reference import commands_page
from tiny_audio.commands.reference import fields_page, reference_page
from tiny_audio.commands.show import REGISTRIES
from tiny_audio.recipe import Recipe

DOCS = ROOT / "docs"


@pytest.mark.parametrize("kind", REGISTRIES)
def test_the_page_is_current(kind: str) -> None:
    page = (DOCS / f"{kind}.md").read_text()
    assert page == reference_page(kind, REGISTRIES[kind]), "run `make docs`"


def test_the_page_of_fields_is_current() -> None:
    assert (DOCS / "fields.md").read_text() == fields_page(), "run `make docs`"


def test_every_section_of_a_recipe_is_listed_and_every_field_is_described() -> None:
    headings, *sections = fields_page().split("\n## ")
    assert "encoders.md" in headings
    parts = {"encoder", "projector", "decoder"}
    assert {text.split("\n", 1)[0] for text in sections} == Recipe.model_fields.keys() - parts
    rows = [line for text in sections for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert not [row for row in rows if row.endswith("|  |")], "fields without a docstring"


def test_the_page_of_commands_is_current() -> None:
    assert (DOCS / "commands.md").read_text() == commands_page(app), "run `make docs`"


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_field_of_every_part_is_listed(kind: str) -> None:
    page = reference_page(kind, REGISTRIES[kind])
    sections = {text.split("\n", 1)[0]: text for text in page.split("\n## ")[1:]}
    shared = sections.get(f"Fields of every {REGISTRIES[kind].kind}", "")
    for entry in REGISTRIES[kind].entries():
        config: type[BaseModel] = entry.config
        for name in config.model_fields.keys() - {"name"}:
            assert f"| `{name}` |" in sections[entry.name] + shared, f"{entry.name}.{name} is missing"


def test_pages_can_be_written_or_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", "projectors", "--output-dir", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'new' / 'projectors.md'}\n"
    assert main(["reference", "projectors"]) == 0
    assert capsys.readouterr().out == (tmp_path / "new" / "projectors.md").read_text()
    assert main(["reference", "projector"]) == 2
    assert "did you mean 'projectors'?" in capsys.readouterr().err
