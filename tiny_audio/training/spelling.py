"""What the transcripts decide before training: how they are cut into tokens, and which characters a CTC head knows."""

from __future__ import annotations

from dataclasses import dataclass

from tiny_audio.ctc import CtcVocabulary
from tiny_audio.data.clips import ClipSet
from tiny_audio.decoders import build_tokenizer
from tiny_audio.recipe import Recipe
from tiny_audio.training.initialize import StartingPoint


@dataclass(frozen=True)
class Spelling:
    """Read from all transcripts once in a run, which keeps it: there may be millions. None is not theirs to say."""

    tokenizer: str | None
    """As the tokenizers library writes it; None where it comes with the decoder's weights."""
    characters: str | None
    """Of a CTC head, in the order of its labels; None where it has its own, or there is no head."""

    @classmethod
    def learn(cls, recipe: Recipe, clips: ClipSet, start: StartingPoint | None) -> Spelling:
        """From the transcripts, if anything is.

        Raises:
            UserError: there are none to train a tokenizer on.
        """
        clips.check_any("data.train")
        tokenizer, characters = None, None
        if recipe.decoder.tokenizer is not None and not (start and start.takes("decoder")):
            tokenizer = build_tokenizer(recipe.decoder, clips.texts).backend_tokenizer.to_str()
        head = recipe.ctc
        if head is not None and head.init == "random" and not (start and start.takes("ctc_head")):
            characters = "".join(CtcVocabulary.of(clips.texts).characters)
        return cls(tokenizer, characters)
