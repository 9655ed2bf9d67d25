"""Evaluation clips that are shared with training: excluded from the score, or reported."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Output
from tests.conftest import write_clips

pytestmark = pytest.mark.usefixtures("one_thread")


def test_shared_clips_are_excluded_or_reported(call: Output, trained: Path, tmp_path: Path) -> None:
    known = [json.loads(line) for line in (trained / "manifest.jsonl").read_text().splitlines()][:3]
    new = [json.loads(line) for line in write_clips(tmp_path / "new", 2).read_text().splitlines()]
    for folder, rows in ((trained, known), (tmp_path / "new", new)):
        for row in rows:
            row["audio_filepath"] = str(folder / row["audio_filepath"])
    manifest, run = tmp_path / "mixed.jsonl", tmp_path / "run"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in known + new))
    command = ("run", trained / "recipe.yaml", "training.steps=3", f"data.evaluation.held_out.path={manifest}")

    def scores(*options: str) -> dict[str, Any]:
        code, out, err = call(*command, *options, "--output-dir", run)
        assert (code, err) == (0, ""), err
        assert "held_out: 3 of 5 clips are also training clips (clips)" in " ".join(out.split())
        found: dict[str, Any] = json.loads((run / "report.json").read_text())["evaluation"]["held_out"]
        return found

    left_out = scores("evaluation.exclude_shared=[clip]")
    assert (left_out["num_utterances"], left_out["dropped"]) == (2, 3)
    first, *_ = left_out["shared_with_training"]
    assert (first["by"], first["num_shared"], first["excluded"]) == ("clip", 3, True)
    reasons = Counter(json.loads(line)["reason"] for line in (run / "dropped.jsonl").read_text().splitlines())
    assert reasons["shared_with_training"] == 3
    assert "they are not scored" in (run / "report.html").read_text()

    stated = scores("evaluation.max_compared_h=0")
    assert (stated["num_utterances"], stated["dropped"]) == (5, 0)
    assert "sound" in left_out["compared_with_training"]
    assert "sound" not in stated["compared_with_training"]
    assert stated["not_compared_with_training"].endswith("evaluation.max_compared_h is 0")

    code, _, err = call(*command, "evaluation.exclude_shared=[clip, speaker]", "--output-dir", run)
    assert code == 2
    assert "excludes all 5 clips" in err
