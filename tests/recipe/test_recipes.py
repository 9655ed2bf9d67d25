"""Shipped recipes: they are valid, describe their claim, and are scored on data that is not used for training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_clips
from tests.support.paths import RECIPES as FOLDER
from tests.support.training import RecordingCallback
from tiny_audio.commands.run import Run
from tiny_audio.commands.show import describe_recipe
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.pretrained.checkpoints import known_architecture
from tiny_audio.projectors import PROJECTORS
from tiny_audio.recipe import Recipe, load_recipe
from tiny_audio.runtime.shipped_recipes import shipped_recipes

RECIPES = list(shipped_recipes().values())
REPEATED = {"an4_synthetic", "bench_encoder", "laptop"}
"""Recipes whose parts and settings are also in an4, quickstart, tiny_audio or your_speech. Their runs are marked as
slow."""
SAME_TRAINING = {"bench_projectors", "tiny_audio_13m", "tiny_audio_buckets"}
"""Recipes that, with tiny parts, run the same code as other recipes. Their runs are marked as slow. So are the runs of
the recipes in ``projectors/``, because tests/test_combinations.py tests each projector."""


def test_recipes_are_found() -> None:
    assert len(RECIPES) >= 3
    assert {path for path in FOLDER.rglob("*.yaml") if path.parent.name != "variants"} == set(RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_describes_its_claim(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.data.evaluation, "a recipe needs an evaluation set to measure its claim"
    header = path.read_text().split("\n\n")[0]
    for key in ("Command:", "Hardware:", "Result:", "Time:"):
        assert f"# {key}" in header, f"the header lacks {key!r}"
    claim = header.splitlines()[0]
    assert claim.startswith("# "), "`tiny-audio recipes` lists the first line"
    assert claim.endswith("."), "the claim is one line"


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


TINY = {"precision": "fp32", "tf32": False, "steps": 2, "warmup_steps": 0, "accumulation": 1, "init_from": None}
HERE = {"device": "cpu", "num_workers": 0, "evaluate_every": None, "evaluate_set": None, "log_every": 1}


def shrunk(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with ``tiny()`` versions of its parts, for four clips and a CPU."""
    document = recipe.model_dump(mode="json")
    for kind, registry in (("encoder", ENCODERS), ("projector", PROJECTORS), ("decoder", DECODERS)):
        tiny: Any = registry.entry(document[kind]["name"]).config.tiny()
        kept = {key: document[kind][key] for key in ("freeze", "lora", "layer") if key in document[kind]}
        if kept.get("layer") not in (None, "last", "weighted"):
            kept["layer"] = 1
        document[kind] = tiny.model_dump(mode="json") | kept
    if document["ctc"] is not None:
        document["ctc"]["init"] = "random"
    if document["alignment"] is not None and document["alignment"]["alone_steps"] is not None:
        document["alignment"]["alone_steps"] = 1
    clips = {"name": "manifest", "path": str(write_clips(folder, 4))}
    document["data"] |= {"train": {"clips": clips}, "evaluation": {"held_out": clips}}
    document["data"] |= {"min_duration_s": 0.3, "max_duration_s": 10.0}
    # Remove the text of the prompt. The tokenizer is trained on the transcripts, and lacks other characters.
    document["prompt"] = {}
    document["training"] |= TINY
    document["execution"] |= HERE
    document["evaluation"] |= {"num_bootstrap": 100, "encoder_system_clips": 0}
    document["generation"]["max_new_tokens"] = 5
    return Recipe.model_validate_json(json.dumps(document))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.slow]
            if path.parent.name == "projectors" or path.stem in SAME_TRAINING | REPEATED
            else [],
        )
        for path in RECIPES
    ],
)
def test_a_recipe_runs_with_tiny_versions_of_its_parts(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    report = Run(shrunk(recipe, tmp_path), path.stem, tmp_path / "run", RecordingCallback()).complete()
    names = {part["part"]: part["name"] for part in report["parts"]}
    assert (names["encoder"], names["projector"], names["decoder"]) == (
        recipe.encoder.name,
        recipe.projector.name,
        recipe.decoder.name,
    )
    assert ("ctc_head" in names) == (recipe.ctc is not None)
    assert report["training"]["steps"] == 2
    assert report["evaluation"]["held_out"]["num_utterances"] == 4
    for kind in ("encoder", "decoder"):
        trains = report["parameters"][kind]["trainable"] > 0
        part = getattr(recipe, kind)
        assert trains == (not part.freeze or part.lora is not None or getattr(part, "layer", "") == "weighted")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_checkpoints_of_a_recipe_are_known_offline(path: Path) -> None:
    recipe = load_recipe(path)
    for part in (recipe.encoder, recipe.decoder):
        assert part.init == "random" or known_architecture(part) is not None, f"add {part.pretrained} to the table"


def test_parameter_counts_equal_those_of_the_model_card() -> None:
    parameters = describe_recipe(load_recipe(FOLDER / "tiny_audio.yaml"))["parameters"]
    assert {part: counts["trainable"] for part, counts in parameters.items()} == {
        "encoder": 1_966_080,
        "projector": 121_643_264,
        "decoder": 15_335_424,
        "total": 138_944_768,
    }
    assert parameters["encoder"]["total"] - 1_966_080 == pytest.approx(962.5e6, rel=1e-3)
    assert parameters["decoder"]["total"] - 15_335_424 == pytest.approx(3_075.1e6, rel=1e-3)
    small = describe_recipe(load_recipe(FOLDER / "tiny_audio_13m.yaml"))["parameters"]["projector"]
    assert small["trainable"] == 13_000_448
