"""Finished runs to compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.analysis.runs import COUNT, Edit, MakeVariant, read
from tests.conftest import changed, tiny_recipe, write_clips
from tiny_audio.cli import main


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two finished runs of two recipes, ``small`` and ``large``. Tests must not change it."""
    folder = tmp_path_factory.mktemp("compare")
    write_clips(folder, COUNT)
    settings: dict[str, Any] = {
        "ctc": {"weight": 0.5},
        "generation__max_new_tokens": 3,
        "training__steps": 2,
        "training__warmup_steps": 1,
        "evaluation": {"normalizer": "lower", "num_bootstrap": 100, "encoder_system_clips": 0},
    }
    (folder / "recipe.yaml").write_text(json.dumps(changed(tiny_recipe(folder), **settings)))
    for name, stack in (("small", 4), ("large", 2)):
        command = ["run", str(folder / "recipe.yaml"), f"projector.stack={stack}"]
        # Use one thread, because two threads are no faster on such small models.
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        assert main([*command, "--output-dir", str(folder / name)]) == 0
        torch.set_num_threads(before)
    return folder


@pytest.fixture
def variant(made: Path, tmp_path: Path) -> MakeVariant:
    """Return a function that copies ``small`` with other hypotheses and other values in its report."""

    def make(name: str, edit: Edit = lambda row: None, **report: Any) -> Path:
        folder = tmp_path / name
        (folder / "evaluation").mkdir(parents=True)
        for file in ("state.json", "recipe.yaml"):
            shutil.copy(made / "small" / file, folder)
        (folder / "report.json").write_text(json.dumps(changed(read(made / "small" / "report.json"), **report)))
        lines = (made / "small" / "evaluation" / "held_out.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        for row in rows:
            # The column is not called `speaker`, because comparisons would then resample speakers instead of clips.
            row["metadata"] = {"reader": row["metadata"]["speaker"]}
            row["pred_text"] = row["text"]  # all words are correct unless `edit` changes them
            edit(row)
        kept = [row for row in rows if not row.get("gone")]
        (folder / "evaluation" / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        return folder

    return make
