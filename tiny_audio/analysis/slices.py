"""Divide a set into slices: by duration, and by each metadata column with few different values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

_MAX_VALUES = 12
_MIN_UTTERANCES = 40
"""Minimum size of a set that is sliced by duration. The quarters of a smaller set would be too small."""


def slices(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, list[int]]]:
    """Yield (column, value, indices into ``rows``) for every slice. The slices of a column cover all rows.

    Rows have a ``duration`` in seconds, and columns in ``metadata``. If any duration is unknown, there are no slices by
    duration. A column is omitted if it has only one slice or more than ``_MAX_VALUES`` values.
    """
    if len(rows) >= _MIN_UTTERANCES and all(row["duration"] is not None for row in rows):
        yield from _by_duration([row["duration"] for row in rows])
    for column in dict.fromkeys(key for row in rows for key in row["metadata"]):
        values = [row["metadata"].get(column) for row in rows]
        found = sorted({value for value in values if value is not None})
        if 1 <= len(found) <= _MAX_VALUES and len(set(values)) > 1:
            for value in [*found, *([None] if None in values else [])]:
                indices = [index for index, given in enumerate(values) if given == value]
                yield column, "(not given)" if value is None else value, indices


def _by_duration(seconds: Sequence[float]) -> Iterator[tuple[str, str, list[int]]]:
    """Yield quarters of the set by duration. Their bounds are rounded to 0.1 s, and equal bounds are merged."""
    quartiles = np.round(np.percentile(seconds, [25, 50, 75]), 1)
    borders = sorted({float(border) for border in quartiles if border < max(seconds)})
    names = [f"to {border:g} s" for border in borders[:1]]
    names += [f"{low:g} to {high:g} s" for low, high in pairwise(borders)]
    names += [f"over {border:g} s" for border in borders[-1:]]
    buckets = np.searchsorted(borders, seconds, side="left")
    filled = [(name, np.flatnonzero(buckets == bucket).tolist()) for bucket, name in enumerate(names)]
    filled = [(name, indices) for name, indices in filled if indices]
    if len(filled) > 1:
        yield from (("duration", name, indices) for name, indices in filled)
