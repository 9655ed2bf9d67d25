"""Every way to get a recipe wrong ends in one clear message; what decides the weights decides the identity."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

import tiny_audio
from tests.conftest import tiny_recipe
from tiny_audio.config import UserError
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.projectors import PROJECTORS
from tiny_audio.recipe import SOURCES, Recipe, content_hash, load_recipe, recipe_schema

Document = dict[str, Any]
Write = Callable[..., Path]
REGISTRIES = (ENCODERS, PROJECTORS, DECODERS, SOURCES)


def changed(document: Document, path: str, value: Any) -> Document:
    """A copy with one field set; ``...`` removes it."""
    document = copy.deepcopy(document)
    *parents, last = path.split(".")
    section = document
    for key in parents:
        section = section.setdefault(key, {})
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return document


def refusal(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


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
            # Long enough for the slowest encoder, and with the labels that a projector may want.
            content |= {"ctc": {}, "data": {**content["data"], "min_duration_s": 2.0}}
            assert getattr(load_recipe(write_recipe(content)), section) == config
            parts += 1
    assert parts >= 3


SPEECH = {"name": "manifest", "path": "clips.jsonl"}
LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj"]}
FROZEN = {"name": "whisper"}
HUBERT = {"name": "hubert", "init": "random", "freeze": False}

WRONG = [
    # names
    ("encodr", {}, r"encodr: unknown field; did you mean 'encoder'\? Allowed: augmentation, batching, ctc, data, "),
    ("extend", "base.yaml", r"extend: unknown field; did you mean 'extends'\?"),
    ("training.learning_rat", 1, r"training.learning_rat: unknown field; did you mean 'learning_rate'\? Allowed: acc"),
    ("projector.stak", 5, r"projector.swiglu.stak: unknown field; did you mean 'stack'\? Allowed: .*hidden_dim"),
    ("encoder.overides", {}, r"encoder.whisper.overides: unknown field; did you mean 'overrides'\?"),
    ("decoder.tokenizer.vocabsize", 9,
     r"decoder.smollm3.tokenizer.vocabsize: unknown field; did you mean 'vocab_size'"),
    ("decoder.lora", {**LORA, "rnk": 3}, r"decoder.smollm3.lora.rnk: unknown field; did you mean 'rank'\?"),
    ("data.train.clips.pth", "x", r"data.train.clips.manifest.pth: unknown field; did you mean 'path'\?"),
    ("augmentation.spec_augment", {"num_time_mask": 1},
     r"spec_augment.num_time_mask: .* did you mean 'num_time_masks'"),
    ("training.init_from", {"path": "x", "part": []}, r"training.init_from.part: .* did you mean 'parts'"),
    ("training.extends", "x", r"training.extends: unknown field; "),
    ("a\nb: c", 1, r"'a\\nb: c': unknown field"),
    ("encoder", "wisper", r"encoder: unknown encoder 'wisper'; did you mean 'whisper'\? Allowed: .*whisper"),
    ("encoder.name", "wisper", r"encoder: unknown encoder 'wisper'; did you mean 'whisper'\?"),
    ("projector", {"stack": 5}, r"projector: projector: `name` is missing; Allowed: .*swiglu"),
    ("projector.name", "whisper", r"projector: unknown projector 'whisper'; "),
    ("data.train.clips.name", "manifesto", r"data.train.clips: unknown source 'manifesto'; did you mean 'manifest'\?"),
    ("data.train.clips", "manifest", r"data.train.clips.path: is missing, and has no default"),
    # kinds
    ("encoder", ["whisper"], r"encoder: unknown encoder \['whisper'\]"),
    ("encoder", None, r"encoder: unknown encoder null; "),
    ("encoder", 5, r"encoder: unknown encoder 5; "),
    ("encoder", ..., r"encoder: is missing, and has no default"),
    ("data", ..., r"data: is missing, and has no default"),
    ("training.steps", ..., r"training.steps: is missing, and has no default"),
    ("training", "fast", r'training: should be a mapping, not "fast"'),
    ("training", [], r"training: should be a mapping, not \[\]"),
    ("training", None, r"training: should be a mapping, not null"),
    ("training.steps", "100", r'training.steps: should be a valid integer, not "100"'),
    ("training.steps", 1.5, r"training.steps: should be a valid integer, not 1.5"),
    ("training.steps", 100.0, r"training.steps: should be a valid integer, not 100.0"),
    ("training.steps", True, r"training.steps: should be a valid integer, not true"),
    ("training.steps", None, r"training.steps: should be a valid integer, not null"),
    ("training.steps", [1], r"training.steps: should be a valid integer, not \[1\]"),
    ("training.learning_rate", "1e-4", r'training.learning_rate: should be a valid number, not "1e-4"'),
    ("training.learning_rate", True, r"training.learning_rate: should be a valid number, not true"),
    ("training.tf32", "no", r'training.tf32: should be a valid boolean, not "no"'),
    ("training.tf32", 1, r"training.tf32: should be a valid boolean, not 1"),
    ("decoder.revision", 1234567,
     r"decoder.smollm3.revision: should be a valid string, not 1234567; write it in quotes"),
    ("prompt.user", {"audio": None}, r'prompt.user: should be a valid string, not {"audio": null}; write it in quotes'),
    ("data.train.clips.path", None, r"data.train.clips.manifest.path: should be a valid string, not null$"),
    ("decoder.lora", {**LORA, "targets": "q_proj"}, r'lora.targets: should be a list, not "q_proj"'),
    ("training.adam_betas", {"first": 0.9}, r'training.adam_betas: should be a list, not {"first": 0.9}'),
    ("encoder.overrides", ["d_model"], r"encoder.whisper.overrides: should be a mapping, not \[\"d_model\"\]"),
    ("data.train", [SPEECH], r"data.train: should be a mapping, not "),
    # values
    ("training.steps", 0, r"training.steps: should be greater than 0, not 0"),
    ("training.steps", -5, r"training.steps: should be greater than 0, not -5"),
    ("training.learning_rate", 0, r"training.learning_rate: should be greater than 0, not 0"),
    ("training.schedule", "cosin", r"training.schedule: should be 'cosine', 'linear' or 'constant', not \"cosin\""),
    ("training.precision", "fp16", r"training.precision: should be 'fp32' or 'bf16', not \"fp16\""),
    ("training.seed", -1, r"training.seed: should be greater than or equal to 0, not -1"),
    ("training.seed", 2**32, r"training.seed: should be less than 4294967296, not 4294967296"),
    ("training.label_smoothing", 1.0, r"training.label_smoothing: should be less than 1, not 1.0"),
    ("training.adam_betas", [0.9], r"training.adam_betas.1: is missing"),
    ("training.adam_betas", [0.9, 0.9, 0.9], r"training.adam_betas: should have at most 2 items, not 3$"),
    ("training.adam_betas", [0.9, 1.0], r"training.adam_betas: each must be at least 0 and below 1, not 1.0"),
    ("data.train", {}, r"data.train: should have at least 1 item, not 0$"),
    ("data.train", {"my set": SPEECH}, r"data.train.'my set': should match pattern '.*', not \"my set\""),
    ("data.train", {"../x": SPEECH}, r"data.train.'../x': should match pattern"),
    ("data.train.clips.path", "", r"data.train.clips.manifest.path: "),
    ("data.max_duration_s", 1e300, r"data.max_duration_s: should be less than or equal to 86400, not 1e\+300"),
    ("decoder.lora", {**LORA, "targets": []}, r"lora.targets: should have at least 1 item, not 0$"),
    ("encoder.attention", "flash",
     r"attention: should be 'auto', 'sdpa', 'eager', 'flash_attention_2' or 'varlen', not \"flash\""),
    ("prompt.user", "hello", r"prompt.user: must contain {audio} exactly once, and contains it 0 times: 'hello'"),
    ("prompt.user", "{audio}{audio}", r"prompt.user: must contain {audio} exactly once, and contains it 2 times"),
    ("augmentation.speed", [0.1], r"augmentation.speed: needs factors between 0.5 and 2, such as .*, not \[0.1\]"),
    ("augmentation.speed", [], r"augmentation.speed: needs factors between 0.5 and 2"),
    ("augmentation.silence", {"max_before_s": 0, "max_after_s": 0},
     r"augmentation.silence: adds nothing with max_before_s and max_after_s both 0; raise one, or remove the section"),
    ("augmentation.silence.probability", 0, r"silence.probability: should be greater than 0, not 0"),
    ("augmentation.silence.max_before_s", -0.1, r"silence.max_before_s: should be greater than or equal to 0, not -0"),
    ("augmentation.silence.max_after_s", 11, r"silence.max_after_s: should be less than or equal to 10, not 11"),
    ("augmentation.white_noise", {"snr_db": [20, 5]},
     r"white_noise.snr_db: is a range \[lowest, highest\], and 20.0 is above 5.0"),
    ("augmentation.noise", {"folder": ""}, r"augmentation.noise.folder: should have at least 1 character, not \"\""),
    ("augmentation.reverberation", {}, r"augmentation.reverberation.folder: is missing, and has no default"),
    ("augmentation.noise", {"folder": "x", "probability": 0}, r"noise.probability: should be greater than 0, not 0"),
    ("evaluation.num_bootstrap", 10, r"evaluation.num_bootstrap: should be greater than or equal to 100, not 10"),
    ("evaluation.normalizer", "upper", r"evaluation.normalizer: should be 'none', .*, not \"upper\""),
    ("execution.device", "gpu", r"execution.device: should be 'auto', 'cpu' or 'cuda', not \"gpu\""),
    ("execution.num_workers", -1, r"execution.num_workers: should be greater than or equal to 0, not -1"),
    ("training.init_from", {"path": "x", "parts": ["brain"]}, r"parts.0: should be 'encoder', .*, not \"brain\""),
    # cross_field_errors within a section
    ("encoder", {**FROZEN, "overrides": {"d_model": 8}}, r"encoder.whisper: overrides change the architecture, which"),
    ("decoder.lora", LORA, r"decoder.smollm3: lora adapts frozen weights; set freeze: true, or remove lora"),
    ("decoder.overrides.pad_token_id", 1,
     r"overrides.pad_token_id is the tokenizer's to say \(pad and end must differ\)"),
    ("decoder.overrides.vocab_size", 9, r"decoder.smollm3: overrides.vocab_size is the tokenizer's to say"),
    ("decoder", {"name": "smollm3", "tokenizer": {"kind": "bpe"}},
     r"a pretrained decoder knows only its own tokenizer"),
    ("generation.ctc_weight", 0.3,
     r"generation: ctc_weight 0.3 chooses between several .* num_beams is 1; set num_beams"),
    # cross_field_errors between sections
    ("data.min_duration_s", 10.0, r"data.min_duration_s: 10.0 leaves no clip below max_duration_s 10.0; lower it"),
    ("projector.stack", 16,
     r"projector.swiglu: needs 16 encoder frames, and a clip of data.min_duration_s 0.3 s has 15; "),
    ("projector.stack", 2**62, r"projector.swiglu: needs 4611686018427387904 encoder frames, and a clip "),
    ("data.max_duration_s", 15.5,
     r"data.max_duration_s: 15.5 s is more than the 15 s that encoder 'whisper' takes; set at "),
    ("augmentation.speed", [0.5, 1],
     r"10.0 s, slowed down by augmentation.speed to 20.0 s, is more .* set at most 7.5"),
    ("batching.max_padded_s", 9.0, r"batching.max_padded_s: 9.0 s cannot hold one clip of data.max_duration_s 10.0 s"),
    ("training.warmup_steps", 20, r"training.warmup_steps: 20 leaves nothing of 20 steps; lower it"),
    ("training", {"steps": 9, "learning_rate": 1, "schedule": "constant", "final_learning_rate_ratio": 0.1},
     r"training.final_learning_rate_ratio: has no effect under schedule: constant; set it to 0"),
    ("training.tf32", True, r"training.tf32: has no effect on execution.device: cpu; set it to false"),
    ("execution", {"evaluate_every": 21, "evaluate_set": "held_out"},
     r"evaluate_every: 21 is past the last of 20 steps"),
    ("execution.evaluate_every", 5, r"execution.evaluate_set: and evaluate_every go together; give both or neither"),
    ("execution.evaluate_set", "held_out", r"execution.evaluate_set: and evaluate_every go together"),
    ("execution", {"evaluate_every": 5, "evaluate_set": "heldout"},
     r"there is no set 'heldout' in data.evaluation; did you mean 'held_out'\? Allowed: held_out"),
    ("generation", {"ctc_weight": 0.3, "num_beams": 4},
     r"generation.ctc_weight: needs a CTC head; add a `ctc` section"),
    ("encoder.freeze", True,
     r"encoder.whisper.freeze: random weights that do not train stay random; set freeze: false"),
    ("decoder.freeze", True, r"decoder.smollm3.freeze: random weights that do not train stay random"),
    ("training.init_from", {"path": "x", "parts": ["ctc_head"]},
     r"training.init_from.parts: ctc_head has no place to go"),
    # architectures that count no frames
    ("encoder", {**HUBERT, "overrides": {"conv_stride": [0] * 7}}, r"encoder.hubert.*: the frames of a clip cannot be"),
    ("encoder", {**HUBERT, "overrides": {"conv_kernel": 5}}, r"encoder.hubert.*overrides"),
    ("encoder", {**HUBERT, "overrides": {"conv_kernel": ["a"] * 7}}, r"encoder.hubert.*overrides"),
    ("encoder", {**HUBERT, "overrides": {"conv_kernel": [1]}}, r"encoder.hubert.*overrides"),
    ("encoder.attention", "flash_attention_2",
     r"encoder.whisper.attention: flash_attention_2 runs in half precision on a GPU only; set training"),
    ("encoder", {"name": "whisper", "learning_rate": 1e-5},
     r"whisper.learning_rate: has no effect where nothing trains"),
    ("decoder", {"name": "smollm3", "weight_decay": 0.1},
     r"decoder.smollm3.weight_decay: has no effect where nothing trains; remove it, or add lora"),
    ("encoder", {"name": "whisper", "gradient_checkpointing": True},
     r"encoder.whisper.gradient_checkpointing: saves nothing where no gradient passes; remove it"),
    ("ctc", {"init": "pretrained"}, r"ctc.init: the encoder 'whisper' has random weights, so no head comes with it"),
    ("projector.hidden_dim", 2**62, r"projector.swiglu: cannot be built: .*; shrink its sizes"),
    ("generation.max_new_tokens", 1000,
     r"decoder.smollm3: reads at most 1024 positions, and a clip of 10 s can need 1100: audio embeddings and gen"),
    ("data.target_text", "upper", r"data.target_text: should be 'none', .*, not \"upper\""),
    ("data.evaluation", {"clips": SPEECH}, r"data.evaluation.clips: is a training set's name too; give it another"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_a_mistake_is_named_with_its_place_and_what_is_allowed(
    document: Document, write_recipe: Write, path: str, value: Any, message: str
) -> None:
    file = write_recipe(changed(document, path, value))
    first, *mistakes = refusal(file)
    assert re.fullmatch(rf"{re.escape(str(file))} is not a valid recipe \(\d+ errors?\):", first)
    assert any(re.search(message, mistake) for mistake in mistakes), "\n".join(mistakes)
    assert all(len(mistake) < 1100 for mistake in mistakes)


def test_a_clip_that_is_sped_up_must_still_fill_the_projector(document: Document, write_recipe: Write) -> None:
    path = write_recipe(changed(document, "projector.stack", 15))
    assert load_recipe(path, ["augmentation.speed=[0.9, 1]"])
    assert refusal(path, "augmentation.speed=[1, 2]")[1].startswith(
        "  projector.swiglu: needs 15 encoder frames, and a clip of data.min_duration_s 0.3 s, sped up by "
        "augmentation.speed to 0.15 s, has 8; shrink the projector's window or raise data.min_duration_s"
    )


def test_there_are_enough_of_them() -> None:
    assert len(WRONG) >= 50


@pytest.mark.parametrize(
    ("value", "given"), [(".inf", "Infinity"), ("-.inf", "-Infinity"), (".nan", "NaN"), ("1e999", "Inf")]
)
def test_numbers_are_finite(document: Document, write_recipe: Write, value: str, given: str) -> None:
    mistake = refusal(write_recipe(document), f"training.learning_rate={value}")[1]
    assert mistake.startswith(f"  training.learning_rate: should be a finite number, not {given}")


def test_all_mistakes_of_a_file_are_named_at_once(document: Document, write_recipe: Write) -> None:
    document["training"]["steps"] = "100"
    document["training"]["learning_rat"] = 1
    document["projector"]["stak"] = 4
    document["decoder"] = "smolm3"
    del document["data"]["train"]["clips"]["path"]
    document["encodr"] = {}
    first, *mistakes = refusal(write_recipe(document))
    assert first.endswith("is not a valid recipe (6 errors):")
    assert [mistake.split(":")[0].strip() for mistake in mistakes] == [
        "projector.swiglu.stak",
        "decoder",
        "data.train.clips.manifest.path",
        "training.steps",
        "training.learning_rat",
        "encodr",
    ]


def test_all_contradictions_are_named_at_once(document: Document, write_recipe: Write) -> None:
    document["training"]["warmup_steps"] = 20
    document["projector"]["stack"] = 100
    document["batching"]["max_padded_s"] = 1.0
    assert [line.split(":")[0].strip() for line in refusal(write_recipe(document))[1:]] == [
        "batching.max_padded_s",
        "projector.swiglu",
        "training.warmup_steps",
    ]


def test_a_released_ctc_head_needs_an_encoder_that_has_one(document: Document, write_recipe: Write) -> None:
    document["ctc"] = {"init": "pretrained"}
    document["encoder"] = {"name": "whisper"}
    (mistake,) = refusal(write_recipe(document))[1:]
    assert "ctc.init: checkpoints of the encoder 'whisper' carry no head that spells; set init: random" in mistake
    document["encoder"] = {"name": "hubert", "layer": 7}
    (mistake,) = refusal(write_recipe(document))[1:]
    assert "ctc.init: the head was trained on the last layer, and encoder.layer is 7; set it to last" in mistake
    document["encoder"] = {"name": "hubert"}
    document["training"]["init_from"] = {"path": "x"}
    (mistake,) = refusal(write_recipe(document))[1:]
    assert "ctc.init: the head comes from training.init_from already; set init: random" in mistake
    document["training"]["init_from"] = {"path": "x", "parts": ["projector"]}
    assert load_recipe(write_recipe(document)).ctc is not None


def test_a_weighted_sum_in_a_frozen_encoder_has_a_rate(document: Document, write_recipe: Write) -> None:
    document["encoder"] = {"name": "hubert", "layer": "weighted", "learning_rate": 1e-2}
    assert load_recipe(write_recipe(document)).encoder.learning_rate == 1e-2
    document["encoder"]["weight_decay"] = 0.1
    (mistake,) = refusal(write_recipe(document))[1:]
    assert "encoder.hubert.weight_decay: has no effect where nothing trains" in mistake


def test_the_context_of_a_published_decoder_is_known(document: Document, write_recipe: Write) -> None:
    document["decoder"] = {"name": "smollm3"}
    document["generation"] = {"max_new_tokens": 65_500}
    (mistake,) = refusal(write_recipe(document))[1:]
    assert "decoder.smollm3: reads at most 65536 positions, and a clip of 10 s can need 65600" in mistake


def test_a_thousand_mistakes_end_in_a_number(document: Document, write_recipe: Write) -> None:
    document["training"] |= {f"x{number}": 1 for number in range(1000)}
    lines = refusal(write_recipe(document))
    assert lines[0].endswith("(1000 errors):")
    assert len(lines) == 52
    assert lines[-1] == "  ... and 950 more"


def test_a_value_as_large_as_the_file_is_shortened(document: Document, write_recipe: Write) -> None:
    document["prompt"] = {"user": "x" * 100_000}
    document["training"]["schedule"] = "y" * 100_000
    document["z" * 100_000] = 1
    assert all(len(line) < 1100 for line in refusal(write_recipe(document))[:3])


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"- a", b"{", b"a: &a [*a]"])
def test_a_file_that_is_no_recipe_is_no_traceback(write_recipe: Write, content: bytes) -> None:
    with pytest.raises(UserError):
        load_recipe(write_recipe(content))


def test_a_path_may_be_text(document: Document, write_recipe: Write) -> None:
    assert load_recipe(str(write_recipe(document))) == load_recipe(write_recipe(document))


# --- overrides, through to the recipe


def test_overrides_are_validated_like_the_file(document: Document, write_recipe: Write) -> None:
    path = write_recipe(document)
    recipe = load_recipe(
        path, ["training.steps=100", "training.learning_rate=1e-4", "ctc.weight=0.3", "prompt.system=no"]
    )
    assert (recipe.training.steps, recipe.training.learning_rate, recipe.prompt.system) == (100, 1e-4, "no")
    assert recipe.ctc is not None
    assert refusal(path, "training.stepz=1")[1].startswith("  training.stepz: unknown field; did you mean 'steps'?")
    assert refusal(path, "training.steps='9'")[1] == '  training.steps: should be a valid integer, not "9"'


def test_naming_a_part_replaces_its_section(document: Document, write_recipe: Write) -> None:
    path = write_recipe(document)
    assert load_recipe(path).projector != load_recipe(path, ["projector=swiglu"]).projector
    assert load_recipe(path, ["projector=swiglu"]).projector == PROJECTORS.parse("swiglu")
    assert load_recipe(path, ["encoder=hubert"]).encoder == ENCODERS.parse("hubert")


def test_renaming_a_part_keeps_its_fields_and_fails_where_they_do_not_fit(
    document: Document, write_recipe: Write
) -> None:
    path = write_recipe(changed(document, "encoder", {"name": "hubert", "train_front_end": True, "dropout": 0.1}))
    _, mistake = refusal(path, "encoder.name=whisper")
    assert mistake.startswith("  encoder.whisper.train_front_end: unknown field; ")
    assert mistake.endswith(
        "; encoder.name=whisper keeps the other fields: to replace the whole section write encoder=whisper"
    )
    assert load_recipe(path, ["encoder=whisper"]).encoder == ENCODERS.parse("whisper")
    # A name that there is not is no question of fields; nor is a mistake elsewhere.
    assert "to replace the whole section" not in refusal(path, "encoder.name=whispr")[1]
    assert "to replace the whole section" not in refusal(path, "decoder.name=llama", "training.steps=0")[1]
    path = write_recipe(changed(document, "encoder", {"name": "hubert", "dropout": 0.1}))
    assert load_recipe(path, ["encoder.name=whisper"]).encoder == ENCODERS.parse({"name": "whisper", "dropout": 0.1})


def test_kept_fields_that_fit_the_part_but_not_the_recipe(document: Document, write_recipe: Write) -> None:
    path = write_recipe(changed(document, "projector", {"name": "linear", "stack": 400}))
    _, mistake = refusal(path, "projector.name=swiglu")
    assert mistake.startswith("  projector.swiglu: needs 400 encoder frames, ")
    assert mistake.endswith("keeps the other fields: to replace the whole section write projector=swiglu")


def test_extends_is_validated_as_one(document: Document, write_recipe: Write) -> None:
    write_recipe(document, "base.yaml")
    child = write_recipe("extends: base.yaml\ntraining: {steps: 50}\nencoder: hubert\n")
    recipe = load_recipe(child, ["training.warmup_steps=4"])
    assert (recipe.training.steps, recipe.training.warmup_steps, recipe.encoder.name) == (50, 4, "hubert")
    assert refusal(child, "training.warmup_steps=50")[1].startswith("  training.warmup_steps: 50 leaves nothing")


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


def test_the_run_id_is_short_and_stable(document: Document, write_recipe: Write) -> None:
    path = write_recipe(document)
    assert re.fullmatch(r"[0-9a-f]{8}", load_recipe(path).run_id())
    command = f"from tiny_audio.recipe import load_recipe; print(load_recipe({str(path)!r}).run_id())"
    other = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == load_recipe(path).run_id()


def test_comments_key_order_and_spelling_do_not_change_the_run_id(document: Document, write_recipe: Write) -> None:
    text = yaml.safe_dump(document, sort_keys=True).replace("0.001", "1e-3")
    reordered = write_recipe("# a claim\n" + text + "# the end\n", "other.yaml")
    assert load_recipe(reordered).run_id() == load_recipe(write_recipe(document)).run_id()


def test_a_default_that_is_written_out_does_not_change_the_run_id(document: Document, write_recipe: Write) -> None:
    before = load_recipe(write_recipe(document))
    assert load_recipe(write_recipe(before.model_dump(mode="json"))).run_id() == before.run_id()


@pytest.mark.parametrize("path", NO_IDENTITY)
def test_what_does_not_decide_the_weights_does_not_change_the_run_id(
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
def test_what_decides_the_weights_changes_the_run_id(document: Document, write_recipe: Write, path: str) -> None:
    before = load_recipe(write_recipe(document))
    after = load_recipe(write_recipe(changed(document, path, IDENTITY[path])))
    assert before.run_id() != after.run_id()


def test_the_evaluation_has_an_identity_of_its_own(document: Document, write_recipe: Write) -> None:
    def identity(path: str = "execution.log_every", value: Any = 5) -> str:
        return content_hash(load_recipe(write_recipe(changed(document, path, value))).evaluation_identity())

    assert identity() == identity("execution.num_workers", 2) == identity("training.steps", 21)
    others = [
        identity("generation.num_beams", 2),
        identity("evaluation.normalizer", "lower"),
        identity("data.evaluation.more", SPEECH),
    ]
    assert len({identity(), *others}) == 4


# --- the schema, and what stands in it


def test_the_schema_completes_the_shipped_shape(document: Document) -> None:
    schema = recipe_schema()
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["additionalProperties"] is False
    assert sorted(schema["required"]) == ["data", "decoder", "encoder", "projector", "training"]
    assert schema["properties"].keys() == Recipe.model_fields.keys() | {"extends"}
    json.dumps(schema)
    problems = list(_violations(schema, schema, {"extends": "base.yaml", **document}, "recipe"))
    assert problems == []


@pytest.mark.parametrize(
    ("path", "value"),
    [("training.steps", "1"), ("trainin", {}), ("encoder.name", "x"), ("projector.stack", 0), ("encoder.layers", 3)],
)
def test_the_schema_refuses_what_the_loader_refuses(document: Document, path: str, value: Any) -> None:
    schema = recipe_schema()
    assert list(_violations(schema, schema, changed(document, path, value), "recipe"))


def _violations(root: Document, schema: Document, value: Any, place: str) -> Iterator[str]:
    """The part of JSON Schema that ours uses."""
    if "$ref" in schema:
        yield from _violations(root, root["$defs"][schema["$ref"].rpartition("/")[2]], value, place)
    for group in ("anyOf", "oneOf"):
        branches = [list(_violations(root, branch, value, place)) for branch in schema.get(group, ())]
        if branches and all(branches):
            yield min(branches, key=len)[0]
    types: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
        "integer": int, "number": int | float,
    }  # fmt: skip
    if "type" in schema:
        wanted = schema["type"]
        is_bool_as_number = isinstance(value, bool) and wanted in ("integer", "number")
        if is_bool_as_number or not isinstance(value, types[wanted]):
            yield f"{place}: {value!r} is no {wanted}"
            return
    if "const" in schema and value != schema["const"]:
        yield f"{place}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is none of {schema['enum']}"
    if "exclusiveMinimum" in schema and not value > schema["exclusiveMinimum"]:
        yield f"{place}: {value!r} is too small"
    if schema.get("type") == "object":
        fields = schema.get("properties", {})
        missing = [name for name in schema.get("required", ()) if name not in value]
        unknown = [name for name in value if name not in fields] if schema.get("additionalProperties") is False else []
        yield from (f"{place}: {name} is missing" for name in missing)
        yield from (f"{place}: {name} is unknown" for name in unknown)
        for name, item in value.items():
            further = schema.get("additionalProperties")
            below = fields.get(name) or (further if isinstance(further, dict) else {})
            yield from _violations(root, below, item, f"{place}.{name}")
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        for number, item in enumerate(value):
            yield from _violations(root, schema["items"], item, f"{place}.{number}")


def _configs() -> list[type[BaseModel]]:
    """Every section and every part's config."""
    found: dict[type[BaseModel], None] = {}

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in found:
            found[annotation] = None
            for field in annotation.model_fields.values():
                visit(field.annotation)
        for argument in get_args(annotation):
            visit(argument)

    visit(Recipe)
    for registry in REGISTRIES:
        for entry in registry.entries():
            visit(entry.config)
    return list(found)


