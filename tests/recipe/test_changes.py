"""Recipes that the command line, code or ``extends`` changes. They are validated like an unchanged recipe."""

from __future__ import annotations

import pytest

from tests.recipe.edits import Document, Write, assert_error, changed, errors_of
from tiny_audio.config import UserError
from tiny_audio.encoders import ENCODERS
from tiny_audio.projectors import PROJECTORS
from tiny_audio.recipe import load_recipe


def test_overrides_are_validated_like_the_file(document: Document, write_recipe: Write) -> None:
    path = write_recipe(document)
    recipe = load_recipe(
        path, ["training.steps=100", "training.learning_rate=1e-4", "ctc.weight=0.3", "prompt.system=no"]
    )
    assert (recipe.training.steps, recipe.training.learning_rate, recipe.prompt.system) == (100, 1e-4, "no")
    assert recipe.ctc is not None
    assert_error(errors_of(path, "training.stepz=1"), "training.stepz", "'steps'")
    assert_error(errors_of(path, "training.steps='9'"), "training.steps", "integer", '"9"')


def test_null_removes_an_entry_as_in_a_file_that_extends(document: Document, write_recipe: Write) -> None:
    path = write_recipe(changed(document, "augmentation", {"white_noise": {}}))
    recipe = load_recipe(path, ["data.evaluation.held_out=null", "augmentation=null"])
    assert recipe.data.evaluation == {}
    assert recipe.augmentation == load_recipe(write_recipe(document)).augmentation
    assert_error(errors_of(path, "training.steps=null"), "training.steps", "missing")
    assert_error(errors_of(path, "data.evaluation.typo=null"), "data.evaluation.typo", "null")
    assert_error(errors_of(path, "training.stepz=null"), "training.stepz", "'steps'")


def test_null_adds_no_section(document: Document, write_recipe: Write) -> None:
    path = write_recipe(document)
    assert load_recipe(path).alignment is None
    _, error = errors_of(path, "alignment.alone_steps=null")
    assert_error([error], "alignment", "no such section", "alignment.alone_steps")
    assert load_recipe(path, ["alignment.alone_steps=null", "alignment.weight=0.5"]).alignment is not None
    assert load_recipe(path, ["batching.short_first_epochs=null"]) == load_recipe(path)


def test_naming_a_part_replaces_its_section(document: Document, write_recipe: Write) -> None:
    path = write_recipe(document)
    assert load_recipe(path).projector != load_recipe(path, ["projector=swiglu"]).projector
    assert load_recipe(path, ["projector=swiglu"]).projector == PROJECTORS.parse("swiglu")
    assert load_recipe(path, ["encoder=hubert"]).encoder == ENCODERS.parse("hubert")


def test_renaming_a_part_keeps_its_fields_and_fails_if_they_do_not_fit(document: Document, write_recipe: Write) -> None:
    path = write_recipe(changed(document, "encoder", {"name": "hubert", "train_front_end": True, "dropout": 0.1}))
    _, error = errors_of(path, "encoder.name=whisper")
    assert_error([error], "encoder.whisper.train_front_end", "encoder.name=whisper")
    assert error.endswith("encoder=whisper")
    assert load_recipe(path, ["encoder=whisper"]).encoder == ENCODERS.parse("whisper")
    # Only errors about fields of the renamed part have this hint. Errors about unknown names and other sections do not.
    assert "encoder=whispr" not in errors_of(path, "encoder.name=whispr")[1]
    assert "decoder=llama" not in errors_of(path, "decoder.name=llama", "training.steps=0")[1]
    path = write_recipe(changed(document, "encoder", {"name": "hubert", "dropout": 0.1}))
    assert load_recipe(path, ["encoder.name=whisper"]).encoder == ENCODERS.parse({"name": "whisper", "dropout": 0.1})


def test_kept_fields_that_break_a_cross_field_rule_are_explained(document: Document, write_recipe: Write) -> None:
    path = write_recipe(changed(document, "projector", {"name": "linear", "stack": 400}))
    _, error = errors_of(path, "projector.name=swiglu")
    assert_error([error], "projector.swiglu", "400")
    assert error.endswith("projector=swiglu")


def test_a_recipe_is_validated_together_with_its_base(document: Document, write_recipe: Write) -> None:
    write_recipe(document, "base.yaml")
    child = write_recipe("extends: base.yaml\ntraining: {steps: 50}\nencoder: hubert\n")
    recipe = load_recipe(child, ["training.warmup_steps=4"])
    assert (recipe.training.steps, recipe.training.warmup_steps, recipe.encoder.name) == (50, 4, "hubert")
    assert_error(errors_of(child, "training.warmup_steps=50"), "training.warmup_steps", "50")


# --- changes in code


def test_changes_in_code_equal_overrides(document: Document, write_recipe: Write) -> None:
    path = write_recipe(document)
    expected = load_recipe(path, ["training.seed=3", "projector=conv", "ctc.weight=0.3", "augmentation.speed=[0.9, 1]"])
    changes = {
        "training.seed": 3,
        "projector": PROJECTORS.parse("conv"),
        "ctc.weight": 0.3,
        "augmentation.speed": [0.9, 1],
    }
    before = load_recipe(path)
    assert before.with_(changes) == load_recipe(path, changes=changes) == expected
    assert before.with_(changes | {"projector": "conv"}) == expected
    assert before.with_({}) == before == load_recipe(path)


def test_changes_are_applied_in_order(document: Document, write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe(document))
    assert recipe.with_({"projector": "conv", "projector.hidden_dim": 8}).projector.hidden_dim == 8  # type: ignore[attr-defined]
    assert recipe.with_({"projector.hidden_dim": 8, "projector": "conv"}).projector == PROJECTORS.parse("conv")


@pytest.mark.parametrize(
    ("changes", "where", "values"),
    [
        ({"training.steps": 0}, "training.steps", ["0"]),
        ({"training.stepz": 1}, "training.stepz", ["'steps'"]),
        ({"training.steps": 5, "training.warmup_steps": 9}, "training.warmup_steps", ["9", "5"]),
        ({"projector.name": "conv"}, "projector.conv.stack", ["projector=conv"]),
    ],
)
def test_errors_of_changes_in_code_are_located(
    document: Document, write_recipe: Write, changes: Document, where: str, values: list[str]
) -> None:
    recipe = load_recipe(write_recipe(document))
    with pytest.raises(UserError) as caught:
        recipe.with_(changes)
    heading, *errors = str(caught.value).splitlines()
    assert all(path in heading for path in changes)
    assert_error(errors, where, *values)


def test_a_change_below_a_value_is_an_error(document: Document, write_recipe: Write) -> None:
    with pytest.raises(UserError, match=r"training\.steps\.more.* 20.*'more'"):
        load_recipe(write_recipe(document)).with_({"training.steps.more": 1})
