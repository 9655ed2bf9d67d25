from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Document, changed, tiny_recipe, write_clips


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_clips(folder, 8)
    return folder


@pytest.fixture
def document(data: Path) -> Document:
    """Return a recipe with eight clips in batches of four, three steps and a CTC head."""
    steps = {"training__steps": 3, "training__warmup_steps": 0, "execution__log_every": 1}
    return changed(tiny_recipe(data), ctc={"weight": 0.5}, **steps)