FIELDS = [
    (config, name)
    for config in _configs()
    for name, field in config.model_fields.items()
    if not (name == "name" and get_origin(field.annotation) in (Literal, None))
]

SPEAK_FOR_THEMSELVES = {"dropout", "hidden_dim", "kind", "num_channel_masks", "num_time_masks", "pretrained", "rank"}
"""Leaf fields whose name says all, or to which a part only gives another default."""


@pytest.mark.parametrize(("config", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_is_described(config: type[BaseModel], name: str) -> None:
    field = config.model_fields[name]
    is_section = any(isinstance(item, type) and issubclass(item, BaseModel) for item in _flat(field.annotation))
    described = field.description or is_section or name in SPEAK_FOR_THEMSELVES
    assert described, f"{config.__name__}.{name} has no docstring"


def _flat(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _flat(argument)


@pytest.mark.parametrize(("config", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_what_may_be_null_is_null_by_default(config: type[BaseModel], name: str) -> None:
    """So that a recipe which takes back a field of its base with ``null`` says the same as one that sets it to null."""
    field = config.model_fields[name]
    assert type(None) not in get_args(field.annotation) or field.default is None


def test_every_section_and_part_is_described() -> None:
    assert [config.__name__ for config in _configs() if not config.__doc__] == []


def test_there_are_no_dead_options() -> None:
    """Every field is read somewhere: as ``something.field``, outside the body of the class that defines it."""
    readers: dict[str, set[str]] = {}
    for path in Path(tiny_audio.__file__).parent.rglob("*.py"):
        for statement in ast.parse(path.read_text()).body:
            for node in ast.walk(statement):
                if isinstance(node, ast.Attribute):
                    readers.setdefault(node.attr, set()).add(f"{path.stem}.{getattr(statement, 'name', '')}")
    dead = []
    for config, name in FIELDS:
        definers = {f"{base.__module__.rpartition('.')[2]}.{base.__name__}" for base in config.__mro__}
        definers |= {f"__init__.{base.__name__}" for base in config.__mro__}
        methods = _methods_that_read(config, name)
        if not methods and not readers.get(name, set()) - definers:
            dead.append(f"{config.__name__}.{name}")
    assert dead == []


def _methods_that_read(config: type[BaseModel], name: str) -> list[str]:
    """Public methods of the config that are asked for what the field says, such as ``min_frames``."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(config)))
    return [
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_") and function.name != "tiny"
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == name
    ]


def test_the_example_of_the_tests_is_small(tmp_path: Path) -> None:
    assert len(json.dumps(tiny_recipe(tmp_path))) < 2000
