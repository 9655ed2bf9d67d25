"""Every error in a recipe gives one clear message."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tiny_recipe
from tests.recipe.edits import Document, Write, assert_error, changed, errors_of, location
from tests.recipe.invalid_recipes import INVALID
from tests.support.golden import check_golden
from tiny_audio.config import UserError
from tiny_audio.recipe import load_recipe


@pytest.mark.parametrize(("path", "value", "where", "values"), INVALID)
def test_errors_contain_their_location_and_values(
    document: Document, write_recipe: Write, path: str, value: Any, where: str, values: list[str]
) -> None:
    file = write_recipe(changed(document, path, value))
    heading, *errors = errors_of(file)
    assert re.fullmatch(rf"{re.escape(str(file))} is not a valid recipe \(\d+ errors?\):", heading)
    assert_error(errors, where, *values)
    assert all(len(error) < 1100 for error in errors)


def test_messages(write_recipe: Write) -> None:
    """Compare all messages with ``messages.txt``.

    To regenerate the file, run ``REGENERATE=1 pytest tests/recipe/test_errors.py -k test_messages`` and read the
    difference.
    """
    blocks = []
    for path, value, _, _ in INVALID:
        _, *errors = errors_of(write_recipe(changed(tiny_recipe(Path("clips")), path, value)))
        shown = "(removed)" if value is ... else json.dumps(value)
        blocks.append("\n".join([f"{json.dumps(path)[1:-1]}: {shown}", *errors]))
    check_golden(Path(__file__).with_name("messages.txt"), "\n\n".join(blocks) + "\n")


def test_sped_up_clips_must_have_enough_frames_for_the_projector(document: Document, write_recipe: Write) -> None:
    path = write_recipe(changed(document, "projector.stack", 15))
    assert load_recipe(path, ["augmentation.speed=[0.9, 1]"])
    values = ("15", "data.min_duration_s", "0.3 s", "augmentation.speed", "0.15 s", "8")
    assert_error(errors_of(path, "augmentation.speed=[1, 2]"), "projector.swiglu", *values)


@pytest.mark.parametrize(
    ("overrides", "where", "values"),
    [
        (
            ["data.evaluation.more={name: manifest, path: x}", "execution.evaluate_set=more"],
            "set",
            ["held_out", "more"],
        ),
        (["execution.evaluate_every=20"], "", ["evaluate_every", "20"]),
        (["training.keep_best.patience=3"], "patience", ["3", "4 evaluations", "at most 2"]),
        (["training.keep_best.patience=1", "execution.evaluate_every=10"], "patience", ["1", "2 evaluations"]),
        (["alignment.alone_steps=13"], "patience", ["2", "4 evaluations, 2 of them", "at most 1"]),
    ],
)
def test_keep_best_needs_several_evaluations_of_its_set(
    document: Document, write_recipe: Write, overrides: list[str], where: str, values: list[str]
) -> None:
    document = changed(document, "execution", {"evaluate_every": 6, "evaluate_set": "held_out"})
    path = write_recipe(changed(document, "training.keep_best", {"set": "held_out", "patience": 2}))
    assert load_recipe(path).training.keep_best
    overrides = [*overrides, "training.keep_best.patience=null"] if "patience" not in where else overrides
    location = ".".join(["training.keep_best", *([where] if where else [])])
    assert_error(errors_of(path, *overrides), location, *values)


@pytest.mark.parametrize(
    ("value", "given"), [(".inf", "Infinity"), ("-.inf", "-Infinity"), (".nan", "NaN"), ("1e999", "Inf")]
)
def test_infinite_and_nan_numbers_are_rejected(document: Document, write_recipe: Write, value: str, given: str) -> None:
    errors = errors_of(write_recipe(document), f"training.learning_rate={value}")
    assert_error(errors, "training.learning_rate", "finite", given)


def test_all_errors_of_a_file_are_named_at_once(document: Document, write_recipe: Write) -> None:
    document["training"]["steps"] = "100"
    document["training"]["learning_rat"] = 1
    document["projector"]["stak"] = 4
    document["decoder"] = "smolm3"
    del document["data"]["train"]["clips"]["path"]
    document["encodr"] = {}
    heading, *errors = errors_of(write_recipe(document))
    assert heading.endswith("(6 errors):")
    assert [location(error) for error in errors] == [
        "projector.swiglu.stak",
        "decoder",
        "data.train.clips.manifest.path",
        "training.steps",
        "training.learning_rat",
        "encodr",
    ]


def test_all_cross_field_errors_are_named_at_once(document: Document, write_recipe: Write) -> None:
    document["training"]["warmup_steps"] = 20
    document["projector"]["stack"] = 100
    document["batching"]["max_padded_s"] = 1.0
    assert [location(error) for error in errors_of(write_recipe(document))[1:]] == [
        "batching.max_padded_s",
        "projector.swiglu",
        "training.warmup_steps",
    ]


@pytest.mark.parametrize(
    ("encoder", "init_from", "values"),
    [
        ({"name": "whisper"}, None, ["'whisper'"]),
        ({"name": "hubert", "layer": 7}, None, ["encoder.layer", "7", "last"]),
        ({"name": "hubert"}, {"path": "x"}, ["training.init_from"]),
    ],
)
def test_a_pretrained_ctc_head_needs_an_encoder_that_has_one(
    document: Document, write_recipe: Write, encoder: Document, init_from: Document | None, values: list[str]
) -> None:
    document |= {"ctc": {"init": "pretrained"}, "encoder": encoder}
    document["training"]["init_from"] = init_from
    (error,) = errors_of(write_recipe(document))[1:]
    assert_error([error], "ctc.init", *values)


def test_a_pretrained_ctc_head_can_be_combined_with_parts_of_another_run(
    document: Document, write_recipe: Write
) -> None:
    document |= {"ctc": {"init": "pretrained"}, "encoder": {"name": "hubert"}}
    document["training"]["init_from"] = {"path": "x", "parts": ["projector"]}
    assert load_recipe(write_recipe(document)).ctc is not None


def test_a_weighted_sum_in_a_frozen_encoder_can_have_a_learning_rate(document: Document, write_recipe: Write) -> None:
    document["encoder"] = {"name": "hubert", "layer": "weighted", "learning_rate": 1e-2}
    assert load_recipe(write_recipe(document)).encoder.learning_rate == 1e-2
    document["encoder"]["weight_decay"] = 0.1
    (error,) = errors_of(write_recipe(document))[1:]
    assert location(error) == "encoder.hubert.weight_decay"


def test_the_context_of_a_published_decoder_is_known(document: Document, write_recipe: Write) -> None:
    document["decoder"] = {"name": "smollm3"}
    document["generation"] = {"max_new_tokens": 65_500}
    (error,) = errors_of(write_recipe(document))[1:]
    assert_error([error], "decoder.smollm3", "65536", "10 s", "65600")


def test_a_long_list_of_errors_is_shortened(document: Document, write_recipe: Write) -> None:
    document["training"] |= {f"x{index}": 1 for index in range(1000)}
    lines = errors_of(write_recipe(document))
    assert lines[0].endswith("(1000 errors):")
    assert len(lines) == 52
    assert "950" in lines[-1]


def test_a_huge_value_is_shortened(document: Document, write_recipe: Write) -> None:
    document["prompt"] = {"user": "x" * 100_000}
    document["training"]["schedule"] = "y" * 100_000
    document["z" * 100_000] = 1
    assert all(len(line) < 1100 for line in errors_of(write_recipe(document))[:3])


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"- a", b"{", b"a: &a [*a]"])
def test_a_file_that_is_not_a_recipe_gives_no_traceback(write_recipe: Write, content: bytes) -> None:
    with pytest.raises(UserError):
        load_recipe(write_recipe(content))
