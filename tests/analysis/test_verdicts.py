"""All commands use the same rule: the same hypotheses get the same verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.analysis.systems import SET, MadeTarget, Row, data_set, make_rows, write_run
from tiny_audio.analysis.compare import compare_folders
from tiny_audio.analysis.comparison import Difference, units_column
from tiny_audio.analysis.rescore import rescore
from tiny_audio.analysis.scoring import normalizer
from tiny_audio.commands.bench.analysis import Outcome, Scoring, analyze
from tiny_audio.config import UserError
from tiny_audio.data.clips import Clip
from tiny_audio.evaluation.harness import evaluate_targets, evaluation_table
from tiny_audio.evaluation.targets import Outcome as Transcribed

RULE = normalizer("lower")
Systems = dict[str, Sequence[Row]]


def by_compare(systems: Systems, group_by: str | None, folder: Path) -> Sequence[Difference]:
    runs = [write_run(folder / name, rows, group_by) for name, rows in systems.items()]
    return compare_folders(runs).sets[SET].comparison.differences


def by_rescore(systems: Systems, group_by: str | None, folder: Path) -> Sequence[Difference]:
    paths = []
    for name, rows in systems.items():
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rescore(paths, normalizer_name="lower", group_by=group_by).comparison.differences


def by_bench(systems: Systems, group_by: str | None, folder: Path) -> Sequence[Difference]:
    result = {"parameters": 1, "embeddings_per_s": 1.0, "train_s": 1.0, "curve": [], "seed": 0, "steps": 1}
    outcomes = [Outcome(name, {}, None, [result], [{SET: rows}]) for name, rows in systems.items()]
    return list(analyze(outcomes, next(iter(systems)), Scoring(RULE, group_by)).differences.values())


def by_evaluate(systems: Systems, group_by: str | None, folder: Path) -> Sequence[Difference]:
    targets = [MadeTarget(name, rows) for name, rows in systems.items()]
    clips = [data_set(next(iter(systems.values())))]
    found = evaluate_targets(targets, clips, folder, RULE, group_by=group_by, note=print, failed=print)
    return found.comparisons[SET].differences


def everywhere(systems: Systems, group_by: str | None, folder: Path) -> Sequence[Difference]:
    """Return the differences that every command finds, and check that they are equal."""
    found = []
    for command in (by_compare, by_rescore, by_bench, by_evaluate):
        folder_of = folder / command.__name__
        folder_of.mkdir(parents=True)
        found.append(list(command(systems, group_by, folder_of)))
    assert found[1:] == found[:1] * 3
    return found[0]


def with_speakers(systems: Systems, speaker: Callable[[int], str | None]) -> Systems:
    return {
        name: [{**row, "metadata": {"speaker": speaker(index), "room": "r"}} for index, row in enumerate(rows)]
        for name, rows in systems.items()
    }


@pytest.mark.parametrize("group_by", [None, "speaker"])
def test_the_same_hypotheses_get_the_same_verdict_everywhere(group_by: str | None, tmp_path: Path) -> None:
    systems: Systems = {
        "base": make_rows(0.2),
        "better": make_rows(0.02),
        "worse": make_rows(0.5),
        "alike": make_rows(0.21),
    }
    found = everywhere(systems, group_by, tmp_path)
    assert [entry.verdict for entry in found] == ["better", "worse", "no difference shown"]


def test_sets_without_speech_have_no_verdict_anywhere(tmp_path: Path) -> None:
    rows = make_rows(0.2)[:6]
    systems: Systems = {
        "base": [{**row, "text": "", "pred_text": ""} for row in rows],
        "talkative": [{**row, "text": "", "pred_text": "thank you"} for row in rows],
    }
    assert everywhere(systems, None, tmp_path) == []


def test_by_default_speakers_are_resampled_if_every_utterance_has_one(tmp_path: Path) -> None:
    """If three speakers are resampled, no difference is significant. If 120 clips are resampled, some are."""
    systems: Systems = {"base": make_rows(0.4), "other": make_rows(0.02)}
    cases: dict[str, tuple[Callable[[int], str | None], str]] = {
        "three": (lambda index: f"s{index % 3}", "no difference shown"),
        "one": (lambda index: "s", "better"),
        "unknown": (lambda index: None, "better"),
        "partly unknown": (lambda index: f"s{index % 3}" if index else None, "better"),
    }
    for name, (speaker, verdict) in cases.items():
        (entry,) = everywhere(with_speakers(systems, speaker), None, tmp_path / name)
        assert entry.verdict == verdict, name


def test_the_users_group_column_has_priority_over_the_recipes(tmp_path: Path) -> None:
    rows = make_rows(0.2, num_speakers=3)
    assert units_column(rows, None) == "speaker"
    assert units_column(rows, None, [None, None]) == "speaker"
    assert units_column(rows, None, ["room", None, "room"]) == "room"
    assert units_column(rows, "accent", ["room", "speaker"]) == "accent"
    with pytest.raises(UserError, match="room and speaker"):
        units_column(rows, None, ["speaker", "room"])


def test_all_comparisons_of_a_command_are_corrected_together(tmp_path: Path) -> None:
    base, other = make_rows(0.2), make_rows(0.1)
    (alone,) = by_rescore({"base": base, "other": other}, "speaker", tmp_path)
    among = by_rescore({"base": base, "other": other, "again": base, "more": base}, "speaker", tmp_path)
    assert (alone.p_adjusted, alone.p_value) == (among[0].p_value, among[0].p_value)
    assert among[0].p_adjusted == pytest.approx(3 * alone.p_value)
    assert among[0].interval == alone.interval  # an interval does not depend on the other comparisons


def test_mapsswe_does_not_affect_the_verdict(tmp_path: Path) -> None:
    """Three speakers cannot show a difference, but MAPSSWE with 100 segments has a small p-value."""
    systems: Systems = {"base": make_rows(0.4, num_speakers=3), "other": make_rows(0.02, num_speakers=3)}
    (entry,) = by_rescore(systems, "speaker", tmp_path)
    assert entry.mapsswe is not None
    assert entry.mapsswe.p_value < 1e-6
    assert entry.p_value == pytest.approx(0.25, abs=0.02)
    assert entry.verdict == "no difference shown"


def test_targets_that_fail_on_different_clips_are_reported(tmp_path: Path) -> None:
    """Both targets transcribe the same number of clips, but not the same clips."""

    class Failing(MadeTarget):
        fails = ""

        def transcribe(self, clips: Sequence[Clip]) -> Iterator[Transcribed]:
            for outcome in super().transcribe(clips):
                failed = outcome.clip.id == self.fails
                yield Transcribed(outcome.clip, None, None, "timeout") if failed else outcome

    rows = make_rows(0.2, size=4)
    note = f"{SET}: the targets transcribed different clips"
    for name, fails, is_noted in (("same", (0, 0), False), ("different", (0, 1), True)):
        targets = [Failing(label, rows) for label in ("a", "b")]
        for target, index in zip(targets, fails, strict=True):
            target.fails = rows[index]["id"]
        found = evaluate_targets(
            targets, [data_set(rows)], tmp_path / name, RULE, group_by=None, note=print, failed=print
        )
        assert (note in evaluation_table(found)) is is_noted
