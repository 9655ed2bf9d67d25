"""Select the clips of an evaluation set that the commands ``run``, ``bench`` and ``evaluate`` score."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tiny_audio.config import UserError
from tiny_audio.data.clips import Clip, ClipSet
from tiny_audio.sources import Source

UNBOUNDED_DURATION_S = 120.0
"""Maximum duration of an evaluation clip. The limit of the model may be lower."""


def evaluation_clips(name: str, source: Source, max_duration_s: float = math.inf) -> ClipSet:
    """Return the clips of an evaluation set that are scored.

    **All clips that the source lists are scored, with one exception:** ``run`` and ``bench`` leave out clips that are
    too long for the model (see :mod:`tiny_audio.model.limits`). ``evaluate`` compares recognizers with different limits
    on the same clips, so a clip that is too long for a recognizer counts as a failure of this recognizer.
    ``data.min_duration_s`` and ``data.max_duration_s`` limit training clips only.

    ``data.target_text`` does not rewrite the transcripts of evaluation clips. An empty reference means that nobody
    speaks, so every word of the hypothesis is an error.

    Args:
        name: name of the set. The ids of its clips start with it.
        source: lists the utterances.
        max_duration_s: maximum duration of a clip for the evaluated model.

    Returns:
        the clips. There may be none, see :meth:`ClipSet.check_any`.

    Raises:
        UserError: the source cannot be read.
    """
    return ClipSet.gather({name: source}, 0.0, max_duration_s, keep_empty=True)


def check_group_by(clips: Sequence[Clip], column: str | None, place: str = "evaluation.group_by") -> None:
    """Check that at least one clip has a value for the metadata column by which results are grouped.

    Args:
        column: name of the column. If None, nothing is checked.
        place: the option or field that names the column, for the message.

    Raises:
        UserError: no clip has a value for the column. The message names the columns for which clips have values.
    """
    if column is None or any(clip.utterance.metadata.get(column) for clip in clips):
        return
    columns = sorted({name for clip in clips for name, value in clip.utterance.metadata.items() if value})
    known = f"use one of these columns: {', '.join(columns)}; or " if columns else ""
    raise UserError(f"{place}: no clip has a value for the column {column!r}; {known}remove {place}")
