"""Raw hypotheses as rows, and files of hypotheses as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
