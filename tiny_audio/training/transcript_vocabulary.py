"""Learn the tokenizer and the CTC characters from the transcripts, before training."""

from __future__ import annotations

from dataclasses import dataclass

from tiny_audio.ctc import CtcVocabulary
from tiny_audio.data.clips import ClipSet
from tiny_audio.decoders import build_tokenizer
from tiny_audio.recipe import Recipe
from tiny_audio.training.initialize import StartingPoint


@dataclass(frozen=True)
class TranscriptVocabulary:
    """The vocabulary of a run. It is learned once and stored, because reading millions of transcripts is slow."""

    tokenizer: str | None
    """The tokenizer as JSON of the tokenizers library. None if the tokenizer comes with the decoder's weights."""
    characters: str | None
    """Characters of a randomly initialized CTC head, in the order of its labels. None if there is no such head."""

    @classmethod
    def learn(cls, recipe: Recipe, clips: ClipSet, start: StartingPoint | None) -> TranscriptVocabulary:
        """Learn a tokenizer and CTC characters from the transcripts, each only if the run needs it.

        Raises:
            UserError: no clip is usable.
        """
        clips.check_any("data.train")
        tokenizer, characters = None, None
        if recipe.decoder.tokenizer is not None and not (start and start.takes("decoder")):
            tokenizer = build_tokenizer(recipe.decoder, clips.texts).backend_tokenizer.to_str()
        head = recipe.ctc
        if head is not None and head.init == "random" and not (start and start.takes("ctc_head")):
            characters = "".join(CtcVocabulary.of(clips.texts).characters)
        return cls(tokenizer, characters)
