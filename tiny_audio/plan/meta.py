"""Build a model with a recipe's shapes, without reading transcripts. On the meta device, its tensors have no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from tiny_audio.decoders import SPECIAL_TOKENS
from tiny_audio.pretrained.checkpoints import read_architecture
from tiny_audio.pretrained.config import TransformersPartConfig
from tiny_audio.pretrained.packing import VARLEN
from tiny_audio.pretrained.quantization import quantize
from tiny_audio.recipe import Recipe

if TYPE_CHECKING:
    from tiny_audio.model.model import TinyAudioModel

LETTERS = 28
"""Assumed number of different characters in the transcripts: a to z, space and apostrophe."""

_PartConfig = TypeVar("_PartConfig", bound=TransformersPartConfig)


@dataclass(frozen=True)
class MetaModel:
    """A model without storage."""

    model: TinyAudioModel
    approximate: bool
    """Whether sizes are estimates, because they depend on a vocabulary that is learned from the transcripts."""


@dataclass(frozen=True)
class _StandInTokenizer:
    """A placeholder for a tokenizer that is not trained yet."""

    size: int
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int = 2

    def __len__(self) -> int:
        return self.size


def build_on_meta(recipe: Recipe, prompt_tokens: int = 0) -> MetaModel:
    """Build the model that ``recipe`` would train, on the meta device.

    Raises:
        UserError: a part cannot be built, or its checkpoint cannot be read and is not in the table of well-known
            checkpoints.
    """
    approximate = recipe.ctc is not None or recipe.decoder.tokenizer is not None
    parts = {"encoder": _portable(recipe.encoder), "decoder": _portable(recipe.decoder)}
    return MetaModel(build_stand_in(recipe.model_copy(update=parts), torch.device("meta"), prompt_tokens), approximate)


def build_stand_in(
    recipe: Recipe, device: torch.device, prompt_tokens: int = 0, *, random_weights: bool = True
) -> TinyAudioModel:
    """Build a model with the recipe's shapes. A vocabulary that is learned from the transcripts gets a typical size.

    Args:
        prompt_tokens: number of tokens of the prompt.
        random_weights: if True, only the architectures of parts are read from their checkpoints. If False, the weights
            are read, too.

    Raises:
        UserError: a part cannot be built, or its checkpoint cannot be read.
    """
    from tiny_audio.model.alignment import AlignmentLoss
    from tiny_audio.model.config import TinyAudioConfig
    from tiny_audio.model.model import TinyAudioModel
    from tiny_audio.model.parts import build_parts

    def architecture(part: TransformersPartConfig) -> dict[str, Any] | None:
        return read_architecture(part) if random_weights else None

    tokenizer = _stand_in_tokenizer(recipe)
    with torch.device(device):
        parts = build_parts(
            recipe.encoder,
            recipe.projector,
            recipe.decoder,
            tokenizer,
            encoder_architecture=architecture(recipe.encoder),
            decoder_architecture=architecture(recipe.decoder),
            embedding_rms=1.0,
        )
        config = TinyAudioConfig(
            encoder={"name": recipe.encoder.name},
            projector={"name": recipe.projector.name},
            decoder={"name": recipe.decoder.name},
            ctc_characters=[chr(97 + index) for index in range(LETTERS)] if recipe.ctc else None,
            prompt_suffix_ids=[0] * prompt_tokens,
        )
        model = TinyAudioModel(config, parts)
        if recipe.decoder.quantization:
            quantize(model.decoder, recipe.decoder.quantization)
    if recipe.alignment is not None:
        # The labels come from the training transcripts, which are not read here. Assume the largest number of labels.
        vocab_size = recipe.decoder.num_embeddings() if tokenizer is None else len(tokenizer)
        if vocab_size is not None:
            model.alignment = AlignmentLoss(
                recipe.alignment, range(min(vocab_size, recipe.alignment.max_labels or vocab_size))
            )
    return model


def _portable(part: _PartConfig) -> _PartConfig:
    """Return a part's config with an implementation of attention that needs no extra package."""
    if part.attention != "flash_attention_2":
        return part
    return part.model_copy(update={"attention": VARLEN if VARLEN in part.attentions else "auto"})


def _stand_in_tokenizer(recipe: Recipe) -> Any:
    trained = recipe.decoder.tokenizer
    if trained is not None:
        return _StandInTokenizer(trained.vocab_size if trained.kind == "bpe" else LETTERS + len(SPECIAL_TOKENS))
    if recipe.decoder.init == "pretrained":
        return None  # the size of the vocabulary is in the architecture
    from tiny_audio.decoders import load_tokenizer

    return load_tokenizer(recipe.decoder.pretrained, recipe.decoder.revision)
