"""Build the transformers model of a part (an encoder or a decoder): its config, its attention and its weights.

A checkpoint is rejected if a key is missing, unexpected or of another shape, or if a weight is NaN or infinite. Each
part can list keys that may be missing or unexpected.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from tiny_audio.config import UserError, first_line
from tiny_audio.pretrained.checkpoints import read_checkpoint
from tiny_audio.pretrained.config import TransformersPartConfig
from tiny_audio.pretrained.files import check_config, check_weight_files
from tiny_audio.pretrained.own_tensors import read_own_tensors
from tiny_audio.pretrained.packing import VARLEN, register_varlen
from tiny_audio.registry import did_you_mean


def transformers_config(
    config_class: Any,
    part: TransformersPartConfig,
    architecture: dict[str, Any] | None,
    **settings: Any,
) -> Any:
    """Create the transformers config of a part.

    Args:
        config_class: a ``transformers`` config class.
        part: the part's section of the recipe.
        architecture: the result of :func:`architecture_of` for an earlier build. If given, nothing is fetched.
        settings: fields that the part sets itself, such as dropouts.

    Raises:
        UserError: the overrides are not valid for ``config_class``, or the checkpoint cannot be read or belongs to
            another family.
    """
    if architecture is None and part.init == "random":
        config = _config_with_overrides(config_class, part)
    else:
        # Read the raw fields, because `from_pretrained` would accept the fields of another model family, and replace
        # their `model_type`.
        fields = check_config(part) if architecture is None else architecture
        assert fields is not None
        fields = dict(part.own_fields(fields))
        family = fields.get("model_type")
        if family not in (config_class.model_type, *part.other_model_types):
            raise UserError(
                f"{part.pretrained} is a {family!r} checkpoint, not {config_class.model_type!r}; "
                "choose the encoder or decoder of the checkpoint's family, or another checkpoint"
            )
        fields["model_type"] = config_class.model_type
        # When a part is rebuilt, do not read its checkpoint, which may be on another machine.
        if architecture is None:
            config = read_checkpoint(part, config_class.from_dict, fields)
        else:
            config = config_class.from_dict(fields)
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def _config_with_overrides(config_class: Any, part: TransformersPartConfig) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    known = {name for name in vars(config_class()) if not name.startswith("_")}
    for name in part.overrides:
        if name not in known:
            raise UserError(f"overrides: {config_class.__name__} has no field {name!r}; {did_you_mean(name, known)}")
    try:
        return config_class(**part.overrides)
    except (ValueError, TypeError, StrictDataclassError) as error:  # transformers' own checks of the values
        reason = error.__cause__ or error
        raise UserError(f"overrides do not make a valid {config_class.__name__}: {reason}") from error


def architecture_of(config: Any) -> dict[str, Any]:
    """Return a transformers config in JSON form, from which :func:`transformers_config` can recreate it."""
    architecture: dict[str, Any] = config.to_diff_dict()
    # Remove the checkpoint's name. It does not affect the model, but transformers would search for the checkpoint.
    architecture.pop("_name_or_path", None)
    architecture.pop("transformers_version", None)
    # Remove the dtype, because a rebuilt part uses the dtype in which the whole model is loaded.
    architecture.pop("dtype", None)
    return architecture


def attention_implementation(part: TransformersPartConfig) -> str:
    """Return transformers' name of a part's attention implementation.

    Raises:
        UserError: Flash Attention 2 is requested but not installed.
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


def build_model(model_class: Any, config: Any, part: TransformersPartConfig) -> Any:
    """Build a transformers model with newly initialized weights.

    Raises:
        UserError: the overrides do not fit each other. For example, the width is not a multiple of the number of heads.
    """
    try:
        return model_class._from_config(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        if not part.overrides:
            raise
        raise UserError(
            f"overrides do not make a {model_class.__name__} that can be built: {first_line(error)}; "
            "correct the overrides"
        ) from error


def build_or_load(
    model_class: Any,
    config: Any,
    part: TransformersPartConfig,
    *,
    rebuilt: bool,
    ignored: Collection[str] = (),
    attention: str | None = None,
) -> Any:
    """Build a transformers model. Load the checkpoint's weights, unless the part is rebuilt or has random weights.

    Args:
        model_class: a ``transformers`` model class.
        config: the model's config, from :func:`transformers_config`. This function sets its attention implementation.
        part: the part's section of the recipe.
        rebuilt: whether an earlier build is repeated. If so, the caller loads the saved weights afterwards.
        ignored: see :func:`load_pretrained`.
        attention: transformers' name of an attention implementation. If None, the implementation of the part is used.

    Raises:
        UserError: see :func:`attention_implementation`, :func:`build_model` and :func:`load_pretrained`.
    """
    config._attn_implementation = attention or attention_implementation(part)
    if rebuilt or part.init == "random":
        return build_model(model_class, config, part)
    return load_pretrained(model_class, config, part, ignored)


def load_pretrained(model_class: Any, config: Any, part: TransformersPartConfig, ignored: Collection[str]) -> Any:
    """Build a transformers model with the weights of the part's checkpoint.

    Args:
        model_class: a ``transformers`` model class.
        config: the model's config, from :func:`transformers_config`.
        part: the part's section of the recipe.
        ignored: regular expressions for keys that may be missing or unexpected. They must match whole keys.

    Raises:
        UserError: the checkpoint cannot be read, or a key is missing, unexpected or of another shape.
    """
    check_weight_files(part)
    tensors, others = (None, []) if part.prefix is None else read_own_tensors(part)
    model, info = read_checkpoint(
        part,
        model_class.from_pretrained,
        part.pretrained if tensors is None else None,
        state_dict=tensors,
        config=config,
        revision=part.revision,
        dtype="auto" if part.freeze else torch.float32,
        ignore_mismatched_sizes=True,  # tensors of other shapes are rejected below
        output_loading_info=True,
    )
    found = {
        "missing": info["missing_keys"],
        "unexpected": {*info["unexpected_keys"], *others},
        "of another shape": [
            f"{key} {list(saved)} instead of {list(built)}" for key, saved, built in info["mismatched_keys"]
        ],
    }
    problems = []
    for kind, keys in found.items():
        named = sorted(key for key in keys if not any(re.fullmatch(pattern, key) for pattern in ignored))
        if named:
            problems.append(f"{len(named)} {kind}: {', '.join(named[:5])}{', …' if len(named) > 5 else ''}")
    if problems:
        raise UserError(
            f"{part.pretrained} does not contain exactly the weights of {model_class.__name__}; "
            f"{'; '.join(problems)}; choose a checkpoint of this family"
        )
    _check_finite(model, part)
    return model


def _check_finite(model: nn.Module, part: TransformersPartConfig) -> None:
    """Reject weights that are NaN or infinite, because every loss would be NaN or infinite, too.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    damaged = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not tensor.is_meta and not _is_finite(tensor)
    ]
    if damaged:
        raise UserError(
            f"{part.name}: {len(damaged)} tensors of {part.pretrained!r} have NaN or infinite values: "
            f"{', '.join(damaged[:3])}{', …' if len(damaged) > 3 else ''}; download the checkpoint again, or choose "
            "another one"
        )


def _is_finite(tensor: Tensor) -> bool:
    # Unlike `isfinite` on all values, `aminmax` allocates no mask. If a value is NaN, both results are NaN.
    least, most = torch.aminmax(tensor.detach()) if tensor.numel() else (tensor.new_zeros(()),) * 2
    return bool(least.isfinite() and most.isfinite())
