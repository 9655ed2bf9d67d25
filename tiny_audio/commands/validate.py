"""``tiny-audio validate`` checks a recipe. ``tiny-audio schema`` prints the JSON schema of recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiny_audio.commands._output import print_json
from tiny_audio.recipe import load_recipe, recipe_schema


def validate(path: Path, overrides: Sequence[str]) -> None:
    """Print the parts, the steps and the run id of a valid recipe.

    Raises:
        UserError: the recipe is not valid.
    """
    recipe = load_recipe(path, overrides)
    parts = ", ".join(part.name for part in (recipe.encoder, recipe.projector, recipe.decoder))
    print(f"{path} is valid: {parts}; {recipe.training.steps} steps; run id {recipe.run_id()}")


def print_schema() -> None:
    """Print the JSON schema of recipes, with the fields of every registered part."""
    print_json(recipe_schema())
