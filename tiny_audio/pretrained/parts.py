"""Parts that wrap a transformers model: where weights come from, what trains, and that every tensor has its place."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, JsonValue, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import nn

from tiny_audio.config import NO_IDENTITY, Config, UserError
from tiny_audio.pretrained.packing import VARLEN, register_varlen
from tiny_audio.registry import did_you_mean

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "varlen"]

ALL_ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "varlen")
"""Of families that run on packed rows, see :mod:`tiny_audio.pretrained.packing`."""


class LoraConfig(Config):
    """Low-rank adapters on frozen linear layers (Hu et al. 2021, arXiv 2106.09685)."""

    rank: PositiveInt
    """Width of the bottleneck; an adapter has rank · (inputs + outputs) parameters."""
    alpha: PositiveFloat
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of the dropout on the adapters' inputs."""
    targets: tuple[str, ...] = Field(min_length=1)
    """Names of the linear layers, such as ``q_proj``; every layer whose path ends in one is adapted."""


class TransformersPartConfig(Config):
    """Fields shared by the parts that wrap a transformers model."""

    attentions: ClassVar[tuple[str, ...]] = ("sdpa", "eager", "flash_attention_2")
    """Implementations that the family has; ``auto`` takes the first."""
    linear_layers: ClassVar[tuple[str, ...] | None] = None
    """Names of the family's linear layers, which ``lora.targets`` may name; None is not known before it is built."""

    name: str
    pretrained: str
    """Hub id or local folder of the checkpoint."""
    revision: str | None = None
    """Commit, tag or branch on the hub; None is the newest commit of the main branch."""
    init: Literal["pretrained", "random"] = "pretrained"
    """``random`` builds the architecture of ``overrides`` and reads nothing of ``pretrained``."""
    overrides: dict[str, JsonValue] = Field(default={})
    """Fields of the transformers config, on top of its defaults; for ``init: random`` only."""
    freeze: bool = True
    """Keep the weights as they are. With ``lora``, only the adapters train."""
    lora: LoraConfig | None = None
    """Adapters to train on the frozen weights; None has none."""
    attention: Attention = "auto"
    """``auto`` is SDPA where the family has it. ``varlen`` runs all clips of a batch as one sequence without padding,
    by PyTorch's kernel in half precision on a GPU, and clip by clip elsewhere. Flash Attention 2 does the same, and
    needs a GPU, half precision and its package."""
    gradient_checkpointing: bool = Field(default=False, json_schema_extra=NO_IDENTITY)
    """Compute activations again in the backward pass instead of keeping them: a third more time, far less memory."""
    learning_rate: PositiveFloat | None = None
    """At its highest, for this part; None is ``training.learning_rate``. The schedule is the same."""
    weight_decay: NonNegativeFloat | None = None
    """For this part; None is ``training.weight_decay``."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of every dropout in the part; checkpoints' own settings are not used."""

    @model_validator(mode="after")
    def _check(self) -> TransformersPartConfig:
        if self.overrides and self.init == "pretrained":
            raise ValueError(
                "overrides change the architecture, which pretrained weights fix; "
                "set init: random, or remove the overrides"
            )
        if self.lora and not self.freeze:
            raise ValueError("lora adapts frozen weights; set freeze: true, or remove lora to train all of the part")
        if self.attention not in ("auto", *self.attentions):
            raise ValueError(
                f"attention: {self.name} has no {self.attention}; choose one of auto, {', '.join(self.attentions)}"
            )
        if self.attention == VARLEN and self.dropout:
            raise ValueError("attention: varlen has no dropout; set dropout: 0, or attention: auto")
        for target in self.lora.targets if self.lora and self.linear_layers is not None else ():
            # A target may say where: `layers.1.attention.q_proj`.
            if target.rpartition(".")[2] not in (self.linear_layers or ()):
                raise ValueError(
                    f"lora.targets: {self.name} has no linear layer called {target!r}; "
                    f"{did_you_mean(target, self.linear_layers or ())}"
                )
        return self


