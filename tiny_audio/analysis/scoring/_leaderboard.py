"""Normalization rules of the Open ASR Leaderboard, as of August 2026, based on the package ``whisper-normalizer``.

Source: ``normalizer/`` of github.com/huggingface/open_asr_leaderboard (Apache-2.0) at commit d1e99b2 of 2026-08-21. The
leaderboard has used these rules for English since 2026-04-22, and the cost ``compounds`` for the alignment since
2026-06-11. The rules for English differ from Whisper's English normalizer:

- More fillers are removed: ah, eh, huh, hum and their variants.
- "'s" becomes "is" only after pronouns and question words ("it's" -> "it is"). Elsewhere, it becomes the separate word
  "s" ("john's" -> "john s").
- kinda, sorta, dunno and cause are unchanged.
- "e mail", "wi fi", "all right" and 13 other phrases become one word.
- Spellings follow the leaderboard's list. For 116 names, variants such as "aron" are replaced by one spelling.
- Runs of single letters and digits become one word: "b b c" -> "bbc". A run that contains "a" or "i" is joined only if
  it has at least three letters or digits.

For other languages, Whisper's multilingual rules are applied, and then digits are written out as words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby

from tiny_audio.analysis.scoring._leaderboard_2025 import NOT_RESPELT, NOT_WRITTEN_OUT, SPELLING
from tiny_audio.config import UserError

VERSION = "open_asr_leaderboard d1e99b2"

_FILLERS = "hmm|mm|mhm|mmm|uh|um|ah|aha|ahh|ahm|eh|ehehe|em|hm|huh|hum|mhum|uhm|umm|uhuh"
_BEFORE_IS = "it|he|she|what|that|who|here|there|how|when|where|why|this"
"""Words after which "'s" means "is"."""

_JOINED = {
    "etc": ["et cetera"],
    "alright": ["al right", "all right"],
    "however": ["how ever"],
    "okay": ["o k"],
    **{
        pair.replace(" ", ""): [pair]
        for pair in (
            *("wi fi", "hi fi", "lo fi", "sci fi", "e mail", "e book", "e commerce", "x ray", "t shirt"),
            *("a m", "p m"),
        )
    },
}
"""Words, each with the phrases that are replaced by it."""

_SPELLING = {**SPELLING, "etcetera": "etc", "flyer": "flier", "kay": "okay", "ok": "okay"}

_NAMES = """
aaron: aron; alfonso: alphonso; alison: allison alyson; allen: alan allan; anne: ann; anthony: antony; arthur:
artur; brett: bret; brian: bryan; bridget: bridgette; caitlin: kaitlin kaitlyn katelyn; carl: karl; carol: carole
carrol carroll; catherine: catharine katherine kathryn; cathy: kathy; charlie: charley charly; chris: kris;
christina: kristina; christopher: cristopher kristopher; colin: collin; deborah: devorah; dennis: denis; dominic:
dominick; douglas: douglass; dylan: dillon; eric: erick erik; fatima: fatimah; frederick: frederik fredrick; gail:
gayle; gary: garry; greg: gregg; henry: henri; ivonne: yvonne; jackie: jacky; jamie: jaime; jason: jayson; jeff:
geoff; jeffrey: geoffrey jeffery; joanne: joane joann; john: jon; jonathan: johnathan jonathon; joseph: josef;
karen: caren caryn karin; kelly: kelley kelli kellye; kevin: kevan; kristin: kristen; laurie: lori; lawrence:
laurence; lee: leigh; leslie: lesley; lily: lilly; linda: lynda; lindsay: lindsey linsey; louis: lewis; lucas:
lukas; lynn: lynne; mark: marc; martin: martyn; matthew: mathew; mcarthur: macarthur; mccarthy: macarthy maccarthy;
mccartney: macartney; mcdonald: macdonald; mcgowan: macgowan; mcintosh: macintosh; mcintyre: macintyre; mckay:
mackay; mckenzie: mackenzie; mclean: maclean; mcleod: macleod; mcmillan: macmillan; mcnamara: macnamara; megan:
meghan; michael: micheal; michelle: michele; miriam: myriam; mohammed: mahomet mohamad mohamed mohammad mouhamad
mouhamed muhamad muhammad muhammed; molly: mollie; natalie: nathalie; neil: neal; nicholas: nicolas; nicole: nikole;
patrick: patrik; peter: pieter; philip: phillip; rachel: rachael; rajiv: rajeev; rebecca: rebekah; rob: robb; robin:
robyn; roger: rodger; ronda: rhonda; russell: russel; sally: sallie; sarah: sara; sean: shaun shawn; shane: shayne;
sherry: cheri sheri sherrie; simon: symon; stacy: stacey stacie; steven: stephen; stuart: stewart; susanne: suzanne;
teresa: theresa; terry: terri; thomas: tomas; toby: tobey; tony: toni; tracy: tracey tracie; veronica: veronika;
victor: viktor; victoria: viktoria; walter: walther; yousef: yusef yusuf; zach: zak; zachary: zachery zackary
"""
"""Names, each with the variants that are replaced by it."""


def leaderboard_rule() -> Callable[[str], str]:
    """Return the rule for English: raw text -> text to score."""
    from whisper_normalizer.english import EnglishTextNormalizer

    whisper = EnglishTextNormalizer()
    whisper.ignore_patterns = rf"\b({_FILLERS})\b"
    only_there = (rf"\b({_BEFORE_IS})'s\b", r"\1 is")
    whisper.replacers = dict(
        only_there if pattern == r"'s\b" else (pattern, other)
        for pattern, other in whisper.replacers.items()
        if pattern not in [rf"\b{word}\b" for word in NOT_WRITTEN_OUT]
    )
    numbers, spellings = whisper.standardize_numbers, whisper.standardize_spellings.mapping
    spellings = {word: other for word, other in spellings.items() if word not in NOT_RESPELT} | _SPELLING
    # The package calls `standardize_numbers`, then `standardize_spellings`. With these wrappers, it runs the steps of
    # the leaderboard: join words, replace numbers, replace spellings, replace names, join letters.
    whisper.standardize_numbers = lambda text: numbers(_join_words(text))
    whisper.standardize_spellings = lambda text: _join_letters(
        [_CANONICAL.get(word, word) for word in (spellings.get(word, word) for word in text.split())]
    )
    return lambda text: str(whisper(text))


def leaderboard_multilingual_rule(language: str) -> Callable[[str], str]:
    """Return the rule for a language other than English, such as ``de``.

    Raises:
        UserError: the package num2words is missing.
    """
    from whisper_normalizer.basic import BasicTextNormalizer

    try:
        from num2words import num2words
    except ImportError:
        raise UserError(
            f"the normalizer open_asr_leaderboard_{language} needs the package num2words: pip install "
            "'tiny-audio[multilingual]'"
        ) from None
    basic = BasicTextNormalizer()

    def in_words(number: re.Match[str]) -> str:
        try:
            return str(num2words(int(number.group()), lang=language))
        except (ArithmeticError, LookupError, NotImplementedError, TypeError, ValueError):  # the number is too large
            return number.group()

    def rule(text: str) -> str:
        text = " ".join(re.sub(r"[^\w\s]", "", basic(text)).split())
        return re.sub(r"\d+", in_words, re.sub(r"(\d)\s+(\d{3})\b", r"\1\2", text))

    return rule


def _variants() -> dict[str, str]:
    groups = (group.split(":") for group in " ".join(_NAMES.split()).split("; "))
    return {variant: name for name, variants in groups for variant in variants.split()}


_CANONICAL = _variants()


def _join_words(text: str) -> str:
    for word, forms in _JOINED.items():
        for form in forms:
            text = re.sub(r"\b" + form.replace(" ", r"\s+") + r"\b", word, text)
    return text


def _join_letters(words: list[str]) -> str:
    found: list[str] = []
    for single, group in groupby(words, key=lambda word: len(word) == 1 and word.isalnum()):
        run = list(group)
        joined = single and len(run) >= (3 if {"a", "i"} & set(run) else 2)
        found += ["".join(run)] if joined else run
    return " ".join(found)
