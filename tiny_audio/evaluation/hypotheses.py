"""Raw hypotheses as rows, their scores, and files of hypotheses as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tiny_audio.analysis.scoring import Normalizer, score_set
from tiny_audio.data.clips import Clip
from tiny_audio.model.decoding import Transcript
from tiny_audio.runtime.files import write_atomically

Hypothesis = dict[str, Any]
"""One row of ``evaluation/<set>.jsonl``: ``id, audio_filepath, duration, text, pred_text, ctc_text, truncated,
metadata``. Texts are not normalized, so any scorer can be applied later."""


def hypothesis(clip: Clip, transcript: Transcript | None) -> Hypothesis:
    """Return the row of a clip and its transcript. If the clip failed, the transcript is None."""
    utterance = clip.utterance
    return {
        "id": clip.id,
        "audio_filepath": None if utterance.audio is None else str(utterance.audio),
        "duration": utterance.duration_s,
        "text": utterance.text,
        "pred_text": None if transcript is None else transcript.text,
        "ctc_text": None if transcript is None else transcript.ctc_text,
        "truncated": None if transcript is None else transcript.truncated,
        "metadata": dict(utterance.metadata),
    }


def with_outcome(row: Hypothesis, time_s: float | None, error: str | None) -> Hypothesis:
    """Add the processing time and the error to a row. Keys are in the order of the Open ASR Leaderboard's manifests."""
    items = list(row.items())
    return dict([*items[:3], ("time", time_s), *items[3:7], ("error", error), *items[7:]])


def groups_of(rows: Iterable[Hypothesis], group_by: str | None) -> list[str | None] | None:
    """Return the value of each row in the metadata column ``group_by``. Return None if no column is given."""
    return None if group_by is None else [row["metadata"].get(group_by) for row in rows]


def score_rows(
    rows: Sequence[Hypothesis], normalizer: Normalizer, group_by: str | None, *, num_bootstrap: int = 1000
) -> dict[str, Any]:
    """Return the result of :func:`score_set`, and the number of truncated hypotheses.

    The CTC head is scored too, if all rows have its hypotheses.
    """
    has_ctc = all(row["ctc_text"] is not None for row in rows)
    scores = score_set(
        [row["text"] for row in rows],
        [row["pred_text"] for row in rows],
        normalizer,
        ctc_hypotheses=[row["ctc_text"] for row in rows] if has_ctc else None,
        num_bootstrap=num_bootstrap,
        groups=groups_of(rows, group_by),
        durations_s=[row["duration"] for row in rows],
    )
    scores["truncated_hypotheses"] = sum(row["truncated"] for row in rows)
    return scores


def to_lines(rows: Iterable[Hypothesis]) -> str:
    """Return the rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_rows(path: Path, rows: Iterable[Hypothesis]) -> None:
    """Write a file of rows atomically."""
    write_atomically(path, to_lines(rows))


def read_rows(path: Path) -> list[Hypothesis]:
    """Read a file that :func:`write_rows` wrote."""
    # `splitlines` would also split at Unicode line separators within a text.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
