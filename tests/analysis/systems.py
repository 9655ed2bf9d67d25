"""Hypotheses of artificial recognizers, as rows, as folders of finished runs, or as targets of ``evaluate``."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.sclite import corrupted
from tiny_audio.data.clips import Clip
from tiny_audio.evaluation.data import DataSet
from tiny_audio.evaluation.targets import Outcome, Target
from tiny_audio.model.decoding import Transcript
from tiny_audio.providers import Price
from tiny_audio.sources import Utterance

Row = dict[str, Any]
TEXTS = ("turn the light on", "stop now", "call the doctor at home", "go on", "what time is it in the garden")
SET = "held_out"


def make_rows(error_rate: float, size: int = 120, num_speakers: int = 12) -> list[Row]:
    """Return rows whose hypotheses have about this word error rate."""
    rng = random.Random(int(1000 * error_rate))
    return [
        {
            "id": f"{SET}/{number}",
            "audio_filepath": f"{number}.flac",
            "duration": 2.0,
            "text": text,
            "pred_text": corrupted(text, rng, error_rate, ["banana", "on"]),
            "ctc_text": None,
            "truncated": False,
            "metadata": {"speaker": f"s{number % num_speakers}"},
        }
        for number, text in ((number, TEXTS[number % len(TEXTS)]) for number in range(size))
    ]


def write_run(folder: Path, rows: Sequence[Row], group_by: str | None, normalizer: str = "lower") -> Path:
    """Write the files of a finished run that a comparison reads."""
    (folder / "evaluation").mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    report = {
        "run_id": folder.name,
        "evaluation": {SET: {"normalizer": normalizer}},
        "recipe": {"evaluation": {"group_by": group_by}, "training": {"seed": 0}},
        "training": {"steps": 1, "audio_hours": 1.0, "wall_s": 1.0},
        "parameters": {"projector": {"total": 1, "trainable": 1}},
        "provenance": {"device": "cpu", "evaluation_data": {SET: "0"}},
    }
    (folder / "report.json").write_text(json.dumps(report))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "evaluation" / f"{SET}.jsonl").write_text(lines)
    return folder


class MadeTarget(Target):
    """A target that returns the given hypotheses."""

    def __init__(self, label: str, rows: Sequence[Row]) -> None:
        self.label, self.identity = label, {"made": label}
        self._texts = {row["id"]: row["pred_text"] for row in rows}

    def check(self) -> None:
        """Check nothing."""

    def load(self) -> None:
        """Load nothing."""

    def transcribe(self, clips: Sequence[Clip]) -> Iterator[Outcome]:
        """Yield the hypothesis of each clip."""
        for clip in clips:
            yield Outcome(clip, Transcript(self._texts[clip.id], None, False), 0.1, None)

    def price(self) -> Price | None:
        """Return None."""
        return None

    def close(self) -> None:
        """Release nothing."""


def data_set(rows: Sequence[Row]) -> DataSet:
    """Return the clips of the rows."""
    source: Any = None  # the clips' audio is never read
    clips = (
        Clip(source, Utterance(row["id"], row["duration"], row["text"], None, row["metadata"]), row["id"])
        for row in rows
    )
    return DataSet(SET, tuple(clips), (), "0")
