"""The English text rules of the Open ASR Leaderboard, on top of the package that has Whisper's.

Source: ``normalizer/normalizer.py`` of github.com/huggingface/open_asr_leaderboard at commit 0c261bf, by which the
leaderboard scored from 2025 until April 2026 (its pull requests 62 and 142). They are Whisper's English rules but for:

- an ellipsis (three dots or more) is dropped at the end, and a space elsewhere;
- letters with dots become one word, two to four of them: "u.s.a." -> "usa", "t.v." -> "tv", "c.e.o.s" -> "ceos";
  its rules for letters with spaces between, and for "'s" after them, are kept, though they hardly ever apply;
- kinda, sorta, dunno and cause stay as they are (OpenAI's rules leave them too; the package writes them out);
- spellings are those of the list in transformers, which mends the list of OpenAI's: see :data:`_SPELLING`.

What the leaderboard does since April 2026 (more fillers, clock times, acronyms, names, compounds, "oh" and "'s" read
with more care) is not here: a rate of later date is under other rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable

LEADERBOARD_VERSION = "open_asr_leaderboard 0c261bf"

_NOT_WRITTEN_OUT = ("kinda", "sorta", "dunno", "cause")

_SPELLING = {
    "archaeological": "archeological",
    "archaeology": "archeology",
    "cancellation": "cancelation",
    "cancellations": "cancelations",
    "mm": "hmm",
    "pummelled": "pummeled",
    "pummelling": "pummeling",
    "snowploughs": "snowplows",
    "travelogue": "travelog",
    "travelogues": "travelogs",
}
"""Where the list in transformers differs from OpenAI's."""
_NOT_RESPELT = ("archeological", "cancelation", "cancelations", "travelog", "travelogs")

_FIRST = (
    (r"\.{3,}\s*$", ""),
    (r"\s*\.{3,}\s*", " "),
    # What Whisper's rules do before contractions: the letters below must not see it.
    (r"[<\[][^>\]]*[>\]]", ""),
    (r"\(([^)]+?)\)", ""),
    (r"\b(hmm|mm|mhm|mmm|uh|um)\b", ""),
    (r"\s+'", "'"),
)
_LETTER = r"([a-z])\."


def _dotted(num_letters: int, between: str, end: str) -> tuple[str, str]:
    """Rule for so many letters with dots: they become one word."""
    letters = between.join([_LETTER] * num_letters).removesuffix(r"\.")
    return rf"\b{letters}{end}", "".join(rf"\{place}" for place in range(1, num_letters + 1))


def _letters() -> list[tuple[str, str]]:
    plural, plural_word = _dotted(3, "", r"\.s\b")
    possessive, possessive_word = _dotted(3, "", r"\.'s\b")
    return [
        (plural, f"{plural_word}s"),
        *(_dotted(size, "", r"\.?\b") for size in (4, 3, 2)),
        *(_dotted(size, r"\s+", r"\.\b") for size in (4, 3, 2)),
        (possessive, f"{possessive_word}s"),
    ]


def leaderboard_rule() -> Callable[[str], str]:
    """The rule: raw text -> text to score."""
    from whisper_normalizer.english import EnglishTextNormalizer

    whisper = EnglishTextNormalizer()
    whisper.ignore_patterns = r"(?!)"  # fillers are gone by then, and "u.m." is none
    for word in _NOT_WRITTEN_OUT:
        del whisper.replacers[rf"\b{word}\b"]
    mapping = {word: other for word, other in whisper.standardize_spellings.mapping.items() if word not in _NOT_RESPELT}
    whisper.standardize_spellings.mapping = mapping | _SPELLING
    rules = [(re.compile(pattern), replacement) for pattern, replacement in (*_FIRST, *_letters())]

    def rule(text: str) -> str:
        text = text.lower()
        for pattern, replacement in rules:
            text = pattern.sub(replacement, text)
        return str(whisper(text))

    return rule
