"""Write numbers and symbols as English words, so that a CTC head without digits and symbols can align them."""

from __future__ import annotations

import re

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_GROUPS = ((1_000_000, "million"), (1_000, "thousand"), (100, "hundred"))
_MAX_DIGITS = 9
"""Numbers with more digits, such as telephone and card numbers, are read digit by digit."""

_SYMBOLS = {
    "$": "dollars",
    "€": "euros",
    "£": "pounds",
    "¢": "cents",
    "¥": "yen",
    "%": "percent",
    "°": "degrees",
    "&": "and",
    "+": "plus",
    "=": "equals",
    "@": "at",
    "#": "hash",
    "/": "slash",
    "*": "star",
    "×": "times",
}
_NUMBER = re.compile(r"([$€£¥]?)(\d+(?:,\d{3})*)(?:\.(\d+))?", re.ASCII)


def spoken(text: str) -> str:
    """Write numbers and symbols as words: ``$5`` -> ``five dollars``, ``C++`` -> ``C plus plus``.

    Other characters are kept. If a number can be read in several ways, a common reading is chosen.
    """
    text = _NUMBER.sub(lambda match: f" {_read(*match.groups())} ", text)
    text = "".join(f" {_SYMBOLS[character]} " if character in _SYMBOLS else character for character in text)
    return " ".join(text.split())


def _read(currency: str, whole: str, decimals: str | None) -> str:
    digits = whole.replace(",", "")
    is_year = len(whole) == 4 and not (currency or decimals) and 1100 <= int(digits) < 2100 and digits[:3] != "200"
    parts = [_year(int(digits)) if is_year else _number(digits)]
    if decimals:
        parts += ["point", _digits(decimals)]
    return " ".join([*parts, *([_SYMBOLS[currency]] if currency else [])])


def _number(digits: str) -> str:
    if len(digits) > _MAX_DIGITS or (digits.startswith("0") and len(digits) > 1):
        return _digits(digits)
    return _cardinal(int(digits))


def _year(value: int) -> str:
    century, rest = divmod(value, 100)
    if rest == 0:
        return f"{_cardinal(century)} hundred"
    return f"{_cardinal(century)} {'oh ' if rest < 10 else ''}{_cardinal(rest)}"


def _cardinal(value: int) -> str:
    if value < 20:
        return _ONES[value]
    if value < 100:
        return " ".join([_TENS[value // 10], *([_ONES[value % 10]] if value % 10 else [])])
    unit, name = next(group for group in _GROUPS if value >= group[0])
    count, rest = divmod(value, unit)
    return " ".join([_cardinal(count), name, *([_cardinal(rest)] if rest else [])])


def _digits(digits: str) -> str:
    return " ".join(_ONES[int(digit)] for digit in digits)
