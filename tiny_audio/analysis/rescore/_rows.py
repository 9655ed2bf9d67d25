"""Read files of hypotheses in the format of this project or of the Open ASR Leaderboard."""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_audio.analysis.rescore._chunks import INDEX, PARENT, join_chunks
from tiny_audio.config import UserError
from tiny_audio.runtime.files import short_names
from tiny_audio.runtime.text_files import decoded

Row = dict[str, Any]
"""A system's hypothesis for a clip, from one line of JSON.

Fields of the leaderboard:

- ``audio_filepath``: optional if there is an ``id``
- ``duration``, ``time``: seconds of audio and seconds of processing, both optional
- ``text``: the reference
- ``pred_text``: the raw hypothesis, optional if there is an ``error``. An empty hypothesis is not a failure.

Fields of this project, all optional:

- ``id``: ``audio_filepath`` by default
- ``ctc_text``: the hypothesis of the CTC head
- ``truncated``: whether the hypothesis was cut at the maximum length
- ``error``: the reason why the clip failed. A row with an ``error`` counts as a row without a hypothesis, even if it
  has a ``pred_text``.
- ``metadata``: columns by name. All other fields with a string value are added as columns. ``parent_id`` and
  ``chunk_index`` are added even if they are integers.
"""

_FIELDS = (
    *("id", "audio_filepath", "duration", "time", "text", "pred_text"),
    *("ctc_text", "truncated", "error", "metadata"),
)
_NEEDED = ("text", "pred_text")

_MAX_DIGITS = 300
"""Integers with at least this many digits are read as infinity. All shorter integers fit into a float."""


@dataclass(frozen=True)
class Target:
    """A system to score: its name in tables, its file of hypotheses, and the rows of this file by id."""

    name: str
    path: Path
    rows: dict[str, Row]

    @property
    def answered(self) -> dict[str, Row]:
        """The rows without an error. Only these rows have a hypothesis."""
        return {name: row for name, row in self.rows.items() if not row["error"]}


def read_targets(paths: Sequence[Path]) -> list[Target]:
    """Read the files. The name of a target is the shortest unique end of its path.

    For example, ``runs/a/test.jsonl`` and ``runs/b/test.jsonl`` become ``a/test`` and ``b/test``.

    Raises:
        UserError: one of these problems:

            - A file is missing, is given twice, or is not in the JSON Lines format.
            - A row has a missing or wrong field.
            - A clip occurs twice in a file.
            - The chunks of a recording cannot be joined (see :func:`join_chunks`).
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    twice = next((path for index, path in enumerate(paths) if absolute[index] in absolute[:index]), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice; give each file only once")
    whole = [path.with_suffix("") if path.suffix in (".jsonl", ".json") else path for path in absolute]
    if len(set(whole)) < len(whole):
        whole = absolute
    return [
        Target(name, path, join_chunks(_read(path), str(path)))
        for name, path in zip(short_names(whole), paths, strict=True)
    ]


def _read(path: Path) -> dict[str, Row]:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {found}; give a file of hypotheses, such as evaluation/<set>.jsonl of a run")
    rows: dict[str, Row] = {}
    lines: dict[str, int] = {}
    try:
        content = decoded(path.read_bytes())
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; give a file of hypotheses, one JSON object per line") from None
    for line_number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        row = _row(line, f"{path}, line {line_number}")
        if row["id"] in rows:
            raise UserError(
                f"{path}, line {line_number}: the clip {row['id']!r} is already in line {lines[row['id']]} and would "
                "count twice; keep one of the rows, or give each its own `id`"
            )
        rows[row["id"]], lines[row["id"]] = row, line_number
    if not rows:
        raise UserError(f"{path} has no row; give a file of hypotheses, one JSON object per line")
    return rows


def _row(line: str, location: str) -> Row:
    try:
        given = json.loads(line, parse_int=_number)
        if "\\u" in line:
            # Programs that truncate texts can leave half of a surrogate pair. A half cannot be encoded, so replace it.
            text = json.dumps(given, ensure_ascii=False)
            given = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), parse_int=_number)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise UserError(
            f"{location}: is not a JSON object; a file of hypotheses has one per line, with audio_filepath, duration, "
            "text and pred_text"
        )
    row: Row = {**dict.fromkeys(_FIELDS), **{key: given[key] for key in _FIELDS if key in given}}
    missing = [key for key in _NEEDED if key not in given and not (key == "pred_text" and row["error"])]
    if row["id"] is None and row["audio_filepath"] is None:
        missing.append("audio_filepath")
    if missing:
        raise UserError(
            f"{location}: has no {' and no '.join(missing)} (it has {', '.join(given) or 'nothing'}); add "
            f"the missing field{'s' if len(missing) > 1 else ''}"
        )
    # The id may be a file name. Different computers may store the same name in different Unicode forms.
    row["id"] = unicodedata.normalize("NFC", str(row["id"] if row["id"] is not None else row["audio_filepath"]))
    for key in ("text", "pred_text", "ctc_text", "error"):
        optional = key in ("ctc_text", "error") or (key == "pred_text" and bool(row["error"]))
        if not isinstance(row[key], str) and not (optional and row[key] is None):
            raise UserError(f"{location}: {key} should be a string, not {json.dumps(row[key])[:60]}")
    row["text"] = unicodedata.normalize("NFC", row["text"])
    for key in ("duration", "time"):
        row[key] = _seconds(row[key], f"{location}: {key}")
    if not isinstance(row["truncated"], bool | None):
        raise UserError(f"{location}: truncated should be true or false, not {json.dumps(row['truncated'])[:60]}")
    if not isinstance(row["metadata"], dict | None):
        raise UserError(f"{location}: metadata should be an object, not {json.dumps(row['metadata'])[:60]}")
    columns = {key: value for key, value in given.items() if key not in _FIELDS and isinstance(value, str)}
    columns |= {key: str(given[key]) for key in (PARENT, INDEX) if isinstance(given.get(key), int)}
    row["metadata"] = columns | {
        key: value if value is None else str(value) for key, value in (row["metadata"] or {}).items()
    }
    return row


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) < _MAX_DIGITS else math.inf


def _seconds(value: object, location: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UserError(f"{location} should be seconds, 0 or more, not {json.dumps(value)[:60]}")
    return float(value)


def common_ids(targets: Sequence[Target]) -> list[str]:
    """Return the ids of the clips for which every target has a hypothesis, in the order of the first target.

    Raises:
        UserError: there is no such clip, or targets have different references for the same clip.
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
    answered = [target.answered for target in targets]
    ids = [name for name in answered[0] if all(name in rows for rows in answered[1:])]
    if not ids:
        listed = "; ".join(
            f"{target.name}: {len(rows)} of {len(target.rows)} clips have a hypothesis"
            + (f", such as {next(iter(rows))}" if rows else "")
            for target, rows in zip(targets, answered, strict=True)
        )
        raise UserError(
            f"there is no clip for which {'every target' if len(targets) > 1 else targets[0].name} has a hypothesis "
            f"({listed}); clips are matched by `id`, or by `audio_filepath` if they have no `id`"
        )
    return ids
