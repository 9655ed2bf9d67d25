"""Files of hypotheses: this project's own, and others that have the fields of the Open ASR Leaderboard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_audio.config import UserError

Row = dict[str, Any]
"""A clip, and what a system made of it, as a line of JSON.

Of the leaderboard: ``audio_filepath``; ``duration``, seconds of audio; ``time``, seconds of processing (may be absent);
``text``, the reference; ``pred_text``, the raw hypothesis. Ours, all of which may be absent: ``id`` (else
``audio_filepath`` is it), ``ctc_text``, ``truncated``, ``error``, ``metadata`` (columns by name). Any other field with
a text is taken for a column.

A row with an ``error``, a sentence, is a failure: there is no hypothesis, and an empty one is not made up.
"""

_FIELDS = (
    "id",
    "audio_filepath",
    "duration",
    "time",
    "text",
    "pred_text",
    "ctc_text",
    "truncated",
    "error",
    "metadata",
)
_NEEDED = ("text", "pred_text")

_MAX_DIGITS = 300
"""Of a whole number that a float can hold."""


@dataclass(frozen=True)
class Target:
    """A system under test: its name in tables, its file, and the rows by id, in the order of the file."""

    name: str
    path: Path
    rows: dict[str, Row]

    @property
    def heard(self) -> dict[str, Row]:
        """The rows that have a hypothesis: those without an error."""
        return {name: row for name, row in self.rows.items() if not row["error"]}


def read_targets(paths: Sequence[Path]) -> list[Target]:
    """The files, called by as much of their paths' ends as tells them apart.

    Raises:
        UserError: a file is missing, is no JSON lines, lacks a field, or has one that is of another kind; or one clip
            or one file is there twice.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    twice = next((path for place, path in enumerate(paths) if absolute[place] in absolute[:place]), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice; give each file of hypotheses once")
    whole = [path.with_suffix("") if path.suffix in (".jsonl", ".json") else path for path in absolute]
    if len(set(whole)) < len(whole):
        whole = absolute
    names = next(
        names
        for depth in range(1, max(len(path.parts) for path in whole) + 1)
        if len(set(names := ["/".join(path.parts[-depth:]) for path in whole])) == len(whole)
    )
    return [Target(name, path, _read(path)) for name, path in zip(names, paths, strict=True)]


def _read(path: Path) -> dict[str, Row]:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {found}; give a file of hypotheses, such as evaluation/<set>.jsonl of a run")
    rows: dict[str, Row] = {}
    lines: dict[str, int] = {}
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text; give a file of hypotheses, one JSON object a line") from None
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        row = _row(line, f"{path}, line {number}")
        if row["id"] in rows:
            raise UserError(
                f"{path}, line {number}: the clip {row['id']!r} is in line {lines[row['id']]} already, and would count "
                "twice; keep one of the rows, or give each an `id` of its own"
            )
        rows[row["id"]], lines[row["id"]] = row, number
    if not rows:
        raise UserError(f"{path} has no row; give a file of hypotheses, one JSON object a line")
    return rows


def _row(line: str, place: str) -> Row:
    try:
        given = json.loads(line, parse_int=_number)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise UserError(
            f"{place}: is no JSON object; a file of hypotheses has one a line, with audio_filepath, duration, text and "
            "pred_text"
        )
    row: Row = {**dict.fromkeys(_FIELDS), **{key: given[key] for key in _FIELDS if key in given}}
    missing = [key for key in _NEEDED if key not in given and not (key == "pred_text" and row["error"])]
    if row["id"] is None and row["audio_filepath"] is None:
        missing.append("audio_filepath")
    if missing:
        raise UserError(f"{place}: has no {' and no '.join(missing)} (it has {', '.join(given) or 'nothing'}); add it")
    row["id"] = str(row["id"] if row["id"] is not None else row["audio_filepath"])
    for key in ("text", "pred_text", "ctc_text", "error"):
        optional = key in ("ctc_text", "error") or (key == "pred_text" and bool(row["error"]))
        if isinstance(row[key], str):
            # Half a character, as programs leave that cut texts by their length, can be written nowhere.
            row[key] = row[key].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        elif not (optional and row[key] is None):
            raise UserError(f"{place}: {key} should be a text, not {json.dumps(row[key])[:60]}")
    for key in ("duration", "time"):
        row[key] = _seconds(row[key], f"{place}: {key}")
    if not isinstance(row["truncated"], bool | None):
        raise UserError(f"{place}: truncated should be true or false, not {json.dumps(row['truncated'])[:60]}")
    if not isinstance(row["metadata"], dict | None):
        raise UserError(f"{place}: metadata should be an object, not {json.dumps(row['metadata'])[:60]}")
    columns = {key: value for key, value in given.items() if key not in _FIELDS and isinstance(value, str)}
    row["metadata"] = columns | {
        key: value if value is None else str(value) for key, value in (row["metadata"] or {}).items()
    }
    return row


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) < _MAX_DIGITS else math.inf


def _seconds(value: object, place: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UserError(f"{place} should be seconds, 0 or more, not {json.dumps(value)[:60]}")
    return float(value)


def common_ids(targets: Sequence[Target]) -> list[str]:
    """Clips for which every target has a hypothesis, in the order of the first.

    Raises:
        UserError: there is none, or two targets have different references for one clip.
    """
    first = targets[0]
    for other in targets[1:]:
        shared = [name for name in first.rows if name in other.rows]
        changed = [name for name in shared if first.rows[name]["text"] != other.rows[name]["text"]]
        if changed:
            name = changed[0]
            raise UserError(
                f"{first.name} and {other.name} have different references for {len(changed)} of {len(shared)} clips, "
                f"such as {name}: {first.rows[name]['text'][:60]!r} and {other.rows[name]['text'][:60]!r}; score both "
                "against the same references"
            )
    heard = [target.heard for target in targets]
    ids = [name for name in heard[0] if all(name in rows for rows in heard[1:])]
    if not ids:
        listed = "; ".join(
            f"{target.name}: {len(rows)} with a hypothesis of {len(target.rows)}"
            + (f", such as {next(iter(rows))}" if rows else "")
            for target, rows in zip(targets, heard, strict=True)
        )
        raise UserError(
            f"there is no clip for which {'each target' if len(targets) > 1 else targets[0].name} has a hypothesis "
            f"({listed}); clips are told by `id`, or else by `audio_filepath`"
        )
    return ids
