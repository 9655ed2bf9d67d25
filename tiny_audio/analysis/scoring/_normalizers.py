"""Normalize references and hypotheses before scoring (``evaluation.normalizer``).

Transcripts for training are normalized by :mod:`tiny_audio.data.text` (``data.target_text``).
"""

from __future__ import annotations

import importlib.metadata
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

from tiny_audio.analysis.normalizer_names import NORMALIZER_NAMES, NormalizerName
from tiny_audio.analysis.scoring._costs import Cost, check_scorer
from tiny_audio.config import UserError

_BRACKETED = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+\)")


@dataclass(frozen=True)
class Normalizer:
    """Raw text -> the text that is scored: words separated by single spaces, without spaces at the ends."""

    name: NormalizerName
    version: str
    """The packages or other sources of the rule, with versions, such as ``NFC, whisper-normalizer 0.1.15``. If this
    project defines the rule, the version is only a number."""
    rule: Callable[[str], str] = field(repr=False, compare=False)
    cost: Cost = "unit"
    """Default costs of edits."""

    def __call__(self, text: str) -> str:
        """Normalize raw text."""
        # An accented letter can be one character, or a letter and a combining accent. NFC makes both forms equal.
        return " ".join(self.rule(unicodedata.normalize("NFC", text)).split())


# Results are cached, because normalizing a text takes up to 0.3 ms, and each text is normalized several times (for the
# words, the characters and the report).
_memoized = lru_cache(maxsize=1 << 17)


@cache
def normalizer(name: NormalizerName) -> Normalizer:
    """Return the normalizer called ``name``.

    Every normalizer first converts each accented letter to one character (Unicode's form NFC). In the end, it replaces
    each run of whitespace with one space and strips the ends. Only the steps in between differ:

    - ``none``: no steps.
    - ``lower``: lower case.
    - ``basic``: Whisper's multilingual rules: lower case, remarks in brackets removed, symbols and punctuation replaced
      by spaces. Combining marks, which are vowels in many scripts, are also replaced by spaces.
    - ``whisper_english``: Whisper's English rules (arXiv 2212.04356, appendix C): contractions written out, fillers
      removed, American spelling, numbers in digits. It joins spoken digits ("one two three" -> "123"; see
      :func:`glues_words`). Apply it only once, to raw text, because it is not idempotent ("oh one" -> "01" -> "one").
      The package whisper-normalizer also expands four contractions that OpenAI's own rules keep: kinda, sorta, dunno,
      cause. Only straight apostrophes are recognized: "it's" -> "it is", but "it’s" -> "it s".
    - ``open_asr_leaderboard``: the English rules of the Open ASR Leaderboard since April 2026; see
      :mod:`._leaderboard`. The alignment matches compounds (cost ``compounds``).
    - ``open_asr_leaderboard_2025_04``: the leaderboard's English rules from April 2025 until April 2026; see
      :mod:`._leaderboard_2025`.
    - ``open_asr_leaderboard_de``, ``_es``, ``_fr``, ``_it``, ``_pt``: the leaderboard's rules for German, Spanish,
      French, Italian and Portuguese (cost ``joined``). They need the package num2words.

    Raises:
        UserError: there is no such normalizer, or its package is missing.
    """
    if name == "none":
        return Normalizer(name, "2", str)
    if name == "lower":
        return Normalizer(name, "2", str.lower)
    if name not in NORMALIZER_NAMES:
        allowed = ", ".join(NORMALIZER_NAMES)
        raise UserError(f"unknown normalizer {name!r}; allowed: {allowed}; choose one of these")
    version = f"NFC, whisper-normalizer {importlib.metadata.version('whisper-normalizer')}"
    if name == "basic":
        from whisper_normalizer.basic import BasicTextNormalizer

        return Normalizer(name, version, _memoized(BasicTextNormalizer()))
    if name.startswith("open_asr_leaderboard"):
        return _leaderboard(name, version)
    from whisper_normalizer.english import EnglishTextNormalizer

    return Normalizer(name, version, _memoized(_bounded(EnglishTextNormalizer())))


def _leaderboard(name: NormalizerName, package: str) -> Normalizer:
    from tiny_audio.analysis.scoring import _leaderboard as present
    from tiny_audio.analysis.scoring import _leaderboard_2025 as former

    if name == "open_asr_leaderboard_2025_04":
        return Normalizer(name, f"{former.VERSION}, {package}", _memoized(_bounded(former.leaderboard_2025_rule())))
    check_scorer("compounds")  # report a missing package now, before a model runs
    version = f"{present.VERSION}, {package}"
    if name == "open_asr_leaderboard":
        return Normalizer(name, version, _memoized(_bounded(present.leaderboard_rule())), "compounds")
    rule = present.leaderboard_multilingual_rule(name[-2:])
    version = f"{version}, num2words {importlib.metadata.version('num2words')}"
    return Normalizer(name, version, _memoized(_bounded(rule)), "joined")


def _bounded(rule: Callable[[str], str]) -> Callable[[str], str]:
    """Return a rule that inserts spaces into long numbers before it applies ``rule``.

    ``rule`` parses numbers, and Python parses at most 4,300 digits. Looping hypotheses can have longer numbers.
    """
    return lambda text: rule(re.sub(r"(\d{1000})(?=\d)", r"\1 ", text))


def glues_words(reference: str, normalizer: Normalizer) -> bool:
    """Return whether ``normalizer`` joins several number words of this reference into one word.

    One wrong digit then makes the whole number wrong ("one two three four" -> "1234"), and WER counts fewer words than
    were spoken. To detect joined words, the words are also normalized one by one, so that nothing is joined. The two
    results are compared. Only differences in numbers count.
    """
    glued = normalizer(reference).split()
    if not any(map(_has_digit, glued)):
        return False  # skip the slow check below, because most texts have no digit
    # Remove remarks in brackets first, because the rules cannot recognize them in single words.
    apart = [word for text in _BRACKETED.sub(" ", reference).split() for word in normalizer(text).split()]
    return len(glued) < len(apart) and _numbers(glued) != _numbers(apart)


def _has_digit(word: str) -> bool:
    return any(map(str.isdigit, word))


def _numbers(words: Sequence[str]) -> Counter[str]:
    # Whisper's rules write "1" as "one" and "1s" as "ones", so these words count as numbers.
    return Counter(word for word in words if _has_digit(word) or word in ("one", "ones"))
