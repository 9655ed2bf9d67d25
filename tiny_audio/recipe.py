"""Recipe: YAML in, validated settings out; every mistake of a file is named at once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from tiny_audio import published
from tiny_audio.augmentation import AugmentationConfig
from tiny_audio.config import Config, UserError
from tiny_audio.ctc import CtcConfig
from tiny_audio.data.order import BatchingConfig
from tiny_audio.decoders import DECODERS, DecoderConfig
from tiny_audio.decoding import GenerationConfig
from tiny_audio.encoders import ENCODERS, EncoderConfig
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.projectors import PROJECTORS, ProjectorConfig, ProjectorContext
from tiny_audio.prompt import PromptConfig
from tiny_audio.registry import Registry, did_you_mean
from tiny_audio.scoring import NormalizerName
from tiny_audio.sources import SOURCES, SourceConfig
from tiny_audio.yaml_file import apply_overrides, read_yaml

_MAX_DURATION_S = 86_400
"""A day; nobody trains on longer clips, and the arithmetic of frames stays within 64 bits."""
_MAX_MISTAKES = 50
_MAX_MESSAGE = 1000
_Source = Annotated[SourceConfig, SOURCES]
_SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class DataConfig(Config):
    """Where clips come from, which are used, and what is learned to write."""

    train: dict[_SetName, _Source] = Field(min_length=1)
    """Sources to train on, by a name of your choice; their clips are joined."""
    evaluation: dict[_SetName, _Source] = Field(default={})
    """Sources to score the trained model on; the names appear in the report."""
    min_duration_s: float = Field(default=0.3, gt=0, le=_MAX_DURATION_S)
    """Shorter clips are not trained on, and listed."""
    max_duration_s: float = Field(default=20.0, gt=0, le=_MAX_DURATION_S)
    """Longer clips are not trained on, and listed; audio is never cut under a whole transcript. Evaluation
    takes whatever the encoder can."""
    target_text: NormalizerName = "none"
    """How training transcripts are rewritten before they become targets, such as ``whisper_english``, which writes
    contractions out and leaves fillers and remarks in brackets away. References of the evaluation stay as they are."""
    max_dropped_share: float = Field(default=0.05, ge=0, lt=1, json_schema_extra={"identity": False})
    """Stop where a larger share of the training clips turns out unusable; clips outside the bounds do not count."""


class InitFrom(Config):
    """Weights to start from, instead of the parts' own."""

    path: str = Field(json_schema_extra={"identity": False})
    """A run folder, or an exported model's. With the decoder comes its tokenizer, with the CTC head its characters."""
    parts: tuple[Literal["encoder", "projector", "decoder", "ctc_head"], ...] | None = Field(default=None, min_length=1)
    """Which parts to take; None takes all."""


class TrainingConfig(Config):
    """Optimisation: AdamW and one learning-rate schedule."""

    steps: PositiveInt
    """Optimiser steps."""
    learning_rate: PositiveFloat
    """At its highest, after the warmup."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear rise from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """The way down from there, over the remaining steps."""
    final_learning_rate_ratio: float = Field(default=0.0, ge=0, le=1)
    """Where the schedule ends, as a share of ``learning_rate``; ``constant`` does not read it and wants 0."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled; on tensors of two or more dimensions, never on norms and biases."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay per step of the averages of the gradient and of its square."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to the root of the second average, which it keeps from being 0."""
    max_gradient_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    accumulation: PositiveInt = 1
    """Batches of one optimiser step."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the decoder's target probability spread over the vocabulary."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward pass; what trains is always kept in fp32."""
    tf32: bool = False
    """Let a GPU multiply fp32 matrices in TF32."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides initial weights, the order of clips, augmentation and dropout."""
    max_skipped_steps: NonNegativeInt = Field(default=10, json_schema_extra={"identity": False})
    """A step with a loss or gradient that is not finite is skipped; more than this in a row stop the run."""
    init_from: InitFrom | None = None
    """Start from another run's weights; None starts from the parts' own."""


