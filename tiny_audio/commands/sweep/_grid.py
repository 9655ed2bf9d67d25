"""Parse grids such as ``projector=swiglu,conv training.seed=0,1``, and build a recipe for each combination."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_audio.config import UserError
from tiny_audio.recipe import Recipe, content_hash, load_recipe
from tiny_audio.runtime.yaml_file import parse_override

SEED = "training.seed"
"""Runs that differ only in this field belong to one variant."""
_MAX_COMBINATIONS = 1000
_MAX_VALUE = 32
"""Maximum number of characters of a value in a folder name."""
_OPENING, _CLOSING = "[{", "]}"


@dataclass(frozen=True)
class Combination:
    """One run of a sweep.

    Args:
        values: for each key of the grid, the value of this run as the user wrote it.
        name: name in tables, such as ``projector=conv, seed=1``.
        variant: the name without the seed. If only the seeds differ, it is ``all seeds``.
        folder: name of the run folder. The name includes the values and the run id.
    """

    values: dict[str, str]
    name: str
    variant: str
    folder: str
    recipe: Recipe


def split_values(text: str) -> list[str]:
    """Split at commas: ``a,b`` -> ``a``, ``b``. A comma inside brackets or quotes is part of a value.

    As in YAML, brackets and quotes are special only at the start of a value. Elsewhere they are plain text, as in
    ``don't``.

    Raises:
        UserError: a bracket or quote is not closed, or one of several values is empty.
    """
    values: list[str] = []
    expected: list[str] = []  # closing brackets that must still follow
    start, closed, quote = 0, -1, ""
    for index, character in enumerate(text):
        before = text[start:index].rstrip()
        if quote:
            # In double quotes, a backslash escapes the next character, which may be another backslash.
            backslashes = index - len(text[:index].rstrip("\\"))
            if character == quote and not (quote == '"' and backslashes % 2):
                quote, closed = "", index
        elif character in "\"'" and (
            not before
            or (expected and before[-1] in "[{,:")
            or text[closed:index] == character == "'"  # inside single quotes, two single quotes are an apostrophe
        ):
            quote = character
        elif character in _OPENING and (not before or expected):
            expected.append(_CLOSING[_OPENING.index(character)])
        elif expected and character == expected[-1]:
            expected.pop()
        elif character == "," and not expected:
            values.append(text[start:index])
            start = index + 1
    if quote or expected:
        raise UserError(
            f"{text!r}: there is no closing character for {quote or _OPENING[_CLOSING.index(expected[-1])]}; close it"
        )
    values.append(text[start:])
    values = [value.strip() for value in values]
    if len(values) > 1 and not all(values):
        raise UserError(f"{text!r}: there is an empty value between commas; remove a comma, or write null")
    return values


def parse_grid(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the overrides that have one value, and the grid: for each key with several values, these values.

    For example, ``["training.steps=9", "projector=swiglu,conv"]`` gives ``["training.steps=9"]`` and
    ``{"projector": ["swiglu", "conv"]}``.

    Raises:
        UserError: an override has no ``=``, a key or value is given twice, or no key has several values.
    """
    fixed, grid, seen = [], {}, set()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(
                f"override {override!r} must have the form section.field=value,value, such as projector=swiglu,conv"
            )
        if key in seen:
            raise UserError(f"{key} is given twice; write all its values in one override, {key}=A,B")
        seen.add(key)
        try:
            values = split_values(text)
        except UserError as error:
            raise UserError(f"override {key}={error}") from None
        twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
        if twice is not None:
            raise UserError(f"override {override!r}: the value {twice} is given twice; remove one of them")
        if len(values) > 1:
            grid[key] = values
        else:
            fixed.append(override)
    if not grid:
        raise UserError(
            "nothing to sweep: give a key several values, such as projector=swiglu,conv. To start a single run, use "
            "`tiny-audio run`"
        )
    return fixed, grid