def transformers_config(
    config_class: Any,
    part: TransformersPartConfig,
    architecture: dict[str, Any] | None,
    *,
    section: str | None = None,
    **settings: Any,
) -> Any:
    """The transformers config of a part.

    Args:
        config_class: a ``transformers`` config class.
        part: what the recipe says.
        architecture: ``to_dict()`` of an earlier build, which then decides alone; nothing is fetched.
        section: the field where a whole model's config holds this part's; a config of the part alone will do too.
        settings: fields that the part decides itself, such as dropouts.

    Raises:
        UserError: an override that the class has no field for, or a checkpoint that cannot be read.
    """
    if architecture is None and part.init == "random":
        from huggingface_hub.errors import StrictDataclassError

        known = {name for name in vars(config_class()) if not name.startswith("_")}
        for name in part.overrides:
            if name not in known:
                raise UserError(
                    f"overrides: {config_class.__name__} has no field {name!r}; {did_you_mean(name, known)}"
                )
        try:
            config = config_class(**part.overrides)
        except (ValueError, TypeError, StrictDataclassError) as error:  # transformers' own checks of the values
            reason = error.__cause__ or error
            raise UserError(f"overrides do not make a valid {config_class.__name__}: {reason}") from error
    else:
        # As published: `from_pretrained` would read another family's fields into this one, and call them its own.
        fields = published_architecture(part) if architecture is None else architecture
        assert fields is not None
        fields = fields.get(section, fields) if section else fields
        family = fields.get("model_type")
        if family is None:
            raise UserError(
                f"{part.name}: {part.pretrained!r} has no config.json that names a model_type; give a hub id or the "
                "folder of a checkpoint in the format of transformers"
            )
        if family != config_class.model_type:
            raise UserError(
                f"{part.pretrained} is a {family!r} checkpoint, not {config_class.model_type!r}; "
                "choose the part of that family, or another checkpoint"
            )
        # An earlier build needs no checkpoint, whose folder may be on another machine.
        if architecture is None:
            config = _reading(part, config_class.from_dict, fields)
        else:
            config = config_class.from_dict(fields)
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def attention_for(part: TransformersPartConfig) -> str:
    """The attention implementation in transformers' terms.

    Raises:
        UserError: Flash Attention 2 was asked for and is not installed.
    """
    from transformers.utils import is_flash_attn_2_available

    if part.attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(
            "attention: flash_attention_2 needs a CUDA GPU and the flash-attn package; "
            "pip install 'tiny-audio[flash-attn]', or set attention: auto"
        )
    if part.attention == VARLEN:
        register_varlen()
    return part.attentions[0] if part.attention == "auto" else part.attention


