"""The wording of messages about scoring and comparing. Other tests check the values in them.

To regenerate ``messages.txt``: ``REGENERATE=1 pytest tests/analysis/test_messages.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.systems import SET, Row, make_rows, write_run
from tests.support.golden import check_golden
from tiny_audio.analysis.compare import compare_folders
from tiny_audio.analysis.rescore import rescore
from tiny_audio.analysis.scoring import align, normalizer, score
from tiny_audio.analysis.tables import comparison_table, rescore_table
from tiny_audio.config import UserError

LOWER = normalizer("lower")


def edited(edit: Callable[[int, Row], None]) -> list[Row]:
    rows = make_rows(0.1, size=12)
    for number, row in enumerate(rows):
        edit(number, row)
    return rows


def refusals(folder: Path) -> Iterator[Callable[[], object]]:
    """Yield calls that fail. Calls with similar errors come one after the other."""
    yield lambda: score([], [], LOWER)
    yield lambda: score(["a"], ["a", "b"], LOWER)
    yield lambda: score(["a"], ["a"], LOWER, num_bootstrap=10)
    yield lambda: score(["..."], ["a"], normalizer("basic"))
    yield lambda: align(["a"], ["a"], LOWER, cost="nist")  # type: ignore[arg-type]
    yield lambda: normalizer("upper")  # type: ignore[arg-type]

    contents: dict[str, Any] = {
        "text": "hello\n",
        "empty": "\n",
        "field": '{"id": "x", "text": "a"}\n',
        "type": '{"id": "x", "text": "a", "pred_text": 3}\n',
        "seconds": '{"id": "x", "text": "a", "pred_text": "a", "duration": "3 s"}\n',
        "twice": '{"id": "x", "text": "a", "pred_text": "a"}\n' * 2,
        "failed": '{"id": "x", "text": "a", "error": "timeout"}\n',
        "silent": '{"id": "x", "text": "<noise>", "pred_text": "a"}\n',
        "good": "".join(json.dumps(row) + "\n" for row in make_rows(0.1, size=12)),
        "other": "".join(
            json.dumps(row) + "\n"
            for row in edited(lambda number, row: row.update(text="another" if number == 3 else row["text"]))
        ),
    }
    files = {name: folder / f"{name}.jsonl" for name in contents}
    for name, content in contents.items():
        files[name].write_text(content)
    for name in ("text", "empty", "field", "type", "seconds", "twice", "failed", "silent"):
        yield lambda name=name: rescore([files[name]])  # type: ignore[misc]
    yield lambda: rescore([folder / "none.jsonl"])
    yield lambda: rescore([files["good"], files["good"]])
    yield lambda: rescore([files["good"], files["failed"]])
    yield lambda: rescore([files["good"], files["other"]])
    yield lambda: rescore([files["good"]], group_by="room")

    def run(name: str, edit: Callable[[int, Row], None] = lambda number, row: None, **settings: Any) -> Path:
        return write_run(folder / name, edited(edit), settings.pop("group_by", None), **settings)

    base = run("base")
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "state.json").write_text("{}")
    yield lambda: compare_folders([base])
    yield lambda: compare_folders([base, folder / "none"])
    yield lambda: compare_folders([base, folder])
    yield lambda: compare_folders([base, folder / "unfinished"])
    yield lambda: compare_folders([base, base], set_name="held_ot")
    yield lambda: compare_folders([base, base], group_by="room")
    changed = run("changed", lambda number, row: row.update(text="another" if number == 3 else row["text"]))
    longer = run("longer", lambda number, row: row.update(duration=3.0 if number == 4 else 2.0))
    yield lambda: compare_folders([base, changed])
    yield lambda: compare_folders([base, longer])
    yield lambda: compare_folders([run("grouped", group_by="speaker"), run("regrouped", group_by="room")])
    other = run("other_rules", normalizer="none")
    yield lambda: compare_folders([base, other])


def test_messages(tmp_path: Path) -> None:
    lines = ["# Refusals", ""]
    for call in refusals(tmp_path):
        with pytest.raises(UserError) as caught:
            call()
        lines += [f"error: {caught.value}".replace(str(tmp_path), "/path"), ""]
    lines += ["# tiny-audio compare", "", comparison_table(compare_folders(shown(tmp_path))), ""]
    files = [folder / "evaluation" / f"{SET}.jsonl" for folder in shown(tmp_path)]
    found = rescore(files, normalizer_name="lower")
    text = re.sub(r"jiwer [\d.]+", "jiwer VERSION", rescore_table(found))
    lines += ["# tiny-audio rescore", "", text, ""]
    check_golden(Path(__file__).with_name("messages.txt"), "\n".join(lines))


def shown(folder: Path) -> list[Path]:
    """Return two runs with only four speakers, so that the output contains the warning about too few groups."""
    rates = {"small": 0.3, "large": 0.05}
    folders = [folder / "shown" / name for name in rates]
    for each, rate in zip(folders, rates.values(), strict=True):
        if not each.exists():
            write_run(each, make_rows(rate, size=60, num_speakers=4), "speaker")
    return folders
