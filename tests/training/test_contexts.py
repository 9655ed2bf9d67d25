"""Training with contexts: batches, runs and exported models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Document, changed, tiny_recipe, write_clips
from tests.support.training import gather, make_trainer, parse
from tiny_audio.commands.run.train import training_inputs
from tiny_audio.config import UserError
from tiny_audio.data.contexts import TrainingContexts
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.model.context import ContextSettings
from tiny_audio.model.prompt import Context, PromptConfig
from tiny_audio.plan import plan_recipe
from tiny_audio.recipe.limits import ContextLimits, limit_errors
from tiny_audio.runtime.world import World
from tiny_audio.training.assembly import assemble
from tiny_audio.training.batches import Batches
from tiny_audio.training.signals import StopSignal

pytestmark = pytest.mark.usefixtures("one_thread")

HOTWORDS: dict[str, Any] = {"probability": 0.6, "num_words": [1, 3], "num_spoken": [1, 2], "num_common": 1}
CONTEXT: dict[str, Any] = {"max_tokens": 60, "hotwords": HOTWORDS}


def with_context(folder: Path, **changes: Any) -> Document:
    return changed(tiny_recipe(folder), prompt={"context": CONTEXT | changes})


def test_batches_have_the_contexts_of_their_clips(tmp_path: Path) -> None:
    write_clips(tmp_path, 12)
    recipe = parse(with_context(tmp_path))
    clips = gather(recipe)
    model, tokenizer, target_encoder = assemble(recipe, clips, None)
    batches = Batches(recipe, clips, target_encoder, World(), lambda dropped: None, StopSignal(), pin_memory=False)
    assert recipe.prompt.context is not None
    contexts = TrainingContexts.learn(recipe.prompt.context, clips, tokenizer)
    seen = []
    with torch.no_grad():
        for micro_batch, _ in zip(batches.start(0, 0, ""), range(3), strict=False):
            assert micro_batch is not None
            batch, chosen = micro_batch.batch, micro_batch.plan[micro_batch.index].tolist()
            wanted = [contexts.ids(clips.clips, row, seed) for row, seed in zip(chosen, batch.seeds, strict=True)]
            assert batch.contexts == wanted
            seen += wanted
            losses = model(batch.waveforms, batch.lengths, batch.targets, contexts=batch.contexts).decoder_loss
            plain = model(batch.waveforms, batch.lengths, batch.targets).decoder_loss
            assert [bool(ids) for ids in wanted] == ((losses - plain).abs() > 1e-4).tolist()
    assert len(seen) == 12
    assert 0 < sum(map(bool, seen)) < 12


def test_the_columns_of_contexts_belong_to_the_inputs_of_training(tmp_path: Path) -> None:
    """A run must not continue if a column that contexts use, such as the language, has changed."""
    write_clips(tmp_path, 4)
    manifest = tmp_path / "manifest.jsonl"
    rows = [json.loads(line) | {"chapter": "1", "language": "de"} for line in manifest.read_text().splitlines()]
    columns = {"language": {"codes": ["de"]}, "previous_text": {"same": "chapter"}}
    recipes = [parse(document) for document in (with_context(tmp_path), with_context(tmp_path, **columns))]

    def inputs(**changes: str) -> list[str]:
        manifest.write_text("".join(json.dumps(row | changes) + "\n" for row in rows))
        return [training_inputs(recipe, gather(recipe), None).data for recipe in recipes]

    before = inputs()
    assert inputs(room="b") == before
    for change in ({"language": "en"}, {"chapter": "2"}):
        after = inputs(**change)
        assert (after[0] == before[0], after[1] == before[1]) == (True, False)


def test_the_model_stores_its_context_settings(tmp_path: Path) -> None:
    write_clips(tmp_path, 8)
    recipe = parse(changed(with_context(tmp_path), data__target_text="lower"))
    model, tokenizer, _ = assemble(recipe, gather(recipe), None)
    assert ContextSettings.model_validate(model.config.context, strict=False) == ContextSettings(
        max_tokens=60, hotwords=True, lower_case=True
    )
    found = Transcriber(model, tokenizer).encode_context(Context(("Stop", "go")))
    assert tokenizer.decode(found.ids) == "Words: stop, go\n"
    assert found.warnings == ()


def test_the_context_is_part_of_the_identity_only_if_it_is_used(tmp_path: Path) -> None:
    plain, aware, other = (
        parse(document)
        for document in (tiny_recipe(tmp_path), with_context(tmp_path), with_context(tmp_path, max_tokens=61))
    )
    assert "context" not in plain.training_identity()["prompt"]
    assert len({plain.run_id(), aware.run_id(), other.run_id()}) == 3
    assert plain.prompt == PromptConfig()


def test_too_many_common_words_are_rejected_before_the_first_step(tmp_path: Path) -> None:
    write_clips(tmp_path, 4)
    document = with_context(tmp_path, hotwords=HOTWORDS | {"num_common": 1000})
    with pytest.raises(UserError, match=r"prompt\.context\.hotwords\.num_common: 1,000 leaves no hotword"):
        make_trainer(document, tmp_path / "run").run()


def test_position_limits_include_the_longest_context(tmp_path: Path) -> None:
    plain, aware = ContextLimits(parse(tiny_recipe(tmp_path))), ContextLimits(parse(with_context(tmp_path)))
    assert aware.needed == plain.needed + 60
    if plain.max_positions is not None:
        assert aware.max_target_ids == plain.max_positions - plain.audio - 60
    overrides = tiny_recipe(tmp_path)["decoder"]["overrides"] | {"max_position_embeddings": plain.needed}
    document = changed(with_context(tmp_path), decoder__overrides=overrides)
    ((place, message),) = limit_errors(parse(document))
    assert place == "decoder.smollm3"
    assert "prompt.context.max_tokens" in message
    assert not list(limit_errors(parse(changed(document, prompt={}))))


def test_costs_include_contexts(tmp_path: Path) -> None:
    plain, aware = (plan_recipe(parse(document)) for document in (tiny_recipe(tmp_path), with_context(tmp_path)))
    assert aware.worst.prompt_tokens == plain.worst.prompt_tokens + 60
    assert plain.mean.prompt_tokens < aware.mean.prompt_tokens < aware.worst.prompt_tokens
    assert aware.worst.peak_bytes > plain.worst.peak_bytes
    assert aware.flops_per_audio_s()["decoder"]["forward"] > plain.flops_per_audio_s()["decoder"]["forward"]
