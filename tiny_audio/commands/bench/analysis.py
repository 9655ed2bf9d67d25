"""From the hypotheses of every variant and seed to rates, differences and verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from tiny_audio.analysis.scoring import Normalizer, align, loops
from tiny_audio.analysis.significance import difference_interval, difference_p_value, holm, mean_wer, wer_interval
from tiny_audio.evaluation import Hypothesis

SIGNIFICANT = 0.05
TIE = "no difference shown"
AGAIN: Final = "again"
"""Kind of the control that trains the baseline once more, under other seeds."""
CRIPPLED: Final = "crippled"
"""Kind of the controls that are made worse on purpose."""


Control = Literal["again", "crippled"]


@dataclass(frozen=True)
class Outcome:
    """What one variant came to, over its seeds."""

    label: str
    section: Mapping[str, Any]
    control: Control | None
    """None is a variant that is compared."""
    results: Sequence[Mapping[str, Any]]
    """One for each seed: ``seed, parameters, embeddings_per_s, steps, train_s, skipped_steps, curve``."""
    hypotheses: Sequence[Mapping[str, Sequence[Hypothesis]]]
    """For each seed, the rows of every set; the same utterances in the same order everywhere."""


@dataclass(frozen=True)
class Scoring:
    """How errors are counted and resampled."""

    normalizer: Normalizer
    num_draws: int
    group_by: str | None


def analyze(outcomes: Sequence[Outcome], baseline: str, scoring: Scoring) -> dict[str, Any]:
    """Compare every variant with the baseline on every set.

    p-values are corrected over all comparisons of the variants together, and over those of the controls together.

    Returns:
        ``variants``, ``comparisons`` and ``controls``, as in ``results.json``.
    """
    counted = {outcome.label: _count(outcome, scoring.normalizer) for outcome in outcomes}
    names = list(outcomes[0].hypotheses[0])
    groups = {name: _groups(outcomes[0].hypotheses[0][name], scoring.group_by) for name in names}
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        for name in names if outcome.label != baseline else ():
            (before, words), (after, _) = counted[baseline][name], counted[outcome.label][name]
            rows.append(
                {
                    "label": outcome.label,
                    "set": name,
                    "control": outcome.control,
                    "difference": mean_wer(after, words) - mean_wer(before, words),
                    "interval": difference_interval(
                        before, after, words, groups=groups[name], num_draws=scoring.num_draws
                    ),
                    "p_value": difference_p_value(before, after, words, groups=groups[name]),
                }
            )
    for family in (
        [row for row in rows if row["control"] is None],
        [row for row in rows if row["control"] is not None],
    ):
        for row, p_value in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row["p_holm"] = p_value
            better = "better" if row["difference"] < 0 else "worse"
            row["verdict"] = better if p_value < SIGNIFICANT else TIE
    return {
        "variants": [_summary(outcome, counted[outcome.label], groups, scoring) for outcome in outcomes],
        "comparisons": rows,
        "controls": [_check(outcome, rows) for outcome in outcomes if outcome.control is not None],
    }


def _count(outcome: Outcome, normalizer: Normalizer) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Of each set: errors ``[S, U]`` and reference words ``[U]``."""
    counted = {}
    for name, rows in outcome.hypotheses[0].items():
        references = [row["text"] for row in rows]
        errors = []
        for one in outcome.hypotheses:
            assert [row["id"] for row in one[name]] == [row["id"] for row in rows], "units decode the same clips"
            alignments = align(references, [row["pred_text"] for row in one[name]], normalizer)
            errors.append([alignment.errors for alignment in alignments])
        words = [alignment.num_reference_words for alignment in alignments]
        counted[name] = np.array(errors), np.array(words)
    return counted


def _groups(rows: Sequence[Hypothesis], column: str | None) -> list[str | None] | None:
    return None if column is None else [row["metadata"].get(column) for row in rows]


def _summary(
    outcome: Outcome,
    counted: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
    groups: Mapping[str, Sequence[str | None] | None],
    scoring: Scoring,
) -> dict[str, Any]:
    sets = {}
    for name, (errors, words) in counted.items():
        texts = [(row["text"], row["pred_text"]) for one in outcome.hypotheses for row in one[name]]
        sets[name] = {
            "wer": mean_wer(errors, words),
            "interval": wer_interval(errors, words, groups=groups[name], num_draws=scoring.num_draws),
            "by_seed": [float(row.sum() / words.sum()) for row in errors],
            "num_utterances": len(words),
            "num_reference_words": int(words.sum()),
            "empty_hypotheses": sum(bool(said.strip()) and not heard.strip() for said, heard in texts),
            "looping_hypotheses": sum(loops(heard) and not loops(said) for said, heard in texts),
            "truncated_hypotheses": sum(row["truncated"] for one in outcome.hypotheses for row in one[name]),
        }
    results = outcome.results
    return {
        "label": outcome.label,
        "section": dict(outcome.section),
        "control": outcome.control,
        "parameters": results[0]["parameters"],
        "embeddings_per_s": results[0]["embeddings_per_s"],
        "train_s": statistics.mean(result["train_s"] for result in results),
        "steps": [result["steps"] for result in results],
        "seeds": [result["seed"] for result in results],
        "sets": sets,
        "curves": [result["curve"] for result in results],
    }


def _check(outcome: Outcome, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    expected = TIE if outcome.control == AGAIN else "worse"
    found = {row["set"]: row["verdict"] for row in rows if row["label"] == outcome.label}
    held = all(verdict == expected for verdict in found.values())
    return {"label": outcome.label, "kind": outcome.control, "expected": expected, "found": found, "held": held}
