"""Read recipes from YAML, and validate them.

Validation reports all errors in single fields together. If there are none, it reports all errors in combinations of
fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from tiny_audio.analysis.scoring import NormalizerName
from tiny_audio.config import LATER, NO_IDENTITY, Config, LocalPath, identity_of, with_null
from tiny_audio.ctc import AlignmentConfig, CtcConfig
from tiny_audio.data.augmentation import AugmentationConfig
from tiny_audio.data.order import BatchingConfig
from tiny_audio.data.text import TargetTextChoice
from tiny_audio.decoders import DECODERS, DecoderConfig
from tiny_audio.encoders import ENCODERS, EncoderConfig
from tiny_audio.model.decoding import GenerationConfig
from tiny_audio.model.prompt import PromptConfig
from tiny_audio.pretrained.identity import checkpoint_identity, without_path
from tiny_audio.projectors import PROJECTORS, ProjectorConfig
from tiny_audio.recipe._cross_field_rules import cross_field_errors
from tiny_audio.recipe._validation_errors import added_by_null, field_errors, invalid_recipe
from tiny_audio.runtime.yaml_file import apply_overrides, parse_override, read_yaml, set_field
from tiny_audio.sources import SOURCES, SourceConfig

_MAX_DURATION_S = 86_400
"""Largest allowed value of ``min_duration_s`` and ``max_duration_s``: a day."""
_Source = Annotated[SourceConfig, SOURCES]
_SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class DataConfig(Config):
    """Sources of clips, limits on their duration, and how transcripts become targets."""

    train: dict[_SetName, _Source] = Field(min_length=1)
    """Sources to train on, by a name of your choice. Their clips are combined."""
    evaluation: dict[_SetName, _Source] = Field(default={})
    """Sources to score the trained model on. The names appear in the report."""
    min_duration_s: float = Field(default=0.3, gt=0, le=_MAX_DURATION_S)
    """Shorter training clips are left out and listed in ``dropped.jsonl``."""
    max_duration_s: float = Field(default=20.0, gt=0, le=_MAX_DURATION_S)
    """Longer training clips are left out and listed in ``dropped.jsonl``. Audio is never cut. Clips of evaluation sets
    may last up to 120 s. This limit is lower if the encoder accepts less, or if the decoder has too few positions."""
    target_text: TargetTextChoice = "none"
    """How training transcripts are rewritten before they become targets: the name of a normalizer, or a section of
    steps, such as ``{name: lower, remove_markers: true, true_case: true}``. ``whisper_english``, for example, expands
    contractions and removes fillers and remarks in brackets. References of the evaluation are not rewritten."""
    keep_empty: bool = Field(default=False, json_schema_extra=LATER)
    """Train on clips with an empty transcript, in which nobody speaks. Their target is only the end token. A few
    percent of such clips teach a model to write nothing for silence, noise and music. ``keep_empty`` also keeps clips
    whose transcript becomes empty through ``target_text``, and GigaSpeech's segments of silence, music and noise.
    Evaluation sets always keep clips with an empty reference."""
    max_dropped_share: float = Field(default=0.05, ge=0, lt=1, json_schema_extra=NO_IDENTITY)
    """Stop if a larger share of the training clips is unusable. Clips that are too short or too long do not count as
    unusable."""


class InitFrom(Config):
    """Initial weights from another run, instead of the initial weights of the parts."""

    path: LocalPath = Field(json_schema_extra=NO_IDENTITY)
    """A run folder or an exported model. The decoder is taken together with its tokenizer, and the CTC head together
    with its characters."""
    parts: tuple[Literal["encoder", "projector", "decoder", "ctc_head"], ...] | None = Field(default=None, min_length=1)
    """The parts to take. If None, all parts are taken."""

    def takes(self, part: str) -> bool:
        """Whether this part's weights are taken."""
        return self.parts is None or part in self.parts


class KeepBest(Config):
    """How the best evaluation during training is chosen."""

    set: _SetName
    """A set of ``data.evaluation``. It must also be ``execution.evaluate_set``. The weights are chosen by the scores on
    this set, so the final error rates on this set are biased toward low values. The report warns about this bias. Clips
    that ``evaluation.exclude_shared`` leaves out of the final score are also used to choose the weights."""
    metric: str = "wer"
    """The metric, by its name in ``report.json``, such as ``wer``, ``cer`` or ``error_free_rate``."""
    patience: PositiveInt | None = None
    """Stop after this number of evaluations in a row without a better value. The schedule of the learning rate is still
    planned for ``training.steps`` steps. Evaluations in the first ``alignment.alone_steps`` steps do not count. If
    None, all steps are trained."""


