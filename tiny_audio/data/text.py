"""Rewrite transcripts as target text, which is the text that the model learns to write (``data.target_text``).

Target text is not affected by ``evaluation.normalizer``, which scoring applies to references and hypotheses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Self

from pydantic import BaseModel, Discriminator, Tag, model_validator

from tiny_audio.analysis.scoring import NormalizerName, normalizer
from tiny_audio.config import Config

_PUNCTUATION = {"comma": ",", "period": ".", "questionmark": "?", "exclamationpoint": "!"}
_PUNCTUATION_TAG = re.compile(rf"\s*<({'|'.join(_PUNCTUATION)})>", re.IGNORECASE)

_REMARKS = (
    "applause breath breathing cough coughing coughs crosstalk foreign inaudible indiscernible laugh laughing laughs "
    "laughter music noise pause sigh sighs silence unclear unintelligible unk"
)
"""Remarks of transcribers. In round brackets, only these words count as markers, because other text may be spoken."""
_MARKER = re.compile(
    rf"\s*(?:<[^<>\s][^<>]{{0,40}}>|\[[^\[\]\s][^\[\]]{{0,40}}\]|\((?:{'|'.join(_REMARKS.split())})\))", re.IGNORECASE
)

_HESITATION = r"(?:uh+m?|um+|erm+|hm+|mm+|mhm+)"
# "uh-huh" is an answer, and "mm" in "35 mm" is a unit, so both are kept.
_FILLER = re.compile(
    rf"(,?)\s*(?<![\w'’-])(?<!\d\s){_HESITATION}(?:,?\s+{_HESITATION})*(?![\w'’]|-\w)([,.?!]?)", re.IGNORECASE
)

_PRONOUN = re.compile(r"(?<![\w'’.])i(?!\.\w)(?=['’](?:m|d|ll|ve)\b|[^\w'’]|$)")
# The pattern does not find a sentence start in "e.g. this" or in "'Who is it?' she asked".
_SENTENCE = re.compile(r"((?:^|(?<!\b\w)\.[\"”’')\]]*\s|[!?]\s)\s*[\"“‘'(\[]*)(\w)")
_NAMED_DAYS = re.compile(
    r"\b(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday|january|february|april|june|july|september|october"
    r"|november|december)\b"
)
"""Names of days and months, without March, May and August, which are also ordinary words."""


class TargetTextConfig(Config):
    """Steps that rewrite training transcripts. They are applied in the order of the fields."""

    write_punctuation: bool = False
    """Write GigaSpeech's ``<COMMA>``, ``<PERIOD>``, ``<QUESTIONMARK>`` and ``<EXCLAMATIONPOINT>`` as punctuation. If
    false, these tags are treated like other markers."""
    remove_markers: bool = False
    """Remove text in ``<>`` and ``[]``, such as ``<unk>``, ``<noise>`` and ``[laughter]``, and remarks in round
    brackets, such as ``(inaudible)``. If a marker stands for words that are audible in the clip, the model would learn
    to omit words. Remove such clips from the data."""
    remove_fillers: bool = False
    """Remove hesitations: uh, uhm, um, erm, hm, mm, mhm, and longer spellings such as ummm. The answer uh-huh is
    kept."""
    name: NormalizerName = "none"
    """The normalizer to apply. The choices are those of ``evaluation.normalizer``. ``target_text: lower`` is short for
    ``target_text: {name: lower}``."""
    true_case: bool = False
    """Add capitals to English text: at the start of each sentence, in the word I, and in the names of days and months.
    If a text is all upper case, its other letters become lower case, even in names."""

    @model_validator(mode="after")
    def _steps_work(self) -> Self:
        if self.name not in ("none", "lower"):
            for step, why in (
                ("write_punctuation", "removes punctuation"),
                ("remove_markers", "removes brackets itself"),
            ):
                if getattr(self, step):
                    raise ValueError(
                        f"{step} has no effect with the normalizer {self.name}, which {why}; remove {step}"
                    )
        return self


def _kind(given: object) -> str:
    return "[section]" if isinstance(given, dict | BaseModel) else "[name]"


# The names of these pydantic tags do not occur in recipes. `recipe/_validation_errors.py` removes them from locations.
TargetTextChoice = Annotated[
    Annotated[NormalizerName, Tag("[name]")] | Annotated[TargetTextConfig, Tag("[section]")], Discriminator(_kind)
]
"""The name of a normalizer, or a section with more fields."""


@dataclass(frozen=True)
class TargetText:
    """Rewrites a transcript as target text, which may be empty. Instances can be pickled."""

    config: TargetTextConfig

    @classmethod
    def of(cls, choice: TargetTextChoice) -> TargetText:
        """Return an instance for a value of ``data.target_text``."""
        return cls(choice if isinstance(choice, TargetTextConfig) else TargetTextConfig(name=choice))

    @cached_property
    def changes_nothing(self) -> bool:
        """Whether every text stays as it is."""
        return self.config == TargetTextConfig()

    def __str__(self) -> str:
        alone = self.config == TargetTextConfig(name=self.config.name)
        return f"data.target_text {self.config.name}" if alone else "data.target_text"

    def __call__(self, text: str) -> str:
        """Return the target text of a transcript."""
        config = self.config
        if self.changes_nothing:
            return text
        if config.write_punctuation:
            text = _PUNCTUATION_TAG.sub(lambda tag: _PUNCTUATION[tag[1].lower()], text)
        if config.remove_markers:
            text = _MARKER.sub(lambda marker: "" if _is_end(marker) else " ", text)
        if config.remove_fillers:
            text = _FILLER.sub(_without_filler, text)
        if (config.remove_markers or config.remove_fillers) and not any(map(str.isalnum, text)):
            return ""  # only punctuation is left
        text = normalizer(config.name)(text)
        return _true_cased(text) if config.true_case else text


def markers(text: str) -> list[str]:
    """Return the markers that ``remove_markers`` would remove."""
    return [marker.strip() for marker in _MARKER.findall(text)]


def _is_end(found: re.Match[str]) -> bool:
    """Return whether punctuation or the end of the text follows the match, so that no space is needed there."""
    return found.string[found.end() : found.end() + 1] in (",", ".", "?", "!", "")


def _without_filler(found: re.Match[str]) -> str:
    """Return the text to write instead of a filler and the punctuation around it."""
    before, after = found.groups()
    earlier = found.string[: found.start()].rstrip()
    if after and after in ".?!":
        return after if earlier and earlier[-1] not in ".?!" else ""  # "Yes, um." -> "Yes."; "Yes. Um." -> "Yes."
    # In "I, um, think", both commas belong to the filler. In "Yes, um I think", the comma belongs to the sentence.
    return ", " if before and not after and not _is_end(found) else " "


def _true_cased(text: str) -> str:
    if text.isupper():
        text = text.lower()
    text = _PRONOUN.sub("I", text)
    text = _NAMED_DAYS.sub(lambda name: name[0].capitalize(), text)
    return _SENTENCE.sub(lambda start: start[1] + start[2].upper(), text)
