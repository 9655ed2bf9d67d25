"""An export replaces an older export in the same folder, but no other files or folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.models import assemble
from tiny_audio.config import UserError
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.export.load import load_model


def test_an_older_export_is_replaced(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    export_model(model, tokenizer, tmp_path / "model")
    (tmp_path / "model" / "encoders_gone.py").touch()
    (tmp_path / "model" / ".DS_Store").touch()
    (tmp_path / ".model.writing").mkdir()  # left by a killed export
    export_model(model, tokenizer, tmp_path / "model")
    assert not (tmp_path / "model" / "encoders_gone.py").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "disk")
    for _ in range(2):
        export_model(*assemble(), link)
        assert link.is_symlink()
        assert (tmp_path / "disk" / "config.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "model"}


def test_other_folders_are_not_replaced(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        export_model(model, tokenizer, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("name", [".git", "notes.md", "onnx"])
def test_other_files_in_an_export_are_not_deleted(tmp_path: Path, name: str) -> None:
    model, tokenizer = assemble()
    export_model(model, tokenizer, tmp_path / "model")
    (tmp_path / "model" / name).mkdir()
    with pytest.raises(UserError, match=rf"model contains .*'{re.escape(name)}'"):
        export_model(model, tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / name).exists()


def test_a_failed_export_leaves_the_old_one(tmp_path: Path) -> None:
    model, tokenizer = assemble()
    export_model(model, tokenizer, tmp_path / "model")

    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export_model(model, Broken(), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    load_model(tmp_path / "model")