class EvaluationConfig(Config):
    """How hypotheses are scored."""

    normalizer: NormalizerName = "whisper_english"
    """Applied to references and hypotheses alike before words are counted."""
    num_bootstrap: int = Field(default=1000, ge=100)
    """Resamples behind each interval."""
    group_by: str | None = None
    """Metadata column, such as ``speaker``, whose groups are resampled whole; None resamples utterances."""


class ExecutionConfig(Config):
    """How a run is carried out. None of it decides the weights, so none of it is part of the run's identity."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` is a GPU where there is one."""
    num_workers: NonNegativeInt = 0
    """Processes that load clips; 0 loads in the main one."""
    log_every: PositiveInt = 10
    """Steps between lines of ``metrics.jsonl``."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest to keep."""
    evaluate_every: PositiveInt | None = None
    """Steps between evaluations while training; None evaluates at the end only."""
    evaluate_set: str | None = None
    """Which of ``data.evaluation`` to use while training."""
    evaluate_utterances: PositiveInt = 100
    """How many of its clips at most, spread over it."""
    evaluate_max_padded_s: PositiveFloat = 120.0
    """Seconds of audio, padding included, that are decoded together."""


class Recipe(Config):
    """Everything that makes a recogniser: the parts, the data, and how to train and score them."""

    encoder: Annotated[EncoderConfig, ENCODERS]
    projector: Annotated[ProjectorConfig, PROJECTORS]
    decoder: Annotated[DecoderConfig, DECODERS]
    ctc: CtcConfig | None = None
    prompt: PromptConfig = PromptConfig()
    data: DataConfig
    augmentation: AugmentationConfig = AugmentationConfig()
    batching: BatchingConfig = BatchingConfig()
    training: TrainingConfig
    generation: GenerationConfig = GenerationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    execution: ExecutionConfig = ExecutionConfig()

    def run_id(self) -> str:
        """Eight hex digits over all that decides the weights; paths and execution are no part of it."""
        return content_hash(self.training_identity())[:8]

    def training_identity(self) -> dict[str, Any]:
        """What decides the weights."""
        identity = _identity(self)
        for section in ("generation", "evaluation", "execution"):
            identity.pop(section)
        identity["data"].pop("evaluation")
        return identity

    def evaluation_identity(self) -> dict[str, Any]:
        """What decides the scores, given the weights."""
        identity = _identity(self)
        return {key: identity[key] for key in ("generation", "evaluation")} | {"data": identity["data"]["evaluation"]}


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, extend, override, validate.

    Args:
        path: the YAML file.
        overrides: ``training.steps=100`` sets a field, ``projector=conv`` replaces a section by that part.

    Raises:
        UserError: names every mistake with its place and what is allowed there.
    """
    data = apply_overrides(read_yaml(Path(path)), overrides)
    try:
        # Through JSON: there, strict validation takes lists for tuples, and nothing else for anything.
        recipe = Recipe.model_validate_json(json.dumps(data))
    except ValidationError as error:
        problems = [_explain(entry) for entry in error.errors(include_url=False)]
        raise _mistakes(path, [problem + _replacing(problem, overrides) for problem in problems]) from None
    problems = [f"{place}: {message}" for place, message in _contradictions(recipe)]
    if problems:
        raise _mistakes(path, [problem + _replacing(problem, overrides) for problem in problems])
    return recipe


def recipe_schema() -> dict[str, Any]:
    """The JSON schema, with every registered part's fields, for editors."""
    schema = Recipe.model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "Path of a recipe that this one starts from."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def content_hash(content: object) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _mistakes(path: Path | str, problems: list[str]) -> UserError:
    count = f"{len(problems)} mistake{'s' if len(problems) > 1 else ''}"
    lines = [line if len(line) <= _MAX_MESSAGE else f"{line[:_MAX_MESSAGE]} ..." for line in problems[:_MAX_MISTAKES]]
    if len(problems) > len(lines):
        lines.append(f"... and {len(problems) - len(lines)} more")
    return UserError("\n".join([f"{path} is not a valid recipe ({count}):", *(f"  {line}" for line in lines)]))


