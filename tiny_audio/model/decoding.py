"""Settings and results of decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from tiny_audio.config import LATER, NO_IDENTITY, Config


class GenerationConfig(Config):
    """Settings for the decoding of transcripts."""

    max_new_tokens: PositiveInt = 200
    """Maximum number of tokens of a transcript. A longer transcript is cut and flagged as truncated."""
    num_beams: PositiveInt = 1
    """Number of beams. 1 means greedy decoding."""
    ctc_weight: float = Field(default=0.0, ge=0, lt=1)
    """Weight w of the CTC head in joint decoding (after Watanabe et al. 2017). The candidates are the beams and the CTC
    head's greedy text. The candidate with the highest (1 - w)·log p_decoder + w·log p_ctc is chosen. 0 uses only the
    decoder."""
    ctc_search: bool = Field(default=False, json_schema_extra=LATER)
    """Whether the CTC head also takes part in the beam search, instead of only choosing among the found texts. In each
    step, tokens get the score (1 - w)·log p_decoder + w·log p_ctc. This makes texts that the audio does not contain,
    such as loops, less likely."""
    draft: Literal["ctc", "none"] | None = Field(default=None, json_schema_extra=NO_IDENTITY)
    """``ctc`` is assisted greedy decoding: the decoder verifies the CTC head's text, many tokens in one pass. This is
    faster than plain greedy decoding and gives the same tokens, apart from rounding errors: if two tokens are almost
    equally likely, such errors may change which of them is chosen. This is very rare in single precision, but sometimes
    happens in half precision. A different batch size can change tokens for the same reason. ``none`` is plain decoding.
    If None, ``ctc`` is used under four conditions: greedy decoding, single precision, a CTC head, and a decoder cache
    that can be rewound (unlike a recurrent state). If a condition is not met, ``none`` is used."""

    @model_validator(mode="after")
    def _check(self) -> GenerationConfig:
        if self.ctc_weight and self.num_beams == 1:
            raise ValueError(
                f"ctc_weight {self.ctc_weight} chooses between several beams, but num_beams is 1; set num_beams: 4"
            )
        if self.ctc_search and not self.ctc_weight:
            raise ValueError("ctc_search needs the weight of the CTC head's scores; set ctc_weight: 0.3")
        if self.draft == "ctc" and self.num_beams > 1:
            raise ValueError(
                f"draft: ctc works only for greedy decoding, but num_beams is {self.num_beams}; set num_beams: 1, or "
                "leave draft out"
            )
        return self


@dataclass(frozen=True)
class Transcript:
    """The text of one clip."""

    text: str
    ctc_text: str | None
    """The CTC head's own greedy text. None if the model has no CTC head."""
    truncated: bool
    """Whether the decoder generated ``max_new_tokens`` tokens without an end token."""
