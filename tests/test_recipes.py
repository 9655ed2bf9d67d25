"""Every recipe that ships: valid, with its claim, and scored on what it was not trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_audio.recipe import load_recipe

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_says_what_it_claims(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.data.evaluation, "a recipe without an evaluation set claims nothing"
    header = path.read_text().split("\n\n")[0]
    for key in ("Command:", "Hardware:", "Result:", "Time:"):
        assert f"# {key}" in header, f"the header lacks {key!r}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_evaluation_never_uses_a_training_voice_or_sentence(path: Path) -> None:
    recipe = load_recipe(path)
    for source in recipe.data.evaluation.values():
        if source.name == "synthetic":
            held_out = source.model_dump()
            assert (held_out["voices"], held_out["sentences"]) == ("held_out", "held_out")
    for source in recipe.data.train.values():
        if source.name == "synthetic":
            used = source.model_dump()
            assert (used["voices"], used["sentences"]) == ("train", "train")
