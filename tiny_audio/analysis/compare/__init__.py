"""Compare the word error rates of finished runs, by the rule of :mod:`tiny_audio.analysis.comparison`.

A variant is one run, or several runs that differ only in their seeds. No model is run. Instead, the raw hypotheses in
each run's ``evaluation/<set>.jsonl`` are aligned with the references again, under one normalizer for all runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tiny_audio.analysis.compare._recipes import RecipeField, VariantFacts, describe, recipe_differences
from tiny_audio.analysis.compare._runs import FinishedRun, Variant, read_runs, shared_sets
from tiny_audio.analysis.compare._sets import Changed, ComparedSet, Sentence, pair_set
from tiny_audio.analysis.comparison import SIGNIFICANCE, compare_sets
from tiny_audio.analysis.scoring import NormalizerName, normalizer
from tiny_audio.config import UserError

__all__ = [
    "Changed",
    "ComparedSet",
    "Comparison",
    "FinishedRun",
    "Sentence",
    "Variant",
    "compare_folders",
    "compare_variants",
]


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison of runs."""

    variants: Sequence[VariantFacts]
    sets: dict[str, ComparedSet]
    recipe: Sequence[RecipeField]

    @property
    def baseline(self) -> str:
        """Name of the first variant."""
        return self.variants[0].name

    @property
    def num_comparisons(self) -> int:
        """Number of comparisons for Holm's correction: one for each variant except the baseline, on each set."""
        return sum(len(entry.comparison.differences) for entry in self.sets.values())

    @property
    def files(self) -> list[Path]:
        """Paths of the files of hypotheses that were compared."""
        folders = [Path(run.folder) for variant in self.variants for run in variant.runs]
        return [folder / "evaluation" / f"{name}.jsonl" for folder in folders for name in self.sets]

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``comparison.json``. Rates and differences are fractions."""
        return {
            "baseline": self.baseline,
            "significance": SIGNIFICANCE,
            "num_comparisons": self.num_comparisons,
            "variants": [asdict(variant) for variant in self.variants],
            "sets": {name: entry.to_json() for name, entry in self.sets.items()},
            "recipe": [asdict(field) for field in self.recipe],
        }


def compare_folders(
    folders: Sequence[Path],
    *,
    set_name: str | None = None,
    common: bool = False,
    normalizer_name: str | None = None,
    group_by: str | None = None,
) -> Comparison:
    """Compare run folders. Each run is a separate variant, even if runs differ only in their seeds.

    For the other arguments and the exceptions, see :func:`compare_variants`.
    """
    if len(folders) < 2:
        raise UserError("give at least two runs: the first is the baseline that the others are compared with")
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
        variants: at least one variant. If there is only one, its rates are computed without a comparison.
        set_name: the evaluation set. If None, all sets are compared on which every run was scored.
        common: leave out utterances that are not the same in all runs, instead of raising an error.
        normalizer_name: the normalizer. If None, the normalizer that the runs were scored with is used.
        group_by: a metadata column, such as ``speaker``. Utterances with the same value are resampled together. For the
            default, see :func:`tiny_audio.analysis.comparison.units_column`.

    Raises:
        UserError: one of these problems:

            - The runs have no common set or no common utterance.
            - Not all runs were scored on ``set_name``.
            - Utterances differ, and ``common`` is False.
            - The runs were scored with different normalizers, and ``normalizer_name`` is None.
            - The recipes have different columns in ``evaluation.group_by``, and ``group_by`` is None.
            - The normalizer cannot be used.
            - No utterance has the column to group by.
    """
    runs = [run for variant in variants for run in variant.runs]
    paired = {
        name: pair_set(
            name, variants, normalizer(_shared_normalizer(name, runs, normalizer_name)), group_by, common=common
        )
        for name in shared_sets(runs, set_name)
    }
    compared = compare_sets({name: entry.aligned for name, entry in paired.items()})
    return Comparison(
        [describe(variant) for variant in variants],
        {name: ComparedSet(paired[name], compared[name]) for name in paired},
        list(recipe_differences(variants)),
    )


def _shared_normalizer(set_name: str, runs: Sequence[FinishedRun], wanted: str | None) -> NormalizerName:
    used: dict[NormalizerName, list[str]] = {}
    for run in runs:
        used.setdefault(run.scores[set_name]["normalizer"], []).append(run.name)
    if wanted is not None:
        return wanted  # type: ignore[return-value]  # normalizer() rejects an unknown name
    if len(used) > 1:
        listed = "; ".join(f"{name}: {', '.join(those)}" for name, those in used.items())
        raise UserError(
            f"{set_name}: the runs were scored with different normalizers ({listed}), so rates cannot be compared; "
            f"choose one for all, such as --normalizer {next(iter(used))}"
        )
    return next(iter(used))