class TrainingConfig(Config):
    """Optimization: AdamW and one learning-rate schedule."""

    steps: PositiveInt
    """Optimizer steps."""
    learning_rate: PositiveFloat
    """The peak learning rate, after the warmup."""
    warmup_steps: NonNegativeInt = 0
    """Number of steps in which the learning rate rises linearly from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate decays over the remaining steps."""
    final_learning_rate_ratio: float = Field(default=0.0, ge=0, le=1)
    """The learning rate at the end, as a share of ``learning_rate``. It must be 0 for ``constant``."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay. It applies to tensors of two or more dimensions, and not to norms and biases."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the running averages of the gradient and of its square."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to the square root of the average squared gradient to avoid division by 0."""
    max_gradient_norm: PositiveFloat = 1.0
    """Gradients with a larger norm are scaled down to this norm."""
    accumulation: PositiveInt = 1
    """Number of batches per optimizer step."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the decoder's target probability that is spread over the vocabulary."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the forward pass. Trainable weights are always kept in fp32."""
    tf32: bool = False
    """Whether a GPU multiplies fp32 matrices in TF32."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initial weights, order of clips, augmentation and dropout."""
    max_skipped_steps: NonNegativeInt = Field(default=10, json_schema_extra=NO_IDENTITY)
    """Maximum number of steps in a row that are skipped because their loss or gradient is not finite. If more steps in
    a row would be skipped, the run stops."""
    init_from: InitFrom | None = None
    """Start from another run's weights. If None, training starts from the weights of the parts."""
    keep_best: KeepBest | None = None
    """Take the weights of the best evaluation during training. Evaluations are made every ``execution.evaluate_every``
    steps and after the last step. If several evaluations have the best value, the first of them is taken. With this
    section, the run id also depends on the set, ``generation``, ``evaluation.normalizer``, ``execution.evaluate_every``
    and ``execution.evaluate_utterances``, because these affect the weights. If None, the weights of the last step are
    taken, or the average that ``average_last`` describes."""
    average_last: int | None = Field(default=None, ge=2)
    """Average the trainable tensors of this number of checkpoints. The checkpoints are those of the last step and of
    the latest earlier steps that are multiples of ``execution.checkpoint_every``. These checkpoints are kept. The run
    id then also depends on ``execution.checkpoint_every``. With ``keep_best``, the averaged weights are also scored.
    They are used if they are better than the best checkpoint. If None, no checkpoints are averaged."""


class EvaluationConfig(Config):
    """How hypotheses are scored."""

    normalizer: NormalizerName = "whisper_english"
    """The normalizer of references and hypotheses."""
    num_bootstrap: int = Field(default=1000, ge=100)
    """Number of bootstrap resamples for each confidence interval."""
    group_by: str | None = None
    """Metadata column, such as ``speaker``. For confidence intervals, the bootstrap resamples all clips with the same
    value together. If None, single clips are resampled. Comparisons of systems use the same column. If this field is
    None, comparisons use ``speaker``, provided that every clip has a speaker and there are several speakers."""
    exclude_shared: Annotated[tuple[Literal["clip", "sound", "recording", "speaker"], ...], Field(strict=False)] = ()
    """Leave out evaluation clips that have a listed property in common with a training clip. ``sound`` finds copies of
    training clips that were renamed, converted or cut. Even without this field, the report states the overlap next to
    the error rate."""
    encoder_system_clips: NonNegativeInt = 200
    """Maximum number of clips of each set on which the model is compared with a published recognizer. The clips are
    spread evenly over the set. The published recognizer is the one from which the encoder was taken, such as Whisper
    with its own decoder. The model is also compared with its CTC head, if it has one, on all clips. 0 leaves both
    comparisons out."""
    max_compared_h: NonNegativeFloat = 20.0
    """The sound of evaluation clips is compared with the sound of training clips if there are at most this many hours
    of training audio. The comparison finds copies. It decodes all training audio once. If there are more hours, the
    report states that sound was not compared."""


