"""Learn the tokenizer, the CTC characters and the alignment labels from the transcripts, before training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from tiny_audio.ctc import CtcVocabulary
from tiny_audio.data.clips import ClipSet
from tiny_audio.decoders import build_tokenizer, load_tokenizer, restore_tokenizer
from tiny_audio.model.context import CONTEXT_CHARACTERS
from tiny_audio.recipe import Recipe
from tiny_audio.training.alignment_labels import choose_labels
from tiny_audio.training.initialize import StartingPoint


@dataclass(frozen=True)
class TranscriptVocabulary:
    """The vocabulary of a run. It is learned once and stored, because reading millions of transcripts is slow."""

    tokenizer: str | None
    """The tokenizer as JSON of the tokenizers library. None if the tokenizer comes with the decoder's weights."""
    characters: str | None
    """Characters of a randomly initialized CTC head, in the order of its labels. None if there is no such head."""
    token_ids: list[int] | None = None
    """Labels of the alignment loss, ascending. None if the recipe has no alignment loss."""
    pieces: list[tuple[int, list[int]]] | None = None
    """Tokens of the transcripts that are not labels, each with the labels that together spell it (see
    ``AlignmentConfig.max_labels``). None if there are no such tokens."""

    @classmethod
    def learn(cls, recipe: Recipe, clips: ClipSet, start: StartingPoint | None) -> TranscriptVocabulary:
        """Learn from the transcripts what the run needs: a tokenizer, CTC characters, and alignment labels.

        Raises:
            UserError: no clip is usable.
        """
        clips.check_any("data.train")
        tokenizer, characters = None, None
        if recipe.decoder.tokenizer is not None and not (start and start.takes("decoder")):
            added = [CONTEXT_CHARACTERS] if recipe.prompt.context else []
            tokenizer = build_tokenizer(recipe.decoder, chain(clips.texts, added)).backend_tokenizer.to_str()
        head = recipe.ctc
        if head is not None and head.init == "random" and not (start and start.takes("ctc_head")):
            characters = "".join(CtcVocabulary.of(clips.texts).characters)
        learned = cls(tokenizer, characters)
        if recipe.alignment is None:
            return learned
        used = learned.decoder_tokenizer(recipe, start)
        counts = Counter(token for text in clips.texts for token in used.encode(text, add_special_tokens=False))
        rows = recipe.decoder.num_embeddings()  # clips with tokens that have no embedding are dropped
        counts = Counter({token: count for token, count in counts.items() if rows is None or token < rows})
        token_ids, pieces = choose_labels(used, counts, recipe.alignment.max_labels, rows)
        return replace(learned, token_ids=token_ids, pieces=list(pieces.items()) or None)

    def decoder_tokenizer(self, recipe: Recipe, start: StartingPoint | None) -> Any:
        """Return the decoder's tokenizer. A trained decoder needs the tokenizer that it was trained with."""
        if start is not None and start.takes("decoder"):
            return start.tokenizer()
        if self.tokenizer is not None:
            return restore_tokenizer(self.tokenizer)
        return load_tokenizer(recipe.decoder.pretrained, recipe.decoder.revision)