def _contradictions(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Rules that cross sections: every pair that would fail later, or silently disable work."""
    data, training, execution = recipe.data, recipe.training, recipe.execution
    if data.min_duration_s >= data.max_duration_s:
        yield (
            "data.min_duration_s",
            f"{data.min_duration_s} leaves no clip below max_duration_s {data.max_duration_s}; lower it",
        )
    speeds = recipe.augmentation.speed or (1.0,)
    slowest, fastest = min(*speeds, 1.0), max(*speeds, 1.0)
    shortest, longest = data.min_duration_s / fastest, data.max_duration_s / slowest
    try:
        frames = recipe.encoder.num_frames(int(shortest * SAMPLE_RATE))
        limit = recipe.encoder.max_duration_s()
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        if not recipe.encoder.overrides:
            raise
        # Overrides are free-form: only the architecture knows what they mean, and it is not loaded here.
        yield (
            f"encoder.{recipe.encoder.name}.overrides",
            f"the frames of a clip cannot be counted with them: {str(error).splitlines()[0]}; correct or remove them",
        )
        return
    if frames < recipe.projector.min_frames():
        hurried = f", sped up by augmentation.speed to {shortest:.2f} s," if fastest > 1 else ""
        yield (
            f"projector.{recipe.projector.name}",
            f"needs {recipe.projector.min_frames()} encoder frames, and a clip of data.min_duration_s "
            f"{data.min_duration_s} s{hurried} has {frames}; shrink the projector's window or raise "
            "data.min_duration_s",
        )
    if limit is not None and longest > limit:
        slowed = f", slowed down by augmentation.speed to {longest:.1f} s," if slowest < 1 else ""
        yield (
            "data.max_duration_s",
            f"{data.max_duration_s} s{slowed} is more than the {limit:g} s that encoder {recipe.encoder.name!r} "
            f"takes; set at most {limit * slowest:g}",
        )
    if recipe.batching.max_padded_s is not None and recipe.batching.max_padded_s < data.max_duration_s:
        yield (
            "batching.max_padded_s",
            f"{recipe.batching.max_padded_s} s cannot hold one clip of data.max_duration_s {data.max_duration_s} s; "
            "raise it, or lower that",
        )
    for name in sorted(data.train.keys() & data.evaluation.keys()):
        yield (
            f"data.evaluation.{name}",
            "is a training set's name too; give it another, since names tell clips apart",
        )
    for kind, part in (("encoder", recipe.encoder), ("decoder", recipe.decoder)):
        if part.attention == "flash_attention_2" and (training.precision != "bf16" or execution.device == "cpu"):
            yield (
                f"{kind}.{part.name}.attention",
                "flash_attention_2 runs in half precision on a GPU only; set training.precision: bf16, or sdpa here",
            )
    if training.warmup_steps >= training.steps:
        yield "training.warmup_steps", f"{training.warmup_steps} leaves nothing of {training.steps} steps; lower it"
    if training.schedule == "constant" and training.final_learning_rate_ratio:
        yield "training.final_learning_rate_ratio", "has no effect under schedule: constant; set it to 0"
    for beta in training.adam_betas:
        if not 0 <= beta < 1:
            yield "training.adam_betas", f"each must be at least 0 and below 1, not {beta}"
    if execution.evaluate_every is not None and execution.evaluate_every > training.steps:
        yield (
            "execution.evaluate_every",
            f"{execution.evaluate_every} is past the last of {training.steps} steps; lower it, or leave it out",
        )
    if (execution.evaluate_every is None) != (execution.evaluate_set is None):
        yield "execution.evaluate_set", "and evaluate_every go together; give both or neither"
    elif execution.evaluate_set is not None and execution.evaluate_set not in data.evaluation:
        yield (
            "execution.evaluate_set",
            f"there is no set {execution.evaluate_set!r} in data.evaluation; "
            f"{did_you_mean(execution.evaluate_set, data.evaluation)}",
        )
    for kind, part in (("encoder", recipe.encoder), ("decoder", recipe.decoder)):
        for field in ("learning_rate", "weight_decay"):
            # The weights of a weighted sum of layers train in a frozen encoder too, and have one dimension.
            weighted = field == "learning_rate" and getattr(part, "layer", None) == "weighted"
            if getattr(part, field) is not None and part.freeze and part.lora is None and not weighted:
                yield f"{kind}.{part.name}.{field}", "has no effect where nothing trains; remove it, or add lora"
        if part.gradient_checkpointing and not _has_gradients(recipe, kind):
            yield (
                f"{kind}.{part.name}.gradient_checkpointing",
                "saves nothing where no gradient passes; remove it, or train the part",
            )
    if recipe.projector.needs_ctc and recipe.ctc is None:
        yield f"projector.{recipe.projector.name}", "reads the CTC head's labels; add a `ctc` section"
    if recipe.ctc is not None and recipe.ctc.init == "pretrained":
        yield from _head_contradictions(recipe)
    if frames >= recipe.projector.min_frames():
        yield from _length_contradictions(recipe, longest)
    if recipe.generation.ctc_weight and recipe.ctc is None:
        yield "generation.ctc_weight", "needs a CTC head; add a `ctc` section, or set it to 0"
    taken = training.init_from.parts or ("encoder", "decoder") if training.init_from else ()
    for kind, part in (("encoder", recipe.encoder), ("decoder", recipe.decoder)):
        if part.init == "random" and part.freeze and kind not in taken:
            yield (
                f"{kind}.{part.name}.freeze",
                "random weights that do not train stay random; set freeze: false, init: pretrained, or take the "
                f"{kind} from another run with training.init_from",
            )
    if training.init_from and "ctc_head" in (training.init_from.parts or ()) and recipe.ctc is None:
        yield "training.init_from.parts", "ctc_head has no place to go; add a `ctc` section, or leave it out"
    if training.tf32 and execution.device == "cpu":
        yield "training.tf32", "has no effect on execution.device: cpu; set it to false"


def _has_gradients(recipe: Recipe, kind: str) -> bool:
    """Whether a backward pass goes through a part: it trains, or something below it does."""
    if kind == "decoder":
        return True  # the projector, below it, always trains
    return not recipe.encoder.freeze or recipe.encoder.lora is not None


def _head_contradictions(recipe: Recipe) -> Iterator[tuple[str, str]]:
    encoder = recipe.encoder
    if encoder.init != "pretrained":
        yield "ctc.init", f"the encoder {encoder.name!r} has random weights, so no head comes with it; set init: random"
    elif encoder.ctc_head is None:
        yield "ctc.init", f"checkpoints of the encoder {encoder.name!r} carry no head that spells; set init: random"
    if encoder.layer != "last":
        yield (
            "ctc.init",
            f"the head was trained on the last layer, and encoder.layer is {encoder.layer}; set it to last",
        )
    if recipe.training.init_from and "ctc_head" in (recipe.training.init_from.parts or ("ctc_head",)):
        yield "ctc.init", "the head comes from training.init_from already; set init: random"


def _max_positions(recipe: Recipe) -> int | None:
    """Positions that the decoder can tell apart, where that is known without fetching anything."""
    decoder = recipe.decoder
    fields = decoder.overrides if decoder.init == "random" else published.architecture(decoder) or {}
    positions = fields.get("max_position_embeddings")
    return positions if isinstance(positions, int) else None


def _length_contradictions(recipe: Recipe, longest_s: float) -> Iterator[tuple[str, str]]:
    """Whether the decoder's context holds the longest clip and its transcript.

    The prompt's few words are left out: only the tokenizer can count them.
    """
    frames = recipe.encoder.num_frames(int(longest_s * SAMPLE_RATE))
    rate = recipe.encoder.num_frames(60 * SAMPLE_RATE) / 60
    width = 64  # of neighbours that are not known yet; the number of embeddings does not depend on it
    try:
        with torch.device("meta"):
            projector = PROJECTORS.build(recipe.projector, ProjectorContext(width, width, rate, 1.0))
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        yield f"projector.{recipe.projector.name}", f"cannot be built: {str(error).splitlines()[0]}; shrink its sizes"
        return
    limit = _max_positions(recipe)
    needed = int(projector.max_embeddings(torch.tensor([frames]))) + recipe.generation.max_new_tokens
    if limit is not None and needed > limit:
        yield (
            f"decoder.{recipe.decoder.name}",
            f"reads at most {limit} positions, and a clip of {longest_s:g} s can need {needed}: audio embeddings and "
            "generation.max_new_tokens; lower data.max_duration_s or max_new_tokens, or let the projector merge more "
            "frames",
        )


def _explain(entry: Any) -> str:
    """One pydantic error as one line: where, what was given, what is allowed."""
    # In brackets are pydantic's word for a key, and the registry's for a part that is given by its name alone.
    location = [step for step in entry["loc"] if step not in ("[key]", "[name]")]
    place = ".".join(_shown_step(step) for step in location) or "(the file)"
    hint = ""
    match entry["type"]:
        case "extra_forbidden":
            *parents, given = location
            fields = [*_fields_at(parents), *(["extends"] if not parents else [])]
            return f"{place}: unknown field; {did_you_mean(given, fields)}"
        case "missing":
            return f"{place}: is missing, and has no default"
        case "part_name" | "value_error":
            return f"{place}: {entry['msg'].removeprefix('Value error, ')}"
        case "too_short" | "too_long":
            return f"{place}: should {entry['msg'].partition(' should ')[2].replace(' after validation', '')}"
        case "string_type" if entry["input"] is not None:
            hint = "; write it in quotes"
    message = entry["msg"].removeprefix("Input ").removeprefix("String ")
    for theirs, yaml in (
        ("a valid dictionary or object to extract fields from", "a mapping"),
        ("an object", "a mapping"),
        ("a valid array", "a list"),
    ):
        message = message.replace(theirs, yaml)
    given = json.dumps(entry["input"], default=str)
    return f"{place}: {message}, not {given if len(given) < 80 else given[:77] + '...'}{hint}"


def _replacing(problem: str, overrides: Sequence[str]) -> str:
    """``projector.name=conv`` keeps the fields of the part that was there; where one does not fit, how to drop them."""
    for override in overrides:
        path, _, part = override.partition("=")
        section, _, field = path.rpartition(".")
        if field == "name" and problem.startswith(f"{section}."):  # `section: ` would be the name itself
            return f"; {override} keeps the other fields: to replace the whole section write {section}={part}"
    return ""


def _shown_step(step: int | str) -> str:
    return str(step) if isinstance(step, int) or re.fullmatch(r"[\w-]{1,80}", step) else repr(step)


def _fields_at(location: Sequence[int | str]) -> list[str]:
    """Names of the fields at a place of the recipe, following registries by the part's name."""
    annotations: list[Any] = [Recipe]
    metadata: Sequence[Any] = ()
    for step in location:
        registry = next((item for item in metadata if isinstance(item, Registry)), None)
        if registry is not None:
            annotations, metadata = [registry.entry(step).config], ()
            continue
        models = [item for item in _flatten(annotations) if isinstance(item, type) and issubclass(item, BaseModel)]
        field = next((model.model_fields[str(step)] for model in models if str(step) in model.model_fields), None)
        if field is not None:
            annotations, metadata = [field.annotation], field.metadata
        else:  # the value of a dict, or an item of a tuple
            inner = [arg for item in annotations for arg in getattr(item, "__args__", ())]
            annotations, metadata = inner, [m for arg in inner for m in getattr(arg, "__metadata__", ())]
    models = [item for item in _flatten(annotations) if isinstance(item, type) and issubclass(item, BaseModel)]
    return [name for model in models for name in model.model_fields]


def _flatten(annotations: Sequence[Any]) -> Iterator[Any]:
    for annotation in annotations:
        yield annotation
        yield from _flatten(getattr(annotation, "__args__", ()))


def _identity(config: BaseModel) -> dict[str, Any]:
    """The dump without the fields that are marked as no part of the identity, such as paths."""
    identity: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("identity") is False:
            continue
        identity[name] = _identity_of(getattr(config, name))
    return identity


def _identity_of(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _identity(value)
    if isinstance(value, dict):
        return {key: _identity_of(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_identity_of(item) for item in value]
    return value