class ExecutionConfig(Config):
    """How a run is executed. These fields do not affect the weights, so the run id does not depend on them.

    The exceptions are fields that ``training.keep_best`` or ``training.average_last`` uses.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """``auto`` uses a GPU if the machine has one."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the model. With ``ddp``, each process has a copy. With ``fsdp``, each process has a
    shard of every layer, for models that do not fit on one GPU. A single process ignores this field."""
    num_workers: NonNegativeInt = 0
    """Number of processes that load clips, for each training process. With 0, the training process loads its clips."""
    cache_frames_gb: PositiveFloat | None = None
    """Keep the frames of a frozen encoder in a temporary file of at most this many GB, so that later epochs do not
    compute them again. Each process has its own file. An hour of audio takes 0.28 GB for whisper-tiny, and 0.92 GB for
    whisper-large (50 frames per second × channels × 4 bytes). If None, no frames are kept."""
    log_every: PositiveInt = 10
    """Steps between lines of ``metrics.jsonl``."""
    wandb_project: str | None = Field(default=None, min_length=1)
    """Project at Weights & Biases to which the metrics are sent, in addition to ``metrics.jsonl`` and TensorBoard.
    Needs the extra ``wandb``. If the service cannot be reached or ``WANDB_MODE=offline`` is set, the metrics are
    written to the run folder, and ``wandb sync`` can send them later."""
    log_clips: bool = False
    """Write ``clips.jsonl``, with the ids of the planned clips of every step. The file also contains clips that turn
    out to be unusable. These are listed in ``dropped.jsonl``, too."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints. A checkpoint is always written at the end."""
    keep_checkpoints: PositiveInt = 2
    """Number of newest checkpoints to keep, in addition to those that ``training.keep_best`` or
    ``training.average_last`` needs."""
    evaluate_every: PositiveInt | None = None
    """Steps between evaluations during training. If None, the model is evaluated only at the end."""
    evaluate_set: str | None = None
    """The set of ``data.evaluation`` that is scored during training."""
    evaluate_utterances: PositiveInt = 100
    """Maximum number of clips of ``evaluate_set`` that are scored during training. They are spread over the set."""
    evaluate_max_padded_s: PositiveFloat = 120.0
    """Maximum seconds of audio, including padding, in a batch of the evaluation."""
    peak_tflops: PositiveFloat | None = None
    """Peak TFLOP/s of each process's device at the run's precision. The reported utilization is relative to it. If
    None, the value for the GPU in the table of ``tiny-audio plan`` is used. If the table does not contain the device,
    the speed of a matrix product is measured instead."""
    rated_watts: PositiveFloat | None = None
    """Maximum power of each process's device. It is used if the power cannot be measured. If None, the value for the
    GPU in the table of ``tiny-audio plan`` is used, or an assumed value for a CPU."""
    price_per_hour: NonNegativeFloat | None = None
    """US dollars per hour for all devices of the run. If None, the approximate price of the GPU in the table of
    ``tiny-audio plan`` is used, if there is one."""
    grid_gco2_per_kwh: NonNegativeFloat = 445.0
    """Grams of CO2 per kilowatt-hour of electricity. The default is the global average of 2024 (IEA, Electricity
    2025)."""
    compile: bool = False
    """Compile the layers of encoder and decoder with torch.compile for training. The first steps take minutes, and
    later steps are faster. Needs a C++ compiler on a CPU, and Triton on a GPU."""
    fused_cross_entropy: bool = False
    """Compute the decoder's loss with liger-kernel. It does not store all logits at once, which saves memory if the
    vocabulary is large. Needs a GPU, and a decoder whose head is one matrix product."""