def without_weights(model_class: Any, config: Any, part: TransformersPartConfig) -> Any:
    """A transformers model as its class initializes it.

    Raises:
        UserError: overrides that are fine each by itself and not together, such as a width that heads do not divide.
    """
    try:
        return model_class._from_config(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        if not part.overrides:
            raise
        raise UserError(
            f"overrides do not make a {model_class.__name__} that can be built: {str(error).splitlines()[0]}; "
            "correct them"
        ) from error


def load_weights(model_class: Any, config: Any, part: TransformersPartConfig, ignored: Collection[str] = ()) -> Any:
    """A transformers model with the weights that ``part`` names, or random ones.

    Args:
        model_class: a ``transformers`` model class.
        config: its config, from :func:`transformers_config`.
        part: what the recipe says.
        ignored: regular expressions of whole keys that a legitimate checkpoint may have more or less of.

    Raises:
        UserError: the checkpoint cannot be read, or a key is missing, unexpected or of another shape.
    """
    if part.init == "random":
        return without_weights(model_class, config, part)
    model, info = _reading(
        part,
        model_class.from_pretrained,
        part.pretrained,
        config=config,
        revision=part.revision,
        dtype="auto" if part.freeze else torch.float32,
        ignore_mismatched_sizes=True,  # they are refused below, by name
        output_loading_info=True,
    )
    found = {
        "missing": info["missing_keys"],
        "unexpected": info["unexpected_keys"],
        "of another shape": [
            f"{key} {list(there)} instead of {list(here)}" for key, there, here in info["mismatched_keys"]
        ],
    }
    problems = []
    for kind, keys in found.items():
        named = sorted(key for key in keys if not any(re.fullmatch(pattern, key) for pattern in ignored))
        if named:
            problems.append(f"{len(named)} {kind}: {', '.join(named[:5])}{', …' if len(named) > 5 else ''}")
    if problems:
        raise UserError(
            f"{part.pretrained} does not hold exactly the weights of {model_class.__name__}; "
            f"{'; '.join(problems)}; choose a checkpoint of this family"
        )
    return model


def prepare_training(model: nn.Module, part: TransformersPartConfig) -> None:
    """Freeze what does not train, and put the adapters in.

    Adapters are part of the structure, so this runs before any weights of ours are loaded, once per build. Gradient
    checkpointing is switched on here too; transformers heeds it in training mode only.

    Raises:
        UserError: a LoRA target that no linear layer's path ends in.
    """
    if part.freeze:
        model.requires_grad_(False)
    if part.gradient_checkpointing:
        # Reentrant checkpointing would need a gradient at its input, which frozen embeddings do not give.
        cast("Any", model).activation_checkpointing_enable({"use_reentrant": False})
    if part.lora is None:
        return
    linear = [f".{path}" for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in part.lora.targets:
        if not any(path.endswith(f".{target}") for path in linear):
            names = {path.rsplit(".", 1)[-1] for path in linear}
            raise UserError(f"lora.targets: no linear layer is called {target!r}; {did_you_mean(target, names)}")
    import peft

    adapters = peft.LoraConfig(
        r=part.lora.rank,
        lora_alpha=part.lora.alpha,
        lora_dropout=part.lora.dropout,
        target_modules=list(part.lora.targets),
    )
    # In place, without peft's wrapper: the keys of the wrapped model stay what transformers calls them.
    peft.inject_adapter_in_model(adapters, model)


def architecture_of(config: Any) -> dict[str, Any]:
    """The JSON form of a transformers config, from which :func:`transformers_config` rebuilds without a checkpoint."""
    architecture: dict[str, Any] = config.to_diff_dict()
    # Where it came from is provenance, and would make transformers look for it.
    architecture.pop("_name_or_path", None)
    architecture.pop("transformers_version", None)
    # A rebuilt part takes the type that the whole model is loaded in.
    architecture.pop("dtype", None)
    return architecture


def published_architecture(part: TransformersPartConfig) -> dict[str, Any] | None:
    """The architecture of the part's checkpoint, read without its weights; None for a random part, which has none.

    Raises:
        UserError: the checkpoint's config cannot be read.
    """
    if part.init == "random":
        return None
    from transformers import PreTrainedConfig

    architecture: dict[str, Any]
    architecture, _ = _reading(part, PreTrainedConfig.get_config_dict, part.pretrained, revision=part.revision)
    return architecture


def checkpoint_fingerprint(part: TransformersPartConfig) -> str | None:
    """What tells a checkpoint from every other: its commit on the hub, or a hash of a local folder's weights.

    None for a part with random weights.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    if part.init == "random":
        return None
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    folder = Path(part.pretrained)
    if not folder.is_dir():
        file = _reading(part, cached_file, part.pretrained, "config.json", revision=part.revision)
        commit: str | None = extract_commit_hash(file, None)
        return commit
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(path.name.encode())
        with path.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()


def _reading(part: TransformersPartConfig, read: Any, *args: Any, **kwargs: Any) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    if part.pretrained.startswith(("/", ".", "~")) and not Path(part.pretrained).is_dir():
        raise UserError(
            f"{part.name}: there is no folder {part.pretrained!r}; give the folder of a checkpoint, or a hub id such "
            "as owner/name"
        )
    try:
        with quiet():
            return read(*args, **kwargs)
    # What transformers and the hub raise for what is not there, and what a damaged file raises.
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else error
        reason = str(cause).strip().split("\n")[0].rstrip(".")
        at = f" at revision {part.revision}" if part.revision else ""
        raise UserError(
            f"{part.name}: cannot read {part.pretrained!r}{at}: {reason}. "
            "Give a hub id or the folder of a checkpoint, and check the network and `hf auth login` for gated models."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' table of keys that differ: each is accounted for by us, or a message names it."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
