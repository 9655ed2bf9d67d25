"""Sets of the Open ASR Leaderboard: the set of chunked recordings, and the results file for the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from tiny_audio.config import UserError
from tiny_audio.evaluation.data import _sources
from tiny_audio.evaluation.leaderboard import GROUPS, RESULTS, SETS, chunked_manifest, write_results
from tiny_audio.runtime.spec import folder_name


def data_sets(folder: Path, parents: dict[str, str]) -> tuple[str, str]:
    """Write a data set of chunks, and one of whole recordings with the texts ``parents``. Return their folders."""
    rows = [
        {"file_name": f"{name}_{index}.wav", "parent_id": name, "chunk_index": index}
        for name in "ab"
        for index in (1, 0)
    ]
    for name, lines in (("chunks", rows), ("whole", [{"id": id, "transcript": text} for id, text in parents.items()])):
        (folder / name).mkdir()
        (folder / name / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "chunks"), str(folder / "whole")


def test_each_chunk_has_the_reference_of_its_recording(tmp_path: Path) -> None:
    path = chunked_manifest(*data_sets(tmp_path, {"a": "call a", "b": "call b"}), "test", tmp_path / "cache")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["parent_id"], row["chunk_index"], row["text"]) for row in rows] == [
        *(("a", "1", "call a"), ("a", "0", "call a"), ("b", "1", "call b"), ("b", "0", "call b"))
    ]
    assert rows[0]["audio_filepath"] == str(tmp_path / "chunks" / "audio" / "a_1.wav")


def test_a_recording_without_a_reference_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'b' has no reference"):
        chunked_manifest(*data_sets(tmp_path, {"a": "call a"}), "test", tmp_path)


def test_a_dataset_that_cannot_be_downloaded_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in (datasets.config, huggingface_hub.constants):  # otherwise, the hub's client would retry
        monkeypatch.setattr(settings, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"nobody/chunks and nobody/calls cannot be downloaded: .*; .*HF_HUB_OFFLINE"):
        chunked_manifest("nobody/chunks", "nobody/calls", "test", tmp_path)


def scores(*names: str, **changes: Any) -> dict[str, Any]:
    entry = {
        "normalizer": "open_asr_leaderboard",
        "normalizer_version": "rule 1",
        "num_failed": 0,
        "dropped": [],
        "scorer": "kaldialign",
        "scorer_version": "0.12.0",
    }
    return {folder_name(name): entry | {"wer": 0.01 * (index + 1)} | changes for index, name in enumerate(names)}


def test_results_have_the_format_of_the_hub(tmp_path: Path) -> None:
    names = [f"leaderboard/{name}" for name in GROUPS["leaderboard"]]
    path = write_results(scores(*names), tmp_path, "2026-11-28")
    assert path == tmp_path / RESULTS
    entries = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert {entry.task_id: entry.value for entry in entries} == {
        "librispeech_clean_wer": 4.0,
        "librispeech_other_wer": 5.0,
        "spgispeech_wer": 6.0,
        "mean_wer": 4.0,
    }
    assert {(entry.dataset_id, entry.date) for entry in entries} == {("hf-audio/open-asr-leaderboard", "2026-11-28")}
    assert all("rule 1, kaldialign 0.12.0" in str(entry.notes) for entry in entries)
    assert "leaderboard/ami_cleaned 1.0" in str(entries[0].notes)


@pytest.mark.parametrize(
    "found",
    [
        {"dev": {"normalizer": "open_asr_leaderboard", "wer": 0.1}},
        scores("leaderboard/spgispeech", normalizer="whisper_english"),
        scores("leaderboard/spgispeech", num_failed=1),  # the error rate does not include the failed clip
        scores("leaderboard/spgispeech", dropped=[{"id": "a", "reason": "undecodable", "detail": ""}]),
        scores("leaderboard/ami_cleaned"),  # has no task id, and the mean needs all seven sets
    ],
)
def test_there_is_no_results_file_without_leaderboard_scores(tmp_path: Path, found: dict[str, Any]) -> None:
    assert write_results(found, tmp_path, "2026-11-28") is None
    assert not (tmp_path / RESULTS).exists()


def test_a_set_with_replaced_fields_has_a_name_of_its_own(tmp_path: Path) -> None:
    (name, fields), *_ = _sources("leaderboard/ami:split=validation", tmp_path).items()
    assert fields["split"] == "validation"
    assert name not in {folder_name(each) for each in SETS}
    assert name.startswith("leaderboard-")  # empty references are left out only in sets with this prefix


def test_there_is_no_mean_of_only_some_sets(tmp_path: Path) -> None:
    path = write_results(scores("leaderboard/ami", "leaderboard/tedlium"), tmp_path, "2026-11-28")
    assert path is not None
    assert [entry["dataset"]["task_id"] for entry in yaml.safe_load(path.read_text())] == ["ami_wer", "tedlium_wer"]
