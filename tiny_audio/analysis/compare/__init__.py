"""Finished runs side by side: paired differences of their word error rates, and what made them.

Nothing is decoded: the raw hypotheses in ``evaluation/<set>.jsonl`` are aligned again, under one normalizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_audio.analysis.compare._recipes import describe, recipe_differences
from tiny_audio.analysis.compare._runs import FinishedRun, Variant, read_runs, shared_sets
from tiny_audio.analysis.compare._sets import compare_set
from tiny_audio.analysis.compare._table import comparison_table
from tiny_audio.analysis.scoring import NormalizerName, normalizer
from tiny_audio.analysis.significance import holm
from tiny_audio.config import UserError

__all__ = ["Comparison", "FinishedRun", "Variant", "compare_folders", "compare_variants", "comparison_table"]

SIGNIFICANCE = 0.05
"""Adjusted p-values below it call a difference one."""

Comparison = dict[str, Any]
"""What :func:`compare_variants` returns, as JSON:

- ``baseline``: name of the first variant; ``significance``; ``num_comparisons``: size of the family that Holm's
  correction is over, which is all variants but the baseline on all sets;
- ``variants``: ``name, runs`` (``name, folder, run_id, seed``) and, of the first run, ``parameters`` (``total,
  trainable``), ``steps, audio_hours, device``, and ``wall_s`` of training, the mean over the runs;
- ``sets``: by name, ``num_utterances, num_reference_words, num_groups, group_by, left_out, doubts (sentences),
  normalizer, normalizer_version, scorer, scorer_version``; ``variants``: :func:`_rates` of each; ``differences``:
  :func:`_difference` of each but the first; ``slices`` and ``changed``, the sentences;
- ``recipe``: fields whose values differ: ``field`` and, by variant's name, ``values``.

Rates and differences are fractions; a difference is that variant's rate less the baseline's, negative where it is
better.
"""


def compare_folders(
    folders: Sequence[Path],
    *,
    set_name: str | None = None,
    common: bool = False,
    normalizer_name: str | None = None,
    group_by: str | None = None,
) -> Comparison:
    """Compare run folders, each as a variant of its own; arguments and errors as in :func:`compare_variants`."""
    if len(folders) < 2:
        raise UserError("give two runs or more: the first is the baseline that the others are compared with")
    variants = [Variant(run.name, (run,)) for run in read_runs(folders)]
    return compare_variants(
        variants, set_name=set_name, common=common, normalizer_name=normalizer_name, group_by=group_by
    )


def compare_variants(
    variants: Sequence[Variant],
    *,
    set_name: str | None = None,
    common: bool = False,
    normalizer_name: str | None = None,
    group_by: str | None = None,
) -> Comparison:
    """Compare the first variant with each of the others, on the same utterances.

    Args:
        variants: one at least; of one alone, its rates.
        set_name: the evaluation set; None takes all that every run was scored on.
        common: use the utterances that all runs have, where a set's differ.
        normalizer_name: None takes the one that the runs were scored by.
        group_by: metadata column whose groups are resampled whole; None does as the runs were scored.

    Raises:
        UserError: no set in common, other utterances or references, other normalizers, or no such column.
    """
    runs = [run for variant in variants for run in variant.runs]
    names = shared_sets(runs, set_name)
    column = group_by or _shared_column(runs)
    sets = {}
    for name in names:
        rule = normalizer(_shared_normalizer(name, runs, normalizer_name))
        sets[name] = compare_set(name, variants, rule, column, common=common)
    family = [difference for entry in sets.values() for difference in entry["differences"]]
    for difference, adjusted in zip(family, holm([entry["p_value"] for entry in family]), strict=True):
        difference["p_adjusted"] = adjusted
        difference["verdict"] = _verdict(difference["difference"], adjusted)
    return {
        "baseline": variants[0].name,
        "significance": SIGNIFICANCE,
        "num_comparisons": len(family),
        "variants": [describe(variant) for variant in variants],
        "sets": sets,
        "recipe": list(recipe_differences(variants)),
    }


def _verdict(difference: float, p_adjusted: float) -> str:
    if p_adjusted >= SIGNIFICANCE:
        return "no difference shown"
    return "better" if difference < 0 else "worse"


def _shared_column(runs: Sequence[FinishedRun]) -> str | None:
    columns = sorted({run.group_by for run in runs if run.group_by is not None})
    if len(columns) > 1:
        raise UserError(
            f"the runs were scored with evaluation.group_by {' and '.join(columns)}; say which to resample whole by "
            f"--group-by {columns[0]}"
        )
    return columns[0] if columns else None


def _shared_normalizer(set_name: str, runs: Sequence[FinishedRun], wanted: str | None) -> NormalizerName:
    used: dict[NormalizerName, list[str]] = {}
    for run in runs:
        used.setdefault(run.scores[set_name]["normalizer"], []).append(run.name)
    if wanted is not None:
        return wanted  # type: ignore[return-value]  # normalizer() refuses a name that is none
    if len(used) > 1:
        listed = "; ".join(f"{name}: {', '.join(those)}" for name, those in used.items())
        raise UserError(
            f"{set_name}: the runs were scored by different normalizers ({listed}), and rates under different rules "
            f"cannot be compared; score all of them by one here: --normalizer {next(iter(used))}"
        )
    return next(iter(used))
