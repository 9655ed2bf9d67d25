"""The rule which clips of an evaluation set are scored, for ``run``, ``bench`` and ``evaluate``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tiny_audio.config import UserError
from tiny_audio.data.clips import Clip, ClipSet
from tiny_audio.sources import Source

UNBOUNDED_DURATION_S = 120.0
"""Longest clip that is scored with an encoder that has no limit of its own."""


def evaluation_clips(name: str, source: Source, max_duration_s: float = math.inf) -> ClipSet:
    """Index one evaluation set.

    The rule: **every clip is scored, except clips that are too long for the model.** There is no lower bound.
    ``data.min_duration_s`` and ``data.max_duration_s`` limit training clips only. ``run`` and ``bench`` leave out
    clips that are longer than :mod:`tiny_audio.model.limits` allows. ``evaluate`` compares recognizers with different
    limits on the same clips, so it leaves out no clip. If a clip is too long for one recognizer, it counts as a failure
    of that recognizer. ``data.target_text`` does not rewrite these transcripts. In a clip with an empty reference
    nobody speaks, and whatever a recognizer writes for it is wrong.

    Args:
        name: name of the set. The ids of its clips start with it.
        source: yields the utterances.
        max_duration_s: duration of the longest clip that the evaluated model takes.

    Returns:
        the set, which may have no usable clip; see :meth:`ClipSet.check_any` and :func:`check_group_by`.

    Raises:
        UserError: the source cannot be read.
    """
    return ClipSet.gather({name: source}, 0.0, max_duration_s, keep_empty=True)


def check_group_by(clips: Sequence[Clip], column: str | None) -> None:
    """Check that a clip has the metadata column of ``evaluation.group_by``. None is always allowed.

    Raises:
        UserError: no clip has it. The message names the columns of these clips.
    """
    if column is None or any(clip.utterance.metadata.get(column) for clip in clips):
        return
    columns = ", ".join(sorted({name for clip in clips for name in clip.utterance.metadata})) or "none"
    raise UserError(
        f"evaluation.group_by: no clip has a column {column!r} (columns: {columns}); name one of them, or leave it out"
    )
