"""Build the model that training starts from."""

from __future__ import annotations

from typing import Any

from tiny_audio.ctc import CtcVocabulary
from tiny_audio.data.clips import ClipSet
from tiny_audio.data.contexts import context_settings
from tiny_audio.data.target_encoder import TargetEncoder
from tiny_audio.data.text import TargetText
from tiny_audio.model.alignment import AlignmentLoss
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.pretrained.quantization import quantize
from tiny_audio.pretrained.trainable import reset_magnitudes
from tiny_audio.recipe import Recipe
from tiny_audio.training.initialize import PretrainedHead, StartingPoint
from tiny_audio.training.random_state import seed_all
from tiny_audio.training.real_checkpoints import fitting_prompt, with_limits
from tiny_audio.training.transcript_vocabulary import TranscriptVocabulary


def assemble(
    recipe: Recipe, clips: ClipSet | None, start: StartingPoint | None, learned: TranscriptVocabulary | None = None
) -> tuple[TinyAudioModel, Any, TargetEncoder]:
    """Build the model that training starts from. Return it with its tokenizer and its target encoder.

    Args:
        clips: the training clips. Not needed if ``learned`` is given.
        start: the model of ``training.init_from``, if the recipe has one.
        learned: the vocabulary of the clips' transcripts. If None, it is learned from the transcripts.

    Raises:
        UserError: a part cannot be built, or ``start`` does not fit the recipe.
    """
    if clips is not None:
        clips.check_any("data.train")
    recipe = with_limits(recipe)
    if learned is None:
        assert clips is not None
        learned = TranscriptVocabulary.learn(recipe, clips, start)
    tokenizer = learned.decoder_tokenizer(recipe, start)
    vocabulary, head = None, None
    if recipe.ctc is not None and recipe.ctc.init == "pretrained":
        head = PretrainedHead.read(recipe.encoder)
        vocabulary = head.vocabulary
    elif recipe.ctc is not None:
        if learned.characters is not None:
            vocabulary = CtcVocabulary(tuple(learned.characters))
        else:
            assert start is not None  # the CTC head is loaded from ``start``, and so are its characters
            vocabulary = start.ctc_vocabulary()
    prompt, limits = fitting_prompt(recipe, tokenizer)
    # Parts may draw their initial weights from any random generator, so seed all generators.
    seed_all(recipe.training.seed)
    model = TinyAudioModel.assemble(
        recipe.encoder,
        recipe.projector,
        recipe.decoder,
        tokenizer=tokenizer,
        prompt=prompt,
        ctc_vocabulary=vocabulary,
        generation=recipe.generation,
        context=context_settings(recipe.prompt.context, TargetText.of(recipe.data.target_text)),
    )
    if head is not None:
        assert model.ctc_head is not None
        head.load_into(model.ctc_head)
    if start is not None:
        start.load_into(model)
    if recipe.decoder.quantization:
        quantize(model.decoder, recipe.decoder.quantization)
    for kind, part in (("encoder", recipe.encoder), ("decoder", recipe.decoder)):
        if part.lora is not None and part.lora.dora and not (start and start.has_adapters(kind)):
            reset_magnitudes(getattr(model, kind))
    if recipe.alignment is not None:
        assert learned.token_ids is not None
        model.alignment = AlignmentLoss(recipe.alignment, learned.token_ids, dict(learned.pieces or ()))
    rows = recipe.decoder.num_embeddings()
    target_encoder = TargetEncoder(
        tokenizer,
        prompt.end_id,
        vocabulary,
        recipe.encoder,
        limits.max_target_ids,
        rows,
        recipe.data.keep_empty,
    )
    return model, tokenizer, target_encoder
