"""How text is searched for, and which of several candidates wins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from tiny_audio.config import NO_IDENTITY, Config


class GenerationConfig(Config):
    """Decoding of transcripts."""

    max_new_tokens: PositiveInt = 200
    """A transcript that has not ended by then is cut and flagged as truncated."""
    num_beams: PositiveInt = 1
    """1 is greedy."""
    ctc_weight: float = Field(default=0.0, ge=0, lt=1)
    """Joint decoding: the beams and the CTC head's greedy text are scored by both, and the best
    (1 - w)·log p_decoder + w·log p_ctc wins (after Watanabe et al. 2017). 0 asks the decoder alone."""
    draft: Literal["ctc", "none"] | None = Field(default=None, json_schema_extra=NO_IDENTITY)
    """``ctc``: greedy decoding verifies the CTC head's text, many tokens in one pass of the decoder, and gives the same
    tokens sooner. The same but for rounding, which can decide between two tokens that are equally likely: in single
    precision hardly ever, in half precision now and then, as another batch size does. So None drafts in single
    precision where there is a head and the search is greedy, and not elsewhere."""

    @model_validator(mode="after")
    def _check(self) -> GenerationConfig:
        if self.ctc_weight and self.num_beams == 1:
            raise ValueError(
                f"ctc_weight {self.ctc_weight} chooses between several candidates and num_beams is 1; set num_beams: 4"
            )
        if self.draft == "ctc" and self.num_beams > 1:
            raise ValueError(
                f"draft: ctc is greedy decoding made faster and num_beams is {self.num_beams}; set num_beams: 1, or "
                "leave draft out"
            )
        return self


@dataclass(frozen=True)
class Transcript:
    """What a model heard in one clip."""

    text: str
    ctc_text: str | None
    """The CTC head's own greedy text, where there is a head."""
    truncated: bool
    """No end token came within ``max_new_tokens``."""
