"""One rule decides everywhere: the same hypotheses get the same verdict from every command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.analysis.systems import SET, MadeTarget, Row, data_set, make_rows, write_run
from tiny_audio.analysis.compare import compare_folders
from tiny_audio.analysis.comparison import Difference
from tiny_audio.analysis.rescore import rescore
from tiny_audio.analysis.scoring import normalizer
from tiny_audio.commands.bench.analysis import Outcome, Scoring, analyze
from tiny_audio.evaluation.harness import evaluate_targets

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
    return list(analyze(outcomes, next(iter(systems)), Scoring(RULE, 2000, group_by)).differences.values())


def by_evaluate(systems: Systems, group_by: str | None, folder: Path) -> Sequence[Difference]:
    targets = [MadeTarget(name, rows) for name, rows in systems.items()]
    clips = [data_set(next(iter(systems.values())))]
    found = evaluate_targets(targets, clips, folder, RULE, group_by=group_by, note=print, failed=print)
    return found.comparisons[SET].differences


@pytest.mark.parametrize("group_by", [None, "speaker"])
def test_the_same_hypotheses_get_the_same_verdict_everywhere(group_by: str | None, tmp_path: Path) -> None:
    systems: Systems = {
        "base": make_rows(0.2),
        "better": make_rows(0.02),
        "worse": make_rows(0.5),
        "alike": make_rows(0.21),
    }
    if group_by is None:  # without a recipe, speakers are the units where they are known
        for rows in systems.values():
            for row in rows:
                row["metadata"] = {}
    found = []
    for number, command in enumerate((by_compare, by_rescore, by_bench, by_evaluate)):
        (tmp_path / str(number)).mkdir()
        found.append(list(command(systems, group_by, tmp_path / str(number))))
    assert [entry.verdict for entry in found[0]] == ["better", "worse", "no difference shown"]
    for others in found[1:]:
        assert others == found[0]


def test_the_family_is_everything_that_a_command_compares(tmp_path: Path) -> None:
    base, other = make_rows(0.2), make_rows(0.1)
    (alone,) = by_rescore({"base": base, "other": other}, "speaker", tmp_path)
    among = by_rescore({"base": base, "other": other, "again": base, "more": base}, "speaker", tmp_path)
    assert (alone.p_adjusted, alone.p_value) == (among[0].p_value, among[0].p_value)
    assert among[0].p_adjusted == pytest.approx(3 * alone.p_value)
    assert among[0].interval == alone.interval  # it belongs to its own comparison


def test_mapsswe_decides_nothing(tmp_path: Path) -> None:
    """Three speakers, all in favor of one: its 100 segments are sure of it, three coins are not."""
    systems: Systems = {"base": make_rows(0.4, num_speakers=3), "other": make_rows(0.02, num_speakers=3)}
    (entry,) = by_rescore(systems, "speaker", tmp_path)
    assert entry.mapsswe is not None
    assert entry.mapsswe.p_value < 1e-6
    assert entry.p_value == pytest.approx(0.25, abs=0.02)
    assert entry.verdict == "no difference shown"
