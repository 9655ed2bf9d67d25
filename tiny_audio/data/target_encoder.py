"""Encode transcripts as the token ids and CTC labels that the model learns to predict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tiny_audio.ctc import CtcVocabulary, min_frames
from tiny_audio.decoders import unknown_id
from tiny_audio.encoders import EncoderConfig
from tiny_audio.frames import SAMPLE_RATE

MAX_CHARACTERS_PER_S = 200.0
"""Maximum number of characters per second of audio. Even auctioneers speak only about 50 characters per second. Longer
texts are rejected before tokenization, which could need gigabytes."""
_ANY_CLIP_S = 5.0
""":func:`too_many_characters` treats shorter clips as if they had this duration, because durations in metadata may be
rounded."""


class TargetError(ValueError):
    """A clip cannot be used for training, because its transcript cannot be encoded or is too long for the audio."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        """A short code for counting, see :class:`tiny_audio.sources.Dropped`."""


def too_many_characters(text: str, duration_s: float) -> str | None:
    """Return a message if a text is too long for a clip of this duration, otherwise None."""
    if len(text) <= MAX_CHARACTERS_PER_S * max(duration_s, _ANY_CLIP_S):
        return None
    return f"{len(text):,} characters in {duration_s:.1f} s are more than {MAX_CHARACTERS_PER_S:g} per second"


@dataclass(frozen=True)
class Target:
    """The token ids and CTC labels that the model learns to predict for one clip."""

    ids: list[int]
    """Token ids of the decoder. The last id is the end token."""
    ctc_labels: list[int] | None
    """Labels of the CTC head. None if there is no CTC head."""


@dataclass(frozen=True)
class TargetEncoder:
    """Encodes transcripts with the decoder's tokenizer and the CTC head's vocabulary. Instances can be pickled."""

    tokenizer: Any
    end_id: int
    ctc: CtcVocabulary | None
    encoder: EncoderConfig
    max_ids: int | None = None
    """Maximum number of tokens of a target, end token included. Longer targets do not fit the decoder's context. If
    None, there is no limit."""
    num_embeddings: int | None = None
    """Number of token ids for which the decoder has embeddings. If None, every token has an embedding."""
    keep_empty: bool = False
    """Whether empty texts are allowed. Their target is only the end token."""

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)  # cached, because the tokenizer rebuilds the list each time

    @cached_property
    def unknown(self) -> int | None:
        """Id of the unknown token, if the tokenizer has one."""
        return unknown_id(self.tokenizer)

    def encode(self, text: str, num_samples: int) -> Target:
        """Return the target of a transcript.

        Args:
            text: the transcript, already rewritten by :class:`tiny_audio.data.text.TargetText`.
            num_samples: length of the clip. The text may have at most ``MAX_CHARACTERS_PER_S`` characters per second.
                For CTC, the clip must also have enough frames for the labels.

        Raises:
            TargetError: the text contains a special token, is too long for the clip or the decoder, has a character
                that the tokenizer, the decoder or the CTC head lacks, or is empty although ``keep_empty`` is false.
        """
        if not text and not self.keep_empty:
            raise TargetError("text_missing", "data.target_text makes its transcript empty")
        problem = too_many_characters(text, num_samples / SAMPLE_RATE)
        if problem is not None:
            raise TargetError("text_too_long", problem)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if self.max_ids is not None and len(ids) >= self.max_ids:
            raise TargetError(
                "text_too_long",
                f"{len(ids):,} tokens and the end token do not fit the decoder's context, which has room for "
                f"{self.max_ids:,} in addition to the prompt and the longest clip",
            )
        if self.unknown is not None and self.unknown in ids:
            raise TargetError("unknown_token", f"the tokenizer has no token for a character of {text!r}")
        lost = next((index for index in ids if self.num_embeddings is not None and index >= self.num_embeddings), None)
        if lost is not None:
            name = self.tokenizer.convert_ids_to_tokens(lost)
            raise TargetError(
                "unknown_token", f"the decoder has no embedding for {name!r} (token id {lost}) in {text!r}"
            )
        special = sorted(self._special_ids.intersection(ids))
        if special:
            name = self.tokenizer.convert_ids_to_tokens(special[0])
            raise TargetError("special_token", f"{text!r} contains the special token {name!r}")
        return Target([*ids, self.end_id], None if self.ctc is None else self._labels(self.ctc, text, num_samples))

    def _labels(self, vocabulary: CtcVocabulary, text: str, num_samples: int) -> list[int]:
        labels = vocabulary.encode(text)
        if labels is None:
            strange = "".join(sorted(set(text) - set(vocabulary.characters)))
            raise TargetError("unknown_character", f"the CTC head has no label for {strange!r}")
        frames = self.encoder.num_frames(num_samples)
        if (needed := min_frames(labels)) > frames:
            raise TargetError(
                "text_too_long", f"{len(labels)} characters need at least {needed} frames, but the clip has {frames}"
            )
        return labels
