"""``tiny-audio cut``: the excerpts of clips and their manifest, and errors that leave no files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from tests.commands.conftest import Output
from tests.conftest import write_clips
from tiny_audio.evaluation.data import read_data
from tiny_audio.training import excerpts


@pytest.fixture(autouse=True)
def any_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept alignments with low confidence, because the test models have random weights."""
    monkeypatch.setattr(excerpts, "_LEAST_CONFIDENCE", 0.0)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write_clips(tmp_path, 6)
    return tmp_path / "manifest.jsonl"


def test_excerpts_are_written_as_a_manifest(call: Output, place: Path, manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "excerpts"
    with manifest.open("a") as rows:
        rows.write('{"audio_filepath": "nowhere.wav", "text": "lost"}\n')
    code, out, err = call("cut", place / "model", "--data", manifest, "--output-dir", folder, "--num-clips", 12)
    assert code == 0
    assert "clips that cannot be used: 1 (audio_missing 1)" in err
    assert "nowhere.wav" in err
    assert f"{folder / 'train.jsonl'}: 12 excerpts" in out
    assert "of 6 clips" in out
    assert f"data.train.excerpts.path={folder / 'train.jsonl'}" in out
    assert "12 of 12 excerpts" in err
    (read,) = read_data([str(folder / "train.jsonl")], None)
    assert len(read.clips) == 12
    words = set(" ".join(json.loads(line)["text"] for line in manifest.read_text().splitlines()).split())
    for clip in read.clips:
        assert set(clip.utterance.text.split()) <= words
        assert soundfile.info(clip.utterance.audio_file()).duration == pytest.approx(clip.utterance.duration_s)
    assert {path.name for path in folder.parent.iterdir()} == {"excerpts"}


def test_more_excerpts_do_not_change_the_first_ones(call: Output, place: Path, manifest: Path, tmp_path: Path) -> None:
    rows = []
    for name, count in (("few", 3), ("default", None)):
        number = [] if count is None else ["--num-clips", count]
        assert call("cut", place / "model", "--data", manifest, "--output-dir", tmp_path / name, *number)[0] == 0
        rows.append((tmp_path / name / "train.jsonl").read_text().splitlines())
    assert len(rows[1]) == 6
    assert rows[1][:3] == rows[0]


def test_excerpts_keep_no_offset(call: Output, place: Path, manifest: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    table = "".join(f"{row['audio_filepath']},{row['text']},2.5,{row['speaker']}\n" for row in rows)
    (tmp_path / "metadata.csv").write_text(f"file_name,text,offset,speaker\n{table}")
    folder = tmp_path / "excerpts"
    assert call("cut", place / "model", "--data", f"folder:path={tmp_path}", "--output-dir", folder)[0] == 0
    (read,) = read_data([str(folder / "train.jsonl")], None)
    assert (len(read.clips), read.dropped) == (6, ())
    assert all("speaker" in clip.utterance.metadata for clip in read.clips)


def test_mistakes(call: Output, place: Path, manifest: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    code, _, err = call("cut", place / "model", "--data", manifest, "--output-dir", full)
    assert code == 2
    assert f"{full} exists already; delete it, or give another --output-dir" in err
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    code, _, err = call("cut", place / "headless", "--data", manifest, "--output-dir", tmp_path / "none")
    assert (code, "no CTC head" in err) == (2, True)
    (tmp_path / "silent.jsonl").write_text('{"audio_filepath": "clip000.wav", "text": ""}\n')
    code, _, err = call("cut", place / "model", "--data", tmp_path / "silent.jsonl", "--output-dir", tmp_path / "none")
    assert (code, "no clip has a transcript" in err) == (2, True)
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_reported(
    call: Output, place: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise soundfile.LibsndfileError(2, "no space: ")

    monkeypatch.setattr(soundfile, "write", fail)
    before = set(tmp_path.iterdir())
    code, _, err = call("cut", place / "model", "--data", manifest, "--output-dir", tmp_path / "none")
    assert code == 2
    assert f"{tmp_path / 'none'} cannot be written: no space" in err
    assert set(tmp_path.iterdir()) == before


def test_metadata_of_all_joined_clips_is_kept(call: Output, place: Path, manifest: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines = [json.dumps(row | {"speaker": "ann", "offset": 0.0, "room": str(index)}) for index, row in enumerate(rows)]
    (tmp_path / "spoken.jsonl").write_text("\n".join(lines))
    folder = tmp_path / "excerpts"
    assert call("cut", place / "model", "--data", tmp_path / "spoken.jsonl", "--output-dir", folder)[0] == 0
    made = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert {row["speaker"] for row in made} == {"ann"}
    assert 0 < sum("room" in row for row in made) < len(made)
    (read,) = read_data([str(folder / "train.jsonl")], None)
    assert (len(read.clips), read.dropped) == (len(made), ())


def test_a_failure_leaves_no_files(
    call: Output, place: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(excerpts, "_LEAST_CONFIDENCE", 1.1)
    before = set(tmp_path.iterdir())
    code, _, err = call("cut", place / "model", "--data", manifest, "--output-dir", tmp_path / "none")
    assert code == 2
    assert "100 random clips cannot be cut between words" in err
    assert set(tmp_path.iterdir()) == before
