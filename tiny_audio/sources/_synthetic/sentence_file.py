"""Sentences from a text file: read and check them, assign them to the training or held-out side, and convert them to
text for espeak-ng."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

from tiny_audio.config import UserError
from tiny_audio.sources._shared import read_lines, shown

MAX_CHARACTERS = 500
"""Maximum length of a sentence. At 150 words per minute, such a sentence takes 40 seconds."""
MAX_SENTENCES = 1_000_000
_MAX_LISTED = 5
"""Number of unusable lines that a message lists."""
_PUNCTUATION = frozenset(".,;:!?'\"()-–—…’‘“”&%")
"""Characters that espeak-ng skips or reads correctly. The $ is not included, because espeak-ng reads "$5" as "dollar
five"."""
_EXPECTED = "expected a text file with one English sentence per line"
_HELD_OUT_SHARE = 0.1


def read_sentences(path: Path) -> list[str]:
    """Return the different sentences of a file, in the order of their first occurrence.

    Blank lines are skipped. Spaces within a sentence become single spaces, and characters are composed (NFC).

    Raises:
        UserError: the file cannot be read, has no sentence, or has lines that espeak-ng cannot speak. The message
            lists the first of these lines with their numbers.
    """
    sentences: dict[str, None] = {}
    unusable: list[str] = []
    for number, line in read_lines(path, f"sentences_file: {path}", _EXPECTED):
        sentence = unicodedata.normalize("NFC", " ".join(line.split()))
        problem = _problem(sentence)
        if problem is not None:
            unusable.append(f"  line {number}: {problem}: {shown(sentence)}")
            continue
        sentences[sentence] = None
        if len(sentences) > MAX_SENTENCES:
            raise UserError(
                f"{path} has more than {MAX_SENTENCES:,} different sentences; divide them among several sources"
            )
    if unusable:
        more = len(unusable) - _MAX_LISTED
        raise UserError(
            "\n".join(
                [
                    f"{path}: lines that cannot be spoken: {len(unusable):,}",
                    *unusable[:_MAX_LISTED],
                    *([f"  … and {more:,} more"] if more > 0 else []),
                    "Use only Latin letters, digits and punctuation. Write symbols as words. Remove lines that still "
                    "cannot be spoken",
                ]
            )
        )
    if not sentences:
        raise UserError(f"{path} has no sentence; {_EXPECTED}")
    return list(sentences)


def is_held_out(sentence: str) -> bool:
    """Return whether a sentence is on the held-out side of the split. About a tenth of all sentences is on this side.

    A hash of the letters and digits determines the side. So sentences that differ only in case or punctuation are on
    the same side.
    """
    words = " ".join(re.findall(r"\w+", sentence.casefold().replace("’", "").replace("'", "")))
    return hashlib.sha256(f"sentence: {words}".encode()).digest()[0] < 256 * _HELD_OUT_SHARE


def spoken(sentence: str) -> str:
    """Return the text of a sentence for espeak-ng.

    A sentence in upper case is changed to lower case, because espeak-ng would spell out words such as "US". An A next
    to another single letter, as in "A B C", is replaced by phonemes, because espeak-ng would read it as the article.
    """
    words = (sentence.lower() if sentence.isupper() else sentence).split(" ")
    single = [False, *(len(word) == 1 and word.isalpha() for word in words), False]
    return " ".join(
        "[['eI]]" if word in ("a", "A") and (single[index] or single[index + 2]) else word
        for index, word in enumerate(words)
    )


def _problem(sentence: str) -> str | None:
    """Return the reason why espeak-ng cannot speak a sentence, or None if it can."""
    if len(sentence) > MAX_CHARACTERS:
        return f"{len(sentence):,} characters, but the limit is {MAX_CHARACTERS}"
    strange = next((character for character in sentence if not _is_allowed(character)), None)
    if strange is not None:
        is_text = not 0xD800 <= ord(strange) <= 0xDFFF
        return f"the character {strange!r}" if is_text else f"the byte {ord(strange) & 0xFF:#x}, which is not UTF-8"
    if not any(character.isalnum() for character in sentence):
        return "no letter or digit"
    return None


def _is_allowed(character: str) -> bool:
    # The first character of the decomposed form is the letter without its accent.
    letter = unicodedata.normalize("NFD", character)[0]
    return character == " " or character in _PUNCTUATION or (letter.isascii() and letter.isalnum())
