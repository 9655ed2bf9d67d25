"""Join the hypotheses of a recording's chunks for scoring, if only the whole recording has a reference.

An example is the set Earnings22-Cleaned-AA-chunked of the Open ASR Leaderboard. Each row of this set has the id of the
recording in ``parent_id``, a ``chunk_index``, and the reference of the whole recording.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tiny_audio.config import UserError

_Row = dict[str, Any]
PARENT, INDEX = "parent_id", "chunk_index"


def join_chunks(rows: Mapping[str, _Row], place: str) -> dict[str, _Row]:
    """Return one row for each recording if every row is a chunk. Otherwise, return the rows unchanged.

    Hypotheses are joined in the order of ``chunk_index``. Durations and times are summed. A sum is None if any value is
    None. If any chunk failed, the joined row has the error of the first failed chunk.

    Args:
        rows: the rows by id. The metadata of a chunk has a ``chunk_index``, and a ``parent_id`` that is not None.
        place: how error messages refer to the rows.

    Raises:
        UserError: see :func:`check_chunks`.
    """
    recordings = check_chunks(rows, place)
    if recordings is None:
        return dict(rows)
    return {parent: _joined(parent, chunks) for parent, chunks in recordings.items()}


def check_chunks(rows: Mapping[str, _Row], place: str) -> dict[str, list[_Row]] | None:
    """Return the chunks of each recording, in order. Return None if any row is not a chunk.

    Only ids, references and metadata of the rows are used. For the arguments, see :func:`join_chunks`.

    Raises:
        UserError: a ``chunk_index`` is not a whole number of at least 0, a recording lacks a chunk or has two chunks
            with the same ``chunk_index``, or the references of a recording's chunks differ.
    """
    if not rows or not all(map(_is_chunk, rows.values())):
        return None
    recordings: dict[str, dict[int, _Row]] = defaultdict(dict)
    for row in rows.values():
        parent, given = str(row["metadata"][PARENT]), row["metadata"][INDEX]
        index = _index(given)
        if index is None:
            raise UserError(
                f"{place}: the clip {row['id']}: {INDEX} should be a whole number of at least 0, not "
                f"{json.dumps(given, ensure_ascii=False)[:60]}; number the chunks of each recording from 0"
            )
        other = recordings[parent].setdefault(index, row)
        if other is not row:
            raise UserError(
                f"{place}: the clips {other['id']} and {row['id']} are both chunk {index} of the recording {parent!r}; "
                f"give each chunk its own {INDEX}, or remove one of the rows"
            )
    for parent, chunks in sorted(recordings.items()):
        missing = next((index for index in range(len(chunks)) if index not in chunks), None)
        if missing is not None:
            raise UserError(
                f"{place}: chunk {missing} of the recording {parent!r} is missing ({len(chunks)} chunks were found). "
                "The reference covers the whole recording, so every chunk is needed; add the missing chunks, and "
                "number the chunks of each recording from 0"
            )
        if len({chunk["text"] for chunk in chunks.values()}) > 1:
            raise UserError(
                f"{place}: chunks of the recording {parent!r} have different references. Give every chunk the "
                f"reference of the whole recording, or remove {PARENT} and {INDEX} to score each chunk on its own"
            )
    return {parent: [chunks[index] for index in sorted(chunks)] for parent, chunks in sorted(recordings.items())}


def _index(given: str | None) -> int | None:
    """Return a ``chunk_index`` as a number. Return None if it is not a whole number of at least 0."""
    return int(given) if given is not None and given.strip().isdecimal() else None


def _is_chunk(row: _Row) -> bool:
    metadata = row["metadata"]
    return metadata.get(PARENT) is not None and INDEX in metadata


def _joined(parent: str, chunks: Sequence[_Row]) -> _Row:
    error = next((f"{chunk['id']}: {chunk['error']}" for chunk in chunks if chunk.get("error")), None)
    shared = {
        key: value
        for key, value in chunks[0]["metadata"].items()
        if all(chunk["metadata"].get(key) == value for chunk in chunks)
    }
    return {
        **chunks[0],
        "id": parent,
        "audio_filepath": parent,
        **{key: _sum([chunk.get(key) for chunk in chunks]) for key in ("duration", "time")},
        **{key: None if error else _text([chunk[key] for chunk in chunks]) for key in ("pred_text", "ctc_text")},
        "truncated": _any([chunk["truncated"] for chunk in chunks]),
        "error": error,
        "metadata": shared,
    }


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _text(texts: Sequence[str | None]) -> str | None:
    known = [text.strip() for text in texts if text is not None]
    return " ".join(filter(None, known)) if len(known) == len(texts) else None


def _any(flags: Sequence[bool | None]) -> bool | None:
    known = [flag for flag in flags if flag is not None]
    return any(known) if known else None
