"""Check the checkpoints, the tokenizer and the prompt of a recipe for ``tiny-audio doctor``."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TypeVar

from tiny_audio.commands.doctor.finding import Finding
from tiny_audio.config import UserError
from tiny_audio.decoders import DECODERS, DecoderConfig, DecoderContext, load_tokenizer
from tiny_audio.encoders import ENCODERS, EncoderConfig, EncoderContext
from tiny_audio.model.prompt import AUDIO, build_prompt
from tiny_audio.pretrained.config import TransformersPartConfig
from tiny_audio.pretrained.files import on_disk
from tiny_audio.pretrained.quantization import check_available
from tiny_audio.recipe import Recipe
from tiny_audio.recipe.limits import ContextLimits, limit_errors
from tiny_audio.training.real_checkpoints import fitting_prompt, read_part

_Part = TypeVar("_Part", bound=TransformersPartConfig)


def checkpoints(recipe: Recipe) -> Generator[Finding, None, ContextLimits]:
    """Yield findings about the encoder, the decoder and the prompt, then return the limits on the lengths of clips and
    texts.

    The limits are computed from the recipe and the checkpoints' configs. If the recipe exceeds such a limit, a finding
    says so, and the returned limits are computed from the recipe alone.
    """
    encoder = yield from _part("encoder", recipe.encoder)
    decoder = yield from _part("decoder", recipe.decoder)
    if recipe.decoder.quantization:
        try:
            check_available(recipe.decoder.quantization)
        except UserError as error:
            yield Finding("decoder", str(error), True)
    known = recipe.model_copy(update={"encoder": encoder, "decoder": decoder})
    errors = list(limit_errors(known))
    yield from (Finding(location, message, True) for location, message in errors)
    yield from _prompt(known)
    return ContextLimits(recipe if errors else known)


def _part(kind: str, part: _Part) -> Generator[Finding, None, _Part]:
    if part.init == "random":
        yield Finding(kind, f"{part.name} with random weights; nothing to download")
        return part
    try:
        known = read_part(part)
        local = on_disk(part)
        if local is None:  # do not download the weights, which may be several gigabytes
            text = (
                f"{part.pretrained}: its config can be read; its weights are not checked, because they are not "
                f"downloaded yet ({part.name})"
            )
        else:
            millions = _num_parameters(local) / 1e6
            text = (
                f"{part.pretrained} can be read, and its {millions:,.1f} million parameters are complete ({part.name})"
            )
    except UserError as error:
        yield Finding(kind, str(error), True)
        return part
    yield Finding(kind, text)
    return known


def _num_parameters(part: TransformersPartConfig) -> int:
    """Build the part to check its weights, and return its number of parameters.

    Raises:
        UserError: the weights are damaged or do not fit the config.
    """
    # Freeze the part, because frozen weights keep the data types in which they were saved, and so need less memory.
    # `doctor/recipe.py` checks `attention`, so ignore it here.
    plain = part.model_copy(update={"attention": "auto", "freeze": True})
    if isinstance(plain, EncoderConfig):
        built = list(ENCODERS.build(plain, EncoderContext()).parameters())
    else:
        assert isinstance(plain, DecoderConfig)
        built = list(DECODERS.build(plain, DecoderContext(None)).parameters())
    return sum(tensor.numel() for tensor in built)


def _prompt(recipe: Recipe) -> Iterator[Finding]:
    if recipe.decoder.tokenizer is not None:
        yield Finding("tokenizer", "a small tokenizer will be trained on the transcripts")
        return
    try:
        tokenizer = load_tokenizer(recipe.decoder.pretrained, recipe.decoder.revision)
        prompt = build_prompt(recipe.prompt, tokenizer)
    except UserError as error:
        yield Finding("tokenizer", str(error), True)
        return
    yield Finding("end token", f"{tokenizer.convert_ids_to_tokens(prompt.end_id)!r}")
    rendered = tokenizer.decode(prompt.prefix_ids) + AUDIO + tokenizer.decode(prompt.suffix_ids)
    yield Finding("prompt", repr(rendered))
    try:
        fitting_prompt(recipe, tokenizer)
    except UserError as error:
        yield Finding("prompt", str(error).removeprefix("prompt: "), True)
