"""Valid recipes, and the fields that are part of their identity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import tiny_recipe
from tests.recipe.edits import Document, Write, changed
from tests.recipe.invalid_recipes import SPEECH
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.projectors import PROJECTORS
from tiny_audio.recipe import content_hash, load_recipe


def test_the_tiny_recipe_is_valid(document: Document, write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe(document))
    assert recipe.encoder == ENCODERS.entry("whisper").config.tiny()
    assert recipe.training.adam_betas == (0.9, 0.999)


def test_every_part_makes_a_valid_recipe(document: Document, write_recipe: Write) -> None:
    parts = 0
    for section, registry in (("encoder", ENCODERS), ("projector", PROJECTORS), ("decoder", DECODERS)):
        for entry in registry.entries():
            config = entry.config.tiny()
            content = changed(document, section, {"name": entry.name, **config.model_dump(mode="json")})
            # Clips must be long enough for the encoder with the lowest frame rate. Some projectors need a CTC head.
            content |= {"ctc": {}, "data": {**content["data"], "min_duration_s": 2.0}}
            assert getattr(load_recipe(write_recipe(content)), section) == config
            parts += 1
    assert parts >= 3


def test_a_path_can_be_text(document: Document, write_recipe: Write) -> None:
    assert load_recipe(str(write_recipe(document))) == load_recipe(write_recipe(document))


def test_the_recipe_of_the_tests_is_small(tmp_path: Path) -> None:
    assert len(json.dumps(tiny_recipe(tmp_path))) < 2000


# --- identity

NO_IDENTITY = {
    "execution.device": "auto",
    "execution.num_workers": 3,
    "execution.log_every": 7,
    "execution.checkpoint_every": 7,
    "execution.keep_checkpoints": 7,
    "execution": {"evaluate_every": 5, "evaluate_set": "held_out"},
    "generation": {"num_beams": 3, "max_new_tokens": 9},
    "evaluation": {"normalizer": "lower", "num_bootstrap": 200},
    "data.evaluation": {},
    "data.evaluation.held_out.path": "elsewhere.jsonl",
}

EVALUATED = {"evaluate_every": 5, "evaluate_set": "held_out"}

IDENTITY = {
    "encoder.dropout": 0.1,
    "encoder.level_invariant": True,
    "encoder.overrides.d_model": 64,
    "projector.stack": 4,
    "projector.output_rms": 1.0,
    "decoder.overrides.num_hidden_layers": 3,
    "decoder.tokenizer.kind": "bpe",
    "ctc": {"weight": 0.5},
    "prompt.system": "",
    "prompt.user": "Transcribe: {audio}",
    "data.train.more": SPEECH,
    "data.train.clips.text_column": "transcript",
    "data.min_duration_s": 0.4,
    "data.max_duration_s": 9.0,
    "data.keep_empty": True,
    "augmentation.speed": [0.9, 1.0],
    "augmentation.silence": {},
    "augmentation.spec_augment": {},
    "batching.max_clips": 5,
    "batching.pool_batches": 1,
    "training.steps": 21,
    "training.learning_rate": 2e-3,
    "training.warmup_steps": 3,
    "training.schedule": "linear",
    "training.weight_decay": 0.1,
    "training.adam_betas": [0.9, 0.98],
    "training.accumulation": 2,
    "training.precision": "bf16",
    "training.seed": 1,
    "training.init_from": {"path": "x", "parts": ["encoder"]},
}


def test_the_run_id_is_short_and_stable(write_recipe: Write) -> None:
    """The id must not depend on the process or the version of this package."""
    assert load_recipe(write_recipe(tiny_recipe(Path("clips")))).run_id() == "86c4b512"


def test_comments_key_order_and_spelling_do_not_change_the_run_id(document: Document, write_recipe: Write) -> None:
    text = yaml.safe_dump(document, sort_keys=True).replace("0.001", "1e-3")
    reordered = write_recipe("# a claim\n" + text + "# the end\n", "other.yaml")
    assert load_recipe(reordered).run_id() == load_recipe(write_recipe(document)).run_id()


def test_a_default_that_is_written_out_does_not_change_the_run_id(document: Document, write_recipe: Write) -> None:
    before = load_recipe(write_recipe(document))
    assert load_recipe(write_recipe(before.model_dump(mode="json"))).run_id() == before.run_id()


@pytest.mark.parametrize("path", NO_IDENTITY)
def test_fields_that_do_not_affect_the_weights_do_not_change_the_run_id(
    document: Document, write_recipe: Write, path: str
) -> None:
    before = load_recipe(write_recipe(document))
    after = load_recipe(write_recipe(changed(document, path, NO_IDENTITY[path])))
    assert before != after
    assert before.run_id() == after.run_id()


def test_paths_do_not_change_the_run_id(document: Document, write_recipe: Write) -> None:
    def run_id(path: str) -> str:
        return load_recipe(write_recipe(changed(document, "training.init_from", {"path": path}))).run_id()

    assert run_id("here") == run_id("there") != load_recipe(write_recipe(document)).run_id()


@pytest.mark.parametrize("path", IDENTITY)
def test_fields_that_affect_the_weights_change_the_run_id(document: Document, write_recipe: Write, path: str) -> None:
    before = load_recipe(write_recipe(document))
    after = load_recipe(write_recipe(changed(document, path, IDENTITY[path])))
    assert before.run_id() != after.run_id()


def test_fields_that_choose_the_weights_change_the_run_id(document: Document, write_recipe: Write) -> None:
    base = changed(document, "execution", {**EVALUATED, "device": "cpu", "checkpoint_every": 5})

    def run_ids(changes: list[tuple[str, Any]], **training: Any) -> list[str]:
        chosen = changed(base, "training", base["training"] | training)
        return [load_recipe(write_recipe(changed(chosen, path, value))).run_id() for path, value in changes]

    scoring: list[tuple[str, Any]] = [
        ("execution.evaluate_every", 6),
        ("execution.evaluate_utterances", 6),
        ("generation.num_beams", 2),
        ("evaluation.normalizer", "lower"),
        ("data.evaluation.held_out.text_column", "transcript"),
    ]
    others: list[tuple[str, Any]] = [
        ("evaluation.num_bootstrap", 200),
        ("data.evaluation.more", SPEECH),
        ("data.evaluation.held_out.path", "elsewhere.jsonl"),
    ]
    saving: list[tuple[str, Any]] = [("execution.checkpoint_every", 7), ("execution.checkpoint_every", 8)]
    best, average = {"keep_best": {"set": "held_out"}}, {"average_last": 2}
    assert len(set(run_ids([*scoring, *others, *saving]))) == 1
    assert len({*run_ids(others, **best), *run_ids(saving, **best)}) == 1
    assert len({*run_ids(scoring, **best), *run_ids(others, **best)}) == 1 + len(scoring)
    assert len({*run_ids(saving, **average)}) == len(saving)
    assert len({*run_ids([*scoring, *others], **average)}) == 1
    kinds = (
        {},
        best,
        {"keep_best": {"set": "held_out", "metric": "cer"}},
        {"keep_best": {"set": "held_out", "patience": 1}},
    )
    assert len({run_ids(saving[:1], **kind)[0] for kind in (*kinds, average)}) == 1 + len(kinds)


def test_optional_fields_that_are_not_set_are_not_part_of_the_identity(document: Document, write_recipe: Write) -> None:
    """If a new version adds an optional field, existing ids do not change."""

    def nones(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [key for key, item in value.items() if item is None or nones(item)]
        return [key for item in value if (key := nones(item))] if isinstance(value, list) else []

    recipe = load_recipe(write_recipe(document))
    assert nones(recipe.model_dump(mode="json"))
    assert nones(recipe.training_identity()) == nones(recipe.evaluation_identity()) == []


def test_the_evaluation_has_its_own_identity(document: Document, write_recipe: Write) -> None:
    def identity(path: str = "execution.log_every", value: Any = 5) -> str:
        return content_hash(load_recipe(write_recipe(changed(document, path, value))).evaluation_identity())

    assert identity() == identity("execution.num_workers", 2) == identity("training.steps", 21)
    others = [
        identity("generation.num_beams", 2),
        identity("evaluation.normalizer", "lower"),
        identity("data.evaluation.more", SPEECH),
    ]
    assert len({identity(), *others}) == 4