def combinations(path: Path, overrides: Sequence[str]) -> list[Combination]:
    """Return all runs of a sweep. Later keys vary faster than earlier keys, and seeds vary fastest.

    Raises:
        UserError: the grid is too large, combinations are not valid or not distinct, or the runs cannot be compared.
    """
    _, grid = parse_grid(overrides)
    given = {key: text for key, _, text in (override.partition("=") for override in overrides)}
    size = 1
    for choices in grid.values():
        size *= len(choices)
    if size > _MAX_COMBINATIONS:
        raise UserError(
            f"the grid has {size:,} combinations, but at most {_MAX_COMBINATIONS:,} are allowed; give fewer values"
        )
    parsed = {
        key: {value: parse_override(f"{key}={value}")[1] for value in grid.get(key, [text])}
        for key, text in given.items()
    }
    keys = [*(key for key in grid if key != SEED), *([SEED] if SEED in grid else [])]
    short = _short_names(keys)
    found: list[Combination] = []
    invalid: dict[str, list[str]] = {}
    for chosen in itertools.product(*(grid[key] for key in keys)):
        values = dict(zip(keys, chosen, strict=True))
        words = {key: f"{short[key]}={value}" for key, value in values.items()}
        name = ", ".join(words.values())
        # Keep the given order, because `projector=conv` replaces a section that earlier overrides may have changed.
        changes = {key: parsed[key][values.get(key, text)] for key, text in given.items()}
        try:
            recipe = load_recipe(path, changes=changes)
        except UserError as error:
            invalid.setdefault(str(error), []).append(name)
            continue
        variant = ", ".join(word for key, word in words.items() if key != SEED) or "all seeds"
        found.append(Combination(values, name, variant, _folder(values, short, recipe), recipe))
    if invalid:
        raise UserError("\n".join(_invalid_combinations(invalid, size)))
    _check_distinct(found)
    _check_comparable(found)
    return found


def _invalid_combinations(invalid: dict[str, list[str]], size: int) -> Iterator[str]:
    """Yield the lines of a message, with one entry per distinct error. Most errors are the same for every seed."""
    count = sum(map(len, invalid.values()))
    yield f"{count} of {size} combinations {'is' if count == 1 else 'are'} not valid; nothing was started:"
    for message, names in invalid.items():
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        yield f"{names[0]}{more}:"
        yield from (f"  {line}" for line in message.splitlines())


def _check_distinct(found: Sequence[Combination]) -> None:
    seen: dict[str, str] = {}
    for combination in found:
        resolved = json.dumps(combination.recipe.model_dump(mode="json"), sort_keys=True)
        if resolved in seen:
            raise UserError(f"{seen[resolved]} and {combination.name} are the same recipe; leave one of them out")
        seen[resolved] = combination.name


def _check_comparable(found: Sequence[Combination]) -> None:
    first = found[0].recipe
    if not any(all(name in c.recipe.data.evaluation for c in found) for name in first.data.evaluation):
        raise UserError("these runs cannot be compared without a common evaluation set; add one to data.evaluation")
    for field in ("normalizer", "group_by"):
        if len({getattr(c.recipe.evaluation, field) for c in found}) > 1:
            raise UserError(
                f"evaluation.{field} must be the same for all runs, because their scores are compared; give it one "
                "value"
            )


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Shorten each key to its shortest unambiguous ending: ``training.seed`` becomes ``seed``."""
    paths = {key: key.split(".") for key in keys}

    def tail(key: str) -> str:
        lengths = range(1, len(paths[key]) + 1)
        tails = (paths[key][-length:] for length in lengths)
        return next(".".join(end) for end in tails if sum(path[-len(end) :] == end for path in paths.values()) == 1)

    # Do not shorten `encoder.name=whisper`, because `name=whisper` would be unclear.
    return {key: key if key.endswith(".name") else tail(key) for key in keys}


def _folder(values: dict[str, str], short: dict[str, str], recipe: Recipe) -> str:
    """Return the name of a run folder. A hash keeps names distinct if values are long or have special characters."""
    words, exact = [], True
    for key, value in values.items():
        slug = re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-.")[:_MAX_VALUE]
        exact = exact and slug == value
        words.append(f"{short[key]}-{slug}" if slug else short[key])
    mark = [] if exact else [content_hash(values)[:4]]
    return "_".join([*words, *mark, recipe.run_id()])
