"""Settings and results of decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from tiny_audio.config import NO_IDENTITY, Config


class GenerationConfig(Config):
    """Decoding of transcripts."""

    max_new_tokens: PositiveInt = 200
    """A transcript without an end token is cut there, and flagged as truncated."""
    num_beams: PositiveInt = 1
    """1 is greedy decoding."""
    ctc_weight: float = Field(default=0.0, ge=0, lt=1)
    """Joint decoding: decoder and CTC head both score the beams and the head's greedy text, and the best
    (1 - w)·log p_decoder + w·log p_ctc wins (after Watanabe et al. 2017). 0 uses the decoder alone."""
    draft: Literal["ctc", "none"] | None = Field(default=None, json_schema_extra=NO_IDENTITY)
    """``ctc``: assisted greedy decoding. The decoder verifies the CTC head's text, many tokens in one pass, and gives
    the same tokens sooner. Only rounding may decide differently between two tokens that are equally likely: hardly ever
    in single precision, now and then in half precision, as with another batch size. None uses drafts for greedy
    decoding in single precision if the model has a CTC head, and not otherwise."""

    @model_validator(mode="after")
    def _check(self) -> GenerationConfig:
        if self.ctc_weight and self.num_beams == 1:
            raise ValueError(
                f"ctc_weight {self.ctc_weight} chooses between several candidates and num_beams is 1; set num_beams: 4"
            )
        if self.draft == "ctc" and self.num_beams > 1:
            raise ValueError(
                f"draft: ctc works for greedy decoding and num_beams is {self.num_beams}; set num_beams: 1, or leave "
                "draft out"
            )
        return self


@dataclass(frozen=True)
class Transcript:
    """The text of one clip."""

    text: str
    ctc_text: str | None
    """The CTC head's own greedy text; None without a head."""
    truncated: bool
    """No end token came within ``max_new_tokens``."""
