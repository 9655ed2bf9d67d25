"""The sentences of the synthetic source. Each grammar is a function that returns a random line.

A line is a sequence of words separated by spaces. Letters that are spelled out are upper case. :func:`written` returns
the transcript of a line, and :func:`spoken` returns the text for espeak-ng.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tiny_audio.sources._synthetic.words import (
    CITIES,
    CONTACTS,
    DEVICES,
    ERRANDS,
    FIRST_NAMES,
    OPENINGS,
    RELATIVES,
    ROOMS,
    SONGS,
    STREET_KINDS,
    STREETS,
    SURNAMES,
)

VERSION = 5
"""Version of the synthetic data. Increase it if a change affects sentences or audio, so that old caches are not used.
"""

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ONE_TO_NINTH = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_ORDINALS = (
    *_ONE_TO_NINTH,
    *("tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth"),
    *("eighteenth", "nineteenth", "twentieth"),
    *(f"twenty {day}" for day in _ONE_TO_NINTH),
    *("thirtieth", "thirty first"),
)
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november"),
    "december",
)
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CONTROL_WORDS = ("enter", "erase", "rubout", "repeat", "help", "yes", "no", "stop", "start", "go")

# espeak-ng reads a single "a" as the article instead of the letter, and mispronounces "rubout".
_SPOKEN = {"A": "[['eI]]", "rubout": "rub out"}


def written(line: str) -> str:
    """Return the transcript of a line. It contains only a-z, apostrophes and spaces."""
    return line.lower()


def spoken(line: str) -> str:
    """Return the text of a line for espeak-ng."""
    return " ".join(_SPOKEN.get(word, word.lower()) for word in line.split(" "))


def is_held_out(text: str) -> bool:
    """Return whether a sentence is on the held-out side of the split. All other sentences are on the training side.

    A hash selects half of all sentences as candidates for the held-out side. Three kinds of candidates stay on the
    training side: single words, sentences that a grammar produces often, and sentences with a rare phrase. A phrase is
    a word or a pair of neighboring words. It is rare if few sentences of the other half contain it. So every phrase of
    a held-out sentence occurs in training, and only the whole sentence is new.

    The share of candidates is large, because these rules leave only some of them. With a smaller share, there would be
    few different held-out sentences, and each would be drawn often.
    """
    if " " not in text or not _is_in_half(text):
        return False
    makers = [lines for lines in map(_sample, GRAMMARS) if _phrases(text) <= lines.phrases]
    return bool(makers) and not any(text in _sample(name).frequent for name in GRAMMARS)


_SAMPLE_SIZE = 10_000
"""Number of lines that are drawn from each grammar to find frequent sentences and phrases."""
_MAX_SENTENCE_SHARE = 1 / 1_000
_MIN_PHRASE_SHARE = 1 / 500


@dataclass(frozen=True)
class _Sample:
    """Frequent sentences and phrases in a sample of lines of one grammar."""

    frequent: frozenset[str]
    """Sentences that each make up more than ``_MAX_SENTENCE_SHARE`` of the sample."""
    phrases: frozenset[str]
    """Words and pairs of neighboring words that each occur in at least ``_MIN_PHRASE_SHARE * _SAMPLE_SIZE`` lines of
    the sample. Only lines that the hash in :func:`is_held_out` does not select are counted."""


_SAMPLES: dict[str, _Sample] = {}
"""The samples of the grammars. Computing them takes two seconds."""


def save_split(path: Path) -> None:
    """Save the samples that determine the split, for other processes."""
    samples = {name: _sample(name) for name in GRAMMARS}
    rows = {name: [sorted(lines.frequent), sorted(lines.phrases)] for name, lines in samples.items()}
    path.write_text(json.dumps(rows), encoding="utf-8")


def load_split(path: Path) -> None:
    """Load the samples that :func:`save_split` saved, so that this process need not compute them."""
    for name, (frequent, phrases) in json.loads(path.read_text(encoding="utf-8")).items():
        _SAMPLES[name] = _Sample(frozenset(frequent), frozenset(phrases))


def _sample(name: str) -> _Sample:
    if name not in _SAMPLES:
        _SAMPLES[name] = _draw_sample(name)
    return _SAMPLES[name]


def _draw_sample(name: str) -> _Sample:
    rng = random.Random(f"split of {name}")
    lines = [written(GRAMMARS[name](rng)) for _ in range(_SAMPLE_SIZE)]
    sentences = Counter(lines)
    phrases = Counter(phrase for line in lines if not _is_in_half(line) for phrase in _phrases(line))
    return _Sample(
        frozenset(line for line, count in sentences.items() if count > _MAX_SENTENCE_SHARE * _SAMPLE_SIZE),
        frozenset(phrase for phrase, count in phrases.items() if count >= _MIN_PHRASE_SHARE * _SAMPLE_SIZE),
    )


def _phrases(text: str) -> set[str]:
    """Return the words and the pairs of neighboring words of a sentence."""
    words = text.split()
    return {*words, *(f"{first} {second}" for first, second in pairwise(words))}


def _is_in_half(text: str) -> bool:
    return hashlib.sha256(f"sentence: {text}".encode()).digest()[0] % 2 == 0


def cardinal(number: int, *, hundred_and: bool = False) -> str:
    """Return a number from 0 to 999,999 in words. ``hundred_and`` adds the "and" in "three hundred and two"."""
    if number < 20:
        return _UNITS[number]
    if number < 100:
        tens, unit = divmod(number, 10)
        return _TENS[tens] + (f" {_UNITS[unit]}" if unit else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        joint = " and " if hundred_and else " "
        return f"{_UNITS[hundreds]} hundred" + (joint + cardinal(rest) if rest else "")
    thousands, rest = divmod(number, 1000)
    joint = " and " if hundred_and and rest < 100 else " "
    head = f"{cardinal(thousands, hundred_and=hundred_and)} thousand"
    return head + (joint + cardinal(rest, hundred_and=hundred_and) if rest else "")


def year(rng: random.Random) -> str:
    """Return a year in spoken form, such as "nineteen ninety nine"."""
    low, high = rng.choice(((1900, 1999), (1900, 1999), (1700, 1899), (2000, 2039)))
    number = rng.randint(low, high)
    century, rest = divmod(number, 100)
    if century == 20 and rest < 10:
        return "two thousand" + (f" {_UNITS[rest]}" if rest else "")
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} " + (f"oh {_UNITS[rest]}" if rest < 10 else cardinal(rest))


def digit_string(rng: random.Random, length: int) -> str:
    """Return ``length`` random digits as words. All zeros of a string are read alike: either as zero or as oh."""
    nought = rng.choice(("oh", "zero"))
    return " ".join(_UNITS[digit] if digit else nought for digit in (rng.randrange(10) for _ in range(length)))


def pairs(rng: random.Random) -> str:
    """Return a number read in groups of at most two digits, such as "nine twenty three" or "thirty one sixty three"."""
    groups = [cardinal(rng.randint(1, 99))]
    for _ in range(rng.choice((1, 1, 2))):
        rest = rng.randint(1, 99)
        groups.append(f"oh {_UNITS[rest]}" if rest < 10 else cardinal(rest))
    return " ".join(groups)


def spelled(name: str) -> str:
    """Return the letters of a name, separated by spaces."""
    return " ".join(letter for letter in name.upper() if letter in _LETTERS)


def random_letters(rng: random.Random, low: int, high: int) -> str:
    """Return random letters, separated by spaces."""
    return " ".join(rng.choices(_LETTERS, k=rng.randint(low, high)))


def digits(rng: random.Random) -> str:
    """Return a string of one to eight digits."""
    return digit_string(rng, rng.randint(1, 8))


def numbers(rng: random.Random) -> str:
    """Return a cardinal number below a hundred thousand, alone or with a noun. Small numbers are more frequent."""
    number = cardinal(rng.randint(0, rng.choice((99, 999, 9_999, 99_999))), hundred_and=rng.random() < 0.6)
    return f"{number} {rng.choice(('percent', 'degrees', 'miles', 'minutes'))}" if rng.random() < 0.25 else number


def time_of_day(rng: random.Random) -> str:
    """Return a time of day, such as "half past ten", "seven thirty" or "eight A M"."""
    hour = _UNITS[rng.randint(1, 12)]
    kind = rng.randrange(6)
    if kind == 0:
        return f"{rng.choice(('half', 'quarter', 'ten', 'twenty', 'five'))} past {hour}"
    if kind == 1:
        return f"{rng.choice(('quarter', 'ten', 'twenty', 'five'))} to {hour}"
    if kind == 2:
        return f"{hour} o'clock"
    if kind == 3:
        return f"{hour} {rng.choice('AP')} M"
    minute = rng.randint(1, 59)
    return f"{hour} " + (f"oh {_UNITS[minute]}" if minute < 10 else cardinal(minute))


def _day(rng: random.Random) -> str:
    return rng.choice(("today", "tomorrow", "tonight", f"on {rng.choice(_WEEKDAYS)}"))


def _span(rng: random.Random) -> str:
    number = rng.choice((rng.randint(2, 12), rng.randint(2, 60)))
    return f"{cardinal(number)} {rng.choice(('minutes', 'minutes', 'seconds', 'hours'))}"


def home(rng: random.Random) -> str:
    """Return a smart home command, for example for lights, heating, music, timers or alarms."""
    room, device, song = rng.choice(ROOMS), rng.choice(DEVICES), rng.choice(SONGS)
    on = rng.choice(("on", "off"))
    level = cardinal(rng.randrange(5, 101, 5))
    line = rng.choice(
        (
            f"turn {on} the {room} {device}",
            f"turn the {room} {device} {on}",
            f"switch {on} the {device} in the {room}",
            f"set the {room} to {cardinal(rng.randint(14, 28))} degrees",
            f"dim the {room} lights to {level} percent",
            f"{rng.choice(('open', 'close'))} the {room} {rng.choice(OPENINGS)}",
            f"is the {room} {rng.choice(OPENINGS)} {rng.choice(('open', 'closed'))}",
            f"play {song} in the {room}",
            f"stop the music in the {room}",
            f"set a timer for {_span(rng)}",
            f"set an alarm for {time_of_day(rng)}",
            f"wake me up at {time_of_day(rng)} {_day(rng)}",
        )
    )
    return f"{line} please" if rng.random() < 0.15 else line


def _person(rng: random.Random) -> str:
    return rng.choice(CONTACTS if rng.random() < 0.6 else RELATIVES)


def phone(rng: random.Random) -> str:
    """Return a telephone command, for example for a call or a message."""
    person = _person(rng)
    where = rng.choice(("at home", "at work", "on the mobile"))
    return rng.choice(
        (
            f"call {person}",
            f"call {person} {where}",
            f"call {person} {where} {_day(rng)}",
            f"text {person} that i {rng.choice(ERRANDS)}",
            f"tell {person} that i will be there at {time_of_day(rng)}",
            f"send a message to {person}",
            f"did {person} call {_day(rng)}",
            f"dial {digit_string(rng, rng.choice((3, 7)))}",
            f"redial the last number {where}",
        )
    )


def _phone_number(rng: random.Random) -> str:
    area = f"area code {digit_string(rng, 3)} " if rng.random() < 0.4 else ""
    return area + digit_string(rng, 7)


def spelling(rng: random.Random) -> str:
    """Return a name or a random string, letter by letter."""
    kind = rng.randrange(12)
    if kind < 3:
        return spelled(rng.choice(FIRST_NAMES))
    if kind < 6:
        return spelled(rng.choice(SURNAMES))
    if kind < 8:
        return spelled(rng.choice(CITIES))
    if kind == 8:
        return spelled(rng.choice(STREETS))
    if kind == 9:
        return f"{spelled(rng.choice(STREETS))} {rng.choice(STREET_KINDS)}"
    return random_letters(rng, 1, 8)


def dates(rng: random.Random) -> str:
    """Return a date, with or without the year and the day of the week."""
    day, month = rng.choice(_ORDINALS), rng.choice(_MONTHS)
    return rng.choice(
        (
            f"{month} {day}",
            f"{month} {day} {year(rng)}",
            f"{month} {day} {year(rng)}",
            f"the {day} of {month}",
            f"the {day} of {month} {year(rng)}",
            f"{rng.choice(_WEEKDAYS)} {month} {day}",
            f"{rng.choice(_WEEKDAYS)} the {day}",
            f"{month} {year(rng)}",
            f"{cardinal(rng.randint(1, 12))} {cardinal(rng.randint(1, 28))} {cardinal(rng.randint(10, 99))}",
        )
    )


def census(rng: random.Random) -> str:
    """Return a control word, a code, a name, a date or another answer to the census form of the corpus CMU AN4."""
    number = cardinal(rng.choice((rng.randint(0, 99), rng.randint(100, 999), rng.randint(1_000, 9_999))))
    number = rng.choice((number, pairs(rng), digit_string(rng, rng.randint(1, 5))))
    return rng.choice(
        (
            rng.choice(_CONTROL_WORDS),
            rng.choice(_CONTROL_WORDS),
            f"enter {number}",
            f"enter {number}",
            f"{rng.choice(('rubout', 'erase'))} {random_letters(rng, 3, 5)} {number}",
            f"{rng.choice(('rubout', 'erase'))} {random_letters(rng, 3, 5)} {number}",
            f"{random_letters(rng, 1, 5)} {number}",
            f"{random_letters(rng, 1, 5)} {number}",
            spelled(rng.choice(rng.choice((FIRST_NAMES, SURNAMES, CITIES, STREETS)))),
            spelled(rng.choice(rng.choice((FIRST_NAMES, SURNAMES, CITIES, STREETS)))),
            f"{spelled(rng.choice(STREETS))} {rng.choice(STREET_KINDS)}",
            digit_string(rng, 5),
            _phone_number(rng),
            pairs(rng),
            number,
            f"{rng.choice(_MONTHS)} {rng.choice(_ORDINALS)} {year(rng)}",
            f"{cardinal(rng.randint(1, 12))} {cardinal(rng.randint(1, 28))} {cardinal(rng.randint(10, 99))}",
            time_of_day(rng),
        )
    )


GRAMMARS: dict[str, Callable[[random.Random], str]] = {
    "digits": digits,
    "numbers": numbers,
    "home": home,
    "phone": phone,
    "spelling": spelling,
    "dates": dates,
    "census": census,
}