class Recipe(Config):
    """The description of a recognizer: its parts, its data, and how to train and score it."""

    encoder: Annotated[EncoderConfig, ENCODERS]
    projector: Annotated[ProjectorConfig, PROJECTORS]
    decoder: Annotated[DecoderConfig, DECODERS]
    ctc: CtcConfig | None = None
    alignment: AlignmentConfig | None = None
    prompt: PromptConfig = PromptConfig()
    data: DataConfig
    augmentation: AugmentationConfig = AugmentationConfig()
    batching: BatchingConfig = BatchingConfig()
    training: TrainingConfig
    generation: GenerationConfig = GenerationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @property
    def alone_steps(self) -> int:
        """Number of steps at the start of training that do not run the decoder: ``alignment.alone_steps``, or 0."""
        return (self.alignment and self.alignment.alone_steps) or 0

    def run_id(self) -> str:
        """Return eight hex digits of a hash of everything that affects the weights.

        Paths, ``data.evaluation`` and the sections ``generation``, ``evaluation`` and ``execution`` are not part of the
        hash, except the fields that ``training.keep_best`` or ``training.average_last`` uses. The content of a local
        checkpoint is part of the hash if its folder exists.

        Raises:
            UserError: a local checkpoint cannot be read.
        """
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        local = {
            kind: checkpoint_identity(part)
            for kind, part in parts.items()
            if part.init == "pretrained" and Path(part.pretrained).is_dir()
        }
        return content_hash(self.training_identity() | ({"checkpoints": local} if local else {}))[:8]

    def training_identity(self) -> dict[str, Any]:
        """Return everything that affects the weights, except the content of local checkpoints."""
        identity = identity_of(self)
        for kind in ("encoder", "decoder"):
            identity[kind] = without_path(identity[kind])
        scoring = {section: identity.pop(section) for section in ("generation", "evaluation", "execution")}
        sets = identity["data"].pop("evaluation")
        used: dict[str, list[str]] = {}  # fields of the sections in ``scoring`` that determine the final weights
        if self.training.keep_best is not None:
            identity["generation"] = scoring["generation"]
            identity["data"]["evaluation"] = {self.training.keep_best.set: sets[self.training.keep_best.set]}
            used = {"evaluation": ["normalizer"], "execution": ["evaluate_every", "evaluate_utterances"]}
        if self.training.average_last is not None:
            used.setdefault("execution", []).append("checkpoint_every")
        identity |= {section: {field: scoring[section][field] for field in fields} for section, fields in used.items()}
        return identity

    def evaluation_identity(self) -> dict[str, Any]:
        """Return everything that affects the scores, except the weights."""
        identity = identity_of(self)
        identity["evaluation"].pop("encoder_system_clips")  # it affects no score of the model
        return {key: identity[key] for key in ("generation", "evaluation")} | {"data": identity["data"]["evaluation"]}

    def with_(self, changes: Mapping[str, Any]) -> Recipe:
        """Return a copy with some fields changed, validated like a file.

        Args:
            changes: the new value for each dotted path, such as ``{"training.seed": 1, "projector": ConvConfig()}``.
                The name of a part replaces its whole section, as in ``{"projector": "conv"}``.

        Raises:
            UserError: the result is not valid. The message lists each error with its location and the allowed values.
        """
        document = _with_changes(self.model_dump(mode="json"), changes)
        return _validated(document, f"the recipe with {', '.join(changes)} changed", list(changes.items()))


def load_recipe(path: Path | str, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe, apply ``extends`` and overrides, and validate it.

    Args:
        path: the YAML file, or the name of a recipe that ships with the package.
        overrides: changes as on the command line. For example, ``training.steps=100`` sets a field, and
            ``projector=conv`` replaces a section by the part of that name.
        changes: changes as in :meth:`Recipe.with_`, applied after the overrides and before validation.

    Raises:
        UserError: the recipe is not valid. The message lists each error with its location and the allowed values.
    """
    changes = changes or {}
    before = read_yaml(Path(path))
    overridden = apply_overrides(before, overrides)
    given = [*map(parse_override, overrides), *changes.items()]
    recipe = _validated(_with_changes(overridden, changes), str(path), given)
    errors = list(added_by_null(recipe, overridden, before))
    if errors:
        raise invalid_recipe(str(path), errors, given)
    return recipe


def _with_changes(document: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for path, value in changes.items():
        plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        document = set_field(document, path, plain)
    return document


def _validated(document: dict[str, Any], name: str, changes: Sequence[tuple[str, Any]]) -> Recipe:
    """Validate plain YAML values. Error messages contain ``name``, and hints about errors that ``changes`` caused."""
    try:
        # Validate JSON, because strict validation of JSON accepts lists as tuples and converts nothing else.
        recipe = Recipe.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise invalid_recipe(name, field_errors(error, Recipe), changes) from None
    errors = [f"{location}: {message}" for location, message in cross_field_errors(recipe)]
    if errors:
        raise invalid_recipe(name, errors, changes)
    return recipe


def recipe_schema() -> dict[str, Any]:
    """Return a JSON schema with the fields of every registered part. Text editors can use it to check recipes."""
    schema: dict[str, Any] = _with_null(Recipe.model_json_schema())
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "The recipe to start from: the path of a file, or the name of a shipped recipe.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _with_null(schema: Any) -> Any:
    """Apply :func:`tiny_audio.config.with_null` to all descriptions in a JSON schema."""
    if isinstance(schema, list):
        return [_with_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: with_null(value) if key == "description" and isinstance(value, str) else _with_null(value)
        for key, value in schema.items()
    }


def content_hash(content: object) -> str:
    """Return the SHA-256 of the content as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
