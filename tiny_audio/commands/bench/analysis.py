"""Compute error rates, their differences, and verdicts from the hypotheses of all variants and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tiny_audio.analysis.comparison import (
    NUM_DRAWS,
    TIE,
    AlignedSet,
    Difference,
    Rates,
    System,
    compare_sets,
    units_column,
)
from tiny_audio.analysis.scoring import Normalizer, Transcripts
from tiny_audio.analysis.scoring.metrics import mean_over_seeds
from tiny_audio.evaluation.hypotheses import Hypothesis

AGAIN: Final = "again"
"""Control: the baseline, trained again with other seeds. The comparison should show no difference."""
DEGRADED: Final = "degraded"
"""Control: a variant that is degraded on purpose. The comparison should find it worse than the baseline."""

Control = Literal["again", "degraded"]


@dataclass(frozen=True)
class Outcome:
    """Results of one variant, for each seed."""

    label: str
    section: Mapping[str, Any]
    """The ``projector`` section of the variant's recipe."""
    control: Control | None
    results: Sequence[Mapping[str, Any]]
    """For each seed: ``seed, parameters, embeddings_per_s, steps, train_s, skipped_steps, curve``."""
    hypotheses: Sequence[Mapping[str, Sequence[Hypothesis]]]
    """For each seed, the hypotheses of each set. All seeds have the same utterances in the same order."""


@dataclass(frozen=True)
class Scoring:
    """Settings for scoring."""

    normalizer: Normalizer
    group_by: str | None
    """``evaluation.group_by`` of the recipe."""
    num_draws: int = NUM_DRAWS
    """Number of bootstrap resamples for each interval."""


@dataclass(frozen=True)
class Analysis:
    """The error rates of all variants, and their differences from the baseline."""

    outcomes: Sequence[Outcome]
    rates: Mapping[tuple[str, str], Rates]
    """Error rates by label and set."""
    differences: Mapping[tuple[str, str], Difference]
    """Differences from the baseline, by label and set. The baseline itself has no entry."""
    columns: Mapping[str, str | None]
    """For each set, the metadata column that groups utterances, such as ``speaker``. Intervals and tests resample whole
    groups, or single utterances if the column is None."""

    def to_json(self) -> dict[str, Any]:
        """Return the part of ``results.json`` with ``group_by``, ``variants``, ``comparisons`` and ``controls``."""
        columns = set(self.columns.values())
        controls = [outcome for outcome in self.outcomes if outcome.control is not None]
        return {
            "group_by": columns.pop() if len(columns) == 1 else None,
            "variants": [self._variant(outcome) for outcome in self.outcomes],
            "comparisons": [
                {
                    "label": outcome.label,
                    "set": name,
                    "control": outcome.control,
                    "group_by": self.columns[name],
                    **entry.to_benchmark(),
                }
                for outcome in self.outcomes
                for (label, name), entry in self.differences.items()
                if label == outcome.label
            ],
            "controls": [self._control(outcome) for outcome in controls],
        }

    def _variant(self, outcome: Outcome) -> dict[str, Any]:
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
            "sets": {name: self._set(outcome, name) for name in outcome.hypotheses[0]},
            "curves": [result["curve"] for result in results],
        }

    def _set(self, outcome: Outcome, name: str) -> dict[str, Any]:
        """Return the scores of a set.

        Rates are means over seeds. Counts, such as substitutions and truncated hypotheses, are totals over seeds. The
        numbers of utterances and reference words are those of one seed.
        """
        rates, rows = self.rates[outcome.label, name], [row for seed in outcome.hypotheses for row in seed[name]]
        return {
            **mean_over_seeds(rates.metrics, total_counts=True),
            "wer": rates.wer,
            "interval": rates.interval,
            "by_seed": list(rates.by_seed),
            "num_utterances": len(outcome.hypotheses[0][name]),
            "num_reference_words": rates.num_reference_words,
            "truncated_hypotheses": sum(row["truncated"] for row in rows),
        }

    def _control(self, outcome: Outcome) -> dict[str, Any]:
        expected = TIE if outcome.control == AGAIN else "worse"
        found = {name: entry.verdict for (label, name), entry in self.differences.items() if label == outcome.label}
        held = bool(found) and all(verdict == expected for verdict in found.values())
        return {"label": outcome.label, "kind": outcome.control, "expected": expected, "found": found, "held": held}


def analyze(outcomes: Sequence[Outcome], baseline: str, scoring: Scoring) -> Analysis:
    """Compare every variant with the baseline on every set.

    :mod:`tiny_audio.analysis.comparison` describes the rule for the verdicts. Variants and controls are separate
    families in Holm's correction for multiple comparisons.
    """
    systems = {outcome.label: _systems(outcome, scoring.normalizer) for outcome in outcomes}
    families = [
        [
            outcome.label
            for outcome in outcomes
            if (outcome.control is not None) is control and outcome.label != baseline
        ]
        for control in (False, True)
    ]
    rows_of = outcomes[0].hypotheses[0]
    columns = {name: units_column(rows, None, [scoring.group_by]) for name, rows in rows_of.items()}
    rates: dict[tuple[str, str], Rates] = {}
    differences: dict[tuple[str, str], Difference] = {}
    for labels in families if families[1] else families[:1]:
        sets = {
            name: AlignedSet([systems[label][name] for label in (baseline, *labels)], rows, columns[name])
            for name, rows in rows_of.items()
        }
        for name, compared in compare_sets(sets, num_draws=scoring.num_draws).items():
            rates |= {(entry.name, name): entry for entry in compared.rates}
            differences |= {(entry.name, name): entry for entry in compared.differences}
    return Analysis(outcomes, rates, differences, columns)


def _systems(outcome: Outcome, normalizer: Normalizer) -> dict[str, System]:
    """Return a :class:`System` for each set, with the variant's hypotheses."""
    systems = {}
    for name, rows in outcome.hypotheses[0].items():
        references, durations_s = [row["text"] for row in rows], [row["duration"] for row in rows]
        for seed in outcome.hypotheses:
            assert [row["id"] for row in seed[name]] == [row["id"] for row in rows], "all seeds have the same clips"
        texts = ([row["pred_text"] for row in seed[name]] for seed in outcome.hypotheses)
        seeds = [Transcripts(references, each, normalizer, durations_s=durations_s) for each in texts]
        systems[name] = System(outcome.label, seeds)
    return systems
