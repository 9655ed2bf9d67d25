"""English normalization rules of the Open ASR Leaderboard from April 2025 until April 2026.

Source: ``normalizer/normalizer.py`` of github.com/huggingface/open_asr_leaderboard at commit 0c261bf of 2025-04-17.
This module adapts the package ``whisper-normalizer``. The rules differ from Whisper's English normalizer:

- An ellipsis (three or more dots) is removed at the end of the text. Elsewhere, it is replaced by a space.
- Two to four letters with dots become one word: "u.s.a." -> "usa", "t.v." -> "tv", "c.e.o.s" -> "ceos". The
  leaderboard also has rules for letters with spaces ("u. s. a.") and for possessives ("u.s.a.'s"), but they seldom
  match: letters with spaces match only if another letter directly follows the last dot, and when the rule for
  possessives runs, the rules before it have already joined most letters.
- kinda, sorta, dunno and cause are kept, as in OpenAI's rules. By default, ``whisper-normalizer`` expands them.
- Spellings follow the list in transformers, which corrects OpenAI's list; see :data:`SPELLING`.

The current rules are in :mod:`._leaderboard`. Word error rates from the two sets of rules are not comparable.
"""

from __future__ import annotations

import re
from collections.abc import Callable

VERSION = "open_asr_leaderboard 0c261bf"

NOT_WRITTEN_OUT = ("kinda", "sorta", "dunno", "cause")
"""Contractions that are kept."""

SPELLING = {
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
"""Spellings in which the list in transformers differs from OpenAI's list."""
NOT_RESPELT = ("archeological", "cancelation", "cancelations", "travelog", "travelogs")
"""American spellings that ``whisper-normalizer`` would replace with British spellings."""

_FIRST = (
    (r"\.{3,}\s*$", ""),
    (r"\s*\.{3,}\s*", " "),
    # The first rules of Whisper's normalizer, up to the rules for contractions. They are repeated here, because they
    # must run before the rules for letters with dots.
    (r"[<\[][^>\]]*[>\]]", ""),
    (r"\(([^)]+?)\)", ""),
    (r"\b(hmm|mm|mhm|mmm|uh|um)\b", ""),
    (r"\s+'", "'"),
)
_LETTER = r"([a-z])\."


def _dotted(num_letters: int, between: str, end: str) -> tuple[str, str]:
    """Return a pattern and a replacement that join ``num_letters`` letters with dots into one word."""
    letters = between.join([_LETTER] * num_letters).removesuffix(r"\.")
    return rf"\b{letters}{end}", "".join(rf"\{index}" for index in range(1, num_letters + 1))


def _letters() -> list[tuple[str, str]]:
    plural, plural_word = _dotted(3, "", r"\.s\b")
    possessive, possessive_word = _dotted(3, "", r"\.'s\b")
    return [
        (plural, f"{plural_word}s"),
        *(_dotted(size, "", r"\.?\b") for size in (4, 3, 2)),
        *(_dotted(size, r"\s+", r"\.\b") for size in (4, 3, 2)),
        (possessive, f"{possessive_word}s"),
    ]


def leaderboard_2025_rule() -> Callable[[str], str]:
    """Return the rule: raw text -> text to score."""
    from whisper_normalizer.english import EnglishTextNormalizer

    whisper = EnglishTextNormalizer()
    # This pattern matches nothing. _FIRST has removed the fillers, so a remaining "um" is the abbreviation "u.m.".
    whisper.ignore_patterns = r"(?!)"
    for word in NOT_WRITTEN_OUT:
        del whisper.replacers[rf"\b{word}\b"]
    mapping = {word: other for word, other in whisper.standardize_spellings.mapping.items() if word not in NOT_RESPELT}
    whisper.standardize_spellings.mapping = mapping | SPELLING
    rules = [(re.compile(pattern), replacement) for pattern, replacement in (*_FIRST, *_letters())]

    def rule(text: str) -> str:
        text = text.lower()
        for pattern, replacement in rules:
            text = pattern.sub(replacement, text)
        return str(whisper(text))

    return rule
