"""Overlaps of evaluation sets with training data: shared clips, recordings, speakers and texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_clips
from tiny_audio.analysis.warnings import Overlap
from tiny_audio.data.clips import Clips, ClipSet
from tiny_audio.data.overlap import Shared, find_overlaps
from tiny_audio.sources import SOURCES, SourceContext


def rows_of(manifest: Path, **metadata: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "speaker"} | metadata for row in rows]


def clips(folder: Path, rows: list[dict[str, Any]], name: str, **mixed: Any) -> Clips:
    """Return the clips of a manifest with these rows. If ``mixed`` is given, a source ``mix`` reads the manifest."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source: dict[str, Any] = {"name": "manifest", "path": str(path)}
    if mixed:
        source = {"name": "mix", "sources": {"inner": {"source": source, **mixed}}}
    built = SOURCES.build(SOURCES.parse(source), SourceContext(folder / "cache"))
    return ClipSet.gather({name: built}, 0.0, 60.0).clips


def others(found: Shared) -> list[Overlap]:
    """Return all overlaps except those of texts, because many of the small sets in these tests share texts."""
    return [overlap for overlap in found.comparison.overlaps if overlap.by != "text"]


def test_the_same_files_are_found_by_any_path(tmp_path: Path) -> None:
    rows = rows_of(write_clips(tmp_path / "audio", 6))
    training = clips(tmp_path / "audio", rows, "train", weight=2.0)
    (tmp_path / "link").symlink_to(tmp_path / "audio")
    linked = [row | {"audio_filepath": str(tmp_path / "link" / row["audio_filepath"])} for row in rows[:2]]
    shutil.copytree(tmp_path / "audio", tmp_path / "other")
    up = [row | {"audio_filepath": f"link/../audio/{row['audio_filepath']}"} for row in rows]
    sets = {
        "linked": clips(tmp_path, linked, "linked"),
        "up": clips(tmp_path, up, "up"),
        "other": clips(tmp_path / "other", rows, "other"),
    }
    found = find_overlaps(training, sets)
    first = tuple(clip.id for clip in sets["linked"])
    assert others(found["linked"]) == [Overlap("clip", 2, 2, ("train",), first)]
    assert [(one.by, one.num_shared, len(one.examples)) for one in others(found["up"])] == [("clip", 6, 3)]
    assert others(found["other"]) == []


@pytest.mark.parametrize(
    ("by", "training", "evaluation"),
    [
        ("speaker", {"speaker": "anna"}, {"client_id": "anna"}),
        ("recording", {"audio_id": "POD7", "speaker": "x"}, {"recording_id": "POD7", "speaker": "y"}),
        ("recording", {"session": "s1", "speaker": "x"}, {"session": "s1", "speaker": "x"}),
    ],
)
def test_columns_are_compared(tmp_path: Path, by: str, training: dict[str, str], evaluation: dict[str, str]) -> None:
    known = rows_of(write_clips(tmp_path / "a", 3), **training)
    rows = rows_of(write_clips(tmp_path / "b", 4), **evaluation)
    rows[0] |= dict.fromkeys(evaluation, "new")
    found = find_overlaps(clips(tmp_path / "a", known, "train"), {"test": clips(tmp_path / "b", rows, "test")})
    (overlap,) = others(found["test"])
    assert by in found["test"].comparison.compared
    assert (overlap.by, overlap.num_shared, overlap.num_clips) == (by, 3, 4)
    assert overlap.examples == (next(iter(evaluation.values())),)
    assert overlap.training_sets == ("train",)


def test_a_shared_clip_is_counted_once(tmp_path: Path) -> None:
    rows = rows_of(write_clips(tmp_path, 4), speaker="anna")
    found = find_overlaps(clips(tmp_path, rows[:2], "train"), {"test": clips(tmp_path, rows, "test")})
    assert [(one.by, one.num_shared) for one in others(found["test"])] == [("clip", 2), ("speaker", 2)]


def test_texts_are_compared_separately(tmp_path: Path) -> None:
    known = rows_of(write_clips(tmp_path / "a", 4))
    rows = rows_of(write_clips(tmp_path / "b", 4))
    for row, text in zip(known, ("Yes  sir", "no", "never", "no"), strict=True):
        row["text"] = text
    for row, text in zip(rows, ("yes SIR", "maybe", "no", "No"), strict=True):
        row["text"] = text
    found = find_overlaps(clips(tmp_path / "a", known, "train"), {"test": clips(tmp_path / "b", rows, "test")})
    assert [(one.by, one.num_shared) for one in found["test"].comparison.overlaps] == [("text", 3)]
    assert found["test"].comparison.compared == ("clip", "text")


def test_shared_clips_can_be_excluded(tmp_path: Path) -> None:
    rows = rows_of(write_clips(tmp_path, 4), speaker="anna")
    found = find_overlaps(
        clips(tmp_path, rows[:2], "train"),
        {"test": clips(tmp_path, rows, "test")},
        {"test": {2: "train"}},
        excluded=["sound", "clip"],
    )
    comparison = found["test"].comparison
    assert found["test"].excluded == {0, 1, 2}
    assert [(one.by, one.num_shared, one.excluded) for one in comparison.overlaps if one.by != "text"] == [
        ("clip", 2, True),
        ("sound", 1, True),
        ("speaker", 1, False),
    ]
    assert comparison.compared == ("clip", "sound", "speaker", "text")
    # Excluded clips with a shared text are not counted a second time.
    assert sum(one.num_shared for one in comparison.overlaps if one.by == "text") <= 1


def test_clips_that_share_several_properties_are_excluded_by_each(tmp_path: Path) -> None:
    """All six evaluation clips have the speaker of the training clips, and two of the six are training clips."""
    rows = rows_of(write_clips(tmp_path, 6), speaker="anna")
    sets = clips(tmp_path, rows[:2], "train"), {"test": clips(tmp_path, rows, "test")}
    found = find_overlaps(*sets, excluded=["speaker"])["test"]
    assert found.excluded == set(range(6))
    # Excluded clips are not counted as clips with a shared text.
    assert [(one.by, one.num_shared, one.excluded) for one in found.comparison.overlaps] == [("speaker", 6, True)]
    found = find_overlaps(*sets, excluded=["clip"])["test"]
    assert found.excluded == {0, 1}
    assert [(one.by, one.num_shared, one.excluded) for one in others(found)] == [
        ("clip", 2, True),
        ("speaker", 4, False),
    ]
