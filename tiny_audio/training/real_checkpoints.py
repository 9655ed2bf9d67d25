"""Check that a recipe fits its pretrained checkpoints, before any data or weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from tiny_audio.config import UserError
from tiny_audio.decoders import DECODERS, DecoderConfig, DecoderContext, load_tokenizer
from tiny_audio.encoders import ENCODERS, EncoderConfig, EncoderContext
from tiny_audio.export.load import check_exported
from tiny_audio.model.prompt import Prompt, build_prompt
from tiny_audio.pretrained.checkpoints import read_checkpoint, read_json
from tiny_audio.pretrained.config import TransformersPartConfig
from tiny_audio.pretrained.files import check_config, check_weight_files
from tiny_audio.recipe import Recipe
from tiny_audio.recipe.limits import ContextLimits, limit_errors

_Part = TypeVar("_Part", bound=TransformersPartConfig)


def check_recipe(recipe: Recipe) -> ContextLimits:
    """Check a recipe against its checkpoints, and return the limits of the decoder's context.

    This reads only configs, tokenizers and the headers of local weight files.

    Raises:
        UserError: a checkpoint cannot be used, or does not fit the recipe.
    """
    recipe = with_limits(recipe)
    taken = recipe.training.init_from
    # The length of the prompt is not known yet if the tokenizer is learned from transcripts, or comes with a decoder
    # from ``init_from``.
    if recipe.decoder.tokenizer is not None or (taken and taken.takes("decoder")):
        return ContextLimits(recipe)
    tokenizer = load_tokenizer(recipe.decoder.pretrained, recipe.decoder.revision)
    return fitting_prompt(recipe, tokenizer)[1]


def exported_limits(recipe: Recipe, folder: Path) -> ContextLimits:
    """Return the limits of a trained model's context, from the ``config.json`` of its export.

    Raises:
        UserError: the export is damaged.
    """
    saved = check_exported(folder)
    architectures = ((kind, saved.get(f"{kind}_architecture") or {}) for kind in ("encoder", "decoder"))
    parts = {kind: getattr(recipe, kind).with_architecture(fields) for kind, fields in architectures}
    num_prompt_ids = len(saved.get("prompt_prefix_ids", ())) + len(saved.get("prompt_suffix_ids", ()))
    return ContextLimits(recipe.model_copy(update=parts), num_prompt_ids)


def with_limits(recipe: Recipe) -> Recipe:
    """Return the recipe, completed with the configs of its checkpoints.

    These configs determine how many frames a clip has, how long a clip may be, and how many positions the decoder has.

    Raises:
        UserError: a checkpoint cannot be used (see :func:`read_part`), or the recipe does not fit its checkpoints.
    """
    if recipe.encoder.init == "random" and recipe.decoder.init == "random":
        return recipe
    parts = {"encoder": read_part(recipe.encoder), "decoder": read_part(recipe.decoder)}
    recipe = recipe.model_copy(update=parts)
    errors = [f"{location}: {message}" for location, message in limit_errors(recipe)]
    if errors:
        raise UserError("\n".join(["the recipe does not fit its checkpoints:", *(f"  {error}" for error in errors)]))
    return recipe


def read_part(part: _Part) -> _Part:
    """Return the part, completed with the config of its checkpoint.

    Raises:
        UserError: the checkpoint is damaged, or its family or front end differs from the part's.
    """
    fields = check_config(part)
    if fields is None:
        return part
    part = part.with_architecture(read_checkpoint(part, _full_architecture, part, fields))
    check_weight_files(part)
    if isinstance(part, EncoderConfig):
        check_front_end(part)
    return part


def _full_architecture(part: TransformersPartConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """Build the part without weights, and return its config. Wrong fields are rejected. Missing fields get defaults."""
    plain = part.model_copy(update={"attention": "auto"})  # the recipe's attention may need a GPU
    with torch.device("meta"):
        if isinstance(plain, EncoderConfig):
            return ENCODERS.build(plain, EncoderContext(fields)).architecture()
        assert isinstance(plain, DecoderConfig)
        return DECODERS.build(plain, DecoderContext(None, fields)).architecture()


def check_front_end(encoder: EncoderConfig) -> None:
    """Check that the encoder's front end has the settings of the checkpoint's feature extractor.

    If the checkpoint does not state these settings, nothing is checked.

    Raises:
        UserError: a setting differs.
    """
    found = read_json(encoder, "preprocessor_config.json")
    if found is None:
        # A checkpoint that was saved with its whole processor has processor_config.json instead.
        processor = read_json(encoder, "processor_config.json") or {}
        found = processor.get("feature_extractor")
    for name, used in encoder.front_end().items():
        said = found.get(name, used) if isinstance(found, dict) else used
        if said != used:
            advice = (
                f"set encoder.normalize: {str(said).lower()}"
                if name == "do_normalize"
                else f"choose a checkpoint with {name}: {used}"
            )
            raise UserError(
                f"{encoder.name}: the feature extractor of {encoder.pretrained!r} has {name}: {said}, but the recipe's "
                f"encoder uses {used}; {advice}"
            )


def fitting_prompt(recipe: Recipe, tokenizer: Any) -> tuple[Prompt, ContextLimits]:
    """Build the recipe's prompt, and compute the limits of the decoder's context with this prompt.

    Args:
        recipe: a result of :func:`with_limits`.

    Raises:
        UserError: the prompt cannot be built, see :func:`tiny_audio.model.prompt.build_prompt`; one of its tokens has
            no embedding; or the context is too small.
    """
    prompt = build_prompt(recipe.prompt, tokenizer)
    ids = (*prompt.prefix_ids, *prompt.suffix_ids, prompt.end_id)
    rows = recipe.decoder.num_embeddings()
    lost = sorted({index for index in ids if rows is not None and index >= rows})
    if lost:
        names = ", ".join(repr(tokenizer.convert_ids_to_tokens(index)) for index in lost)
        raise UserError(
            f"prompt: the tokenizer of {recipe.decoder.pretrained!r} has {len(tokenizer):,} tokens, but the decoder "
            f"has only {rows:,} embeddings, and none for {names}, which the prompt contains; resize the embeddings and "
            "train these tokens, or use a chat template without them"
        )
    limits = ContextLimits(recipe, len(ids) - 1)
    if limits.max_positions is not None and limits.needed > limits.max_positions:
        raise UserError(
            f"decoder.{recipe.decoder.name}: {recipe.decoder.pretrained!r} has {limits.max_positions:,} positions, but "
            f"a clip of {limits.longest_training_s:g} s can need {limits.needed:,}: {limits.prompt} for the "
            f"prompt, {limits.audio} for audio embeddings and {recipe.generation.max_new_tokens} for "
            "generation.max_new_tokens; lower data.max_duration_s or max_new_tokens, shorten the prompt, or merge more "
            "frames in the projector"
        )
    return prompt, limits
