"""The table of metrics: each entry is shown in the terminal, in JSON, on HTML pages and in the model card."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.report_data import METRICS, REPORT, no_audio
from tests.analysis.systems import SET, make_rows, write_run
from tests.support.html import Page
from tiny_audio.analysis.compare import compare_folders
from tiny_audio.analysis.report import render_comparison, render_report, render_targets
from tiny_audio.analysis.rescore import rescore
from tiny_audio.analysis.scoring import metrics, normalizer, score, score_set
from tiny_audio.analysis.scoring.metrics import Metric, mean_over_seeds
from tiny_audio.analysis.tables import comparison_table, rescore_table
from tiny_audio.commands.console import sets_table
from tiny_audio.export.card import _scores as card_scores


def shortest(transcripts: metrics.Transcripts) -> int:
    return min(len(text.split()) for text in transcripts.hypotheses)


ADDED = Metric("shortest_hypothesis", "words of the shortest one", "shortest", "count", "higher", ",.0f", shortest)


@pytest.mark.parametrize("metric", [*(m for m in metrics.METRICS if m.key == "error_free_rate"), ADDED])
def test_a_metric_is_shown_everywhere(metric: Metric, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if metric not in metrics.METRICS:
        monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, metric))
    rows = make_rows(0.2)
    texts = [[row[key] for row in rows] for key in ("text", "pred_text")]
    scores = score_set(*texts, normalizer("lower"))
    assert metric.key in json.dumps(scores)
    report: dict[str, Any] = {**REPORT, "evaluation": {SET: scores}}
    runs = [write_run(tmp_path / name, made, None) for name, made in (("a", rows), ("b", make_rows(0.1)))]
    compared, rescored = compare_folders(runs), rescore([run / "evaluation" / f"{SET}.jsonl" for run in runs])
    for written in (compared.to_json()["sets"][SET]["variants"], rescored.summary["targets"]):
        assert all(metric.key in entry for entry in written)
    for text in (sets_table({SET: scores}), comparison_table(compared), rescore_table(rescored)):
        assert metric.short in text
    pages = (
        render_report(report, METRICS, {SET: rows}, no_audio),
        render_comparison(compared, no_audio),
        render_targets(rescored, no_audio),
    )
    for page in pages:
        assert any(mark.get("title") == metric.label for mark in Page(page).all("span"))
        assert metric.short in Page(page).words
    card = "\n".join(card_scores({SET: scores}))
    assert metric.short in card
    assert metric.label in card


def test_insertions_per_hour_are_scored_without_speech(tmp_path: Path) -> None:
    references, hypotheses = ["yes", "", " ", ""], ["yes no", "go on", "", "left"]
    rate = partial(score_set, references, hypotheses, normalizer("lower"))
    scores = rate(durations_s=[9.0, 10.0, 20.0, 6.0])
    assert scores["non_speech_insertions_per_hour"] == pytest.approx(3 / 36 * 3600)
    assert scores["insertions"] == 4
    assert rate()["non_speech_insertions_per_hour"] is None, "unknown durations"
    assert rate(durations_s=[None, 10.0, None, 6.0])["non_speech_insertions_per_hour"] is None
    assert score_set(["yes"], ["yes"], normalizer("lower"), durations_s=[1.0])["non_speech_insertions_per_hour"] is None
    silent = score_set(["", ""], ["one", ""], normalizer("lower"), ctc_hypotheses=["", ""], durations_s=[1.0, 1.0])
    assert (silent["wer"], silent["cer"], silent["wer_interval"]) == (None, None, None)
    assert silent["non_speech_insertions_per_hour"] == 1800
    assert silent["ctc"]["non_speech_insertions_per_hour"] == 0
    assert "1,800.0" in sets_table({"silence": silent})
    keys = ("audio_filepath", "duration", "text", "pred_text")
    rows = zip("abcd", [9.0, 10.0, 20.0, 6.0], references, hypotheses, strict=True)
    lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
    (tmp_path / "h.jsonl").write_text("\n".join(lines))
    rescored = rescore([tmp_path / "h.jsonl"])
    assert rescored.summary["targets"][0]["non_speech_insertions_per_hour"] == pytest.approx(300)
    assert "ins/h no speech" in rescore_table(rescored)


def test_keys_are_unique_and_values_can_be_formatted() -> None:
    keys = [metric.key for metric in metrics.METRICS]
    assert len(set(keys)) == len(keys) >= 8
    for metric in metrics.METRICS:
        assert metric.text(None) == ""
        assert metric.text(0)


def test_the_rate_of_utterances_without_errors_is_correct() -> None:
    found = score(["a b", "c", "", "d"], ["a b", "x", "", "d d"], normalizer("lower"))
    assert found.model_dump()["error_free_rate"] == 2 / 4


def test_seeds_are_averaged_and_counts_can_be_summed() -> None:
    seeds = [{"wer": 0.1, "deletions": 3}, {"wer": 0.2, "deletions": 4}]
    assert mean_over_seeds(seeds) == {"wer": pytest.approx(0.15), "deletions": 3.5}
    assert mean_over_seeds(seeds, total_counts=True) == {"wer": pytest.approx(0.15), "deletions": 7}
