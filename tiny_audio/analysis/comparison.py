"""Decide by the following rule whether a system is better or worse than the baseline:

1. **Pairing.** All systems are scored on the same utterances, against the same references, under one normalizer. The
   first system is the baseline. The others are compared with it, not with each other.
2. **Difference.** The pooled WER of the other system minus the baseline's pooled WER. If it is below 0, the other
   system is better. With several training seeds, each WER is the mean over seeds.
3. **Units.** The interval and the test below resample single utterances, or whole groups such as speakers (see
   :func:`units_column`). With several seeds, the interval and the test include variation between seeds (Welch's test).
4. **Interval.** A 95 % interval from the paired bootstrap over the units. It is not corrected for the number of
   comparisons.
5. **Test.** Two-sided approximate randomization over the same units gives ``p_value``.
6. **Correction.** Holm's correction for all comparisons of one command (systems × sets) gives ``p_adjusted``.
7. **Verdict.** If ``p_adjusted`` is below 0.05, the verdict is "better" or "worse", depending on the sign of the
   difference. Otherwise, it is "no difference shown", which does not mean that the systems are equal.

If both systems have one seed, the matched-pairs test of NIST's sc_stats (MAPSSWE) is also reported. It does not affect
the verdict, because it assumes many independent segments and ignores speakers. Slices, such as the longest quarter of a
set, have intervals but no verdict. ``docs/comparing.md`` explains the rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any, Final, Literal

import numpy as np

from tiny_audio.analysis.scoring import Alignment, Transcripts
from tiny_audio.analysis.scoring.metrics import mean_over_seeds, measure
from tiny_audio.analysis.significance import (
    Errors,
    MatchedPairs,
    Words,
    difference_draws,
    difference_interval,
    difference_p_value,
    holm,
    matched_pairs,
    mean_wer,
    num_groups,
    percentile_interval,
    share_below_zero,
    wer_interval,
)
from tiny_audio.analysis.slices import slices
from tiny_audio.config import UserError

SIGNIFICANCE = 0.05
"""The verdict is "better" or "worse" if the adjusted p-value is below this threshold."""
TIE: Final = "no difference shown"
Verdict = Literal["better", "worse", "no difference shown"]
Row = Mapping[str, Any]
Interval = tuple[float, float]

NUM_DRAWS, _NUM_SLICE_DRAWS = 2000, 1000
"""Numbers of bootstrap resamples for an interval on a whole set, and for an interval on a slice."""
_MIN_TOSSES = 10_000
_TOSSES_PER_COMPARISON = 40
"""In a command with m comparisons, each randomization test has at least 40 · m draws. With n draws, the smallest p is
1 / (n + 1), and Holm's correction multiplies it by m. For an adjusted p below 0.05, n must be at least 20 · m."""
_MIN_SLICE_UNITS = 5
"""Minimum number of units (utterances or groups) in a slice. Smaller slices have no interval."""
SPEAKER = "speaker"
_BENCHMARK_KEYS = {
    "name": "label",
    "difference": "difference",
    "interval": "interval",
    "p_value": "p_value",
    "p_adjusted": "p_holm",
    "verdict": "verdict",
}


@dataclass(frozen=True)
class System:
    """A system's transcripts of one set, for each training seed."""

    name: str
    seeds: Sequence[Transcripts]
    ctc: System | None = None
    """The CTC head. None if its transcripts are missing for any seed."""

    @cached_property
    def errors(self) -> Errors:
        """Number of word errors for each seed and utterance, ``[S, U]``."""
        return np.stack([transcripts.errors for transcripts in self.seeds])

    @cached_property
    def words(self) -> Words:
        """Number of reference words for each seed and utterance, ``[S, U]``. With the cost ``joined``, this number
        depends on the hypothesis."""
        return np.stack([transcripts.words for transcripts in self.seeds])

    @property
    def alignments(self) -> list[Alignment]:
        """Word alignments of the first seed."""
        return self.seeds[0].alignments


@dataclass(frozen=True)
class AlignedSet:
    """Transcripts of several systems for the same utterances, in the same order.

    Args:
        systems: the systems, the baseline first. Each has one transcript per row and seed.
        rows: ``duration`` and ``metadata`` of each utterance.
        column: the metadata column that groups utterances. Utterances with the same value are resampled together. If
            None, single utterances are resampled.
    """

    systems: Sequence[System]
    rows: Sequence[Row]
    column: str | None = None

    @property
    def words(self) -> Words:
        """Number of reference words in each utterance, ``[U]``, as counted for the first seed of the baseline."""
        return self.systems[0].seeds[0].words

    @cached_property
    def groups(self) -> list[str | None] | None:
        """The group of each utterance. None if utterances are resampled."""
        return None if self.column is None else [row["metadata"].get(self.column) for row in self.rows]

    @property
    def num_groups(self) -> int | None:
        """Number of groups. None if utterances are resampled."""
        return num_groups(self.groups)

    def check(self, name: str) -> None:
        """Raise a :class:`UserError` if the normalizer removes all text of the references, or no row has the column."""
        transcripts = self.systems[0].seeds[0]
        if not self.words.any() and not transcripts.is_silent:
            raise UserError(
                f"{name}: no reference has a word after the normalizer {transcripts.normalizer.name!r}; check the "
                "texts, or choose another normalizer with --normalizer"
            )
        if self.groups is not None and not any(self.groups):
            columns = ", ".join(sorted({key for row in self.rows for key in row["metadata"]})) or "none"
            raise UserError(
                f"{name}: no utterance has a column {self.column!r} to group by (columns: {columns}); choose a listed "
                "column with --group-by, or leave --group-by out"
            )


@dataclass(frozen=True)
class Rates:
    """Error rates of a system on a set."""

    name: str
    wer: float | None
    """None if no reference has a word."""
    interval: Interval | None
    num_reference_words: int
    by_seed: tuple[float, ...]
    metrics: Sequence[Mapping[str, Any]]
    """Metrics by key, for each seed."""
    ctc_wer: float | None
    ctc_interval: Interval | None

    @property
    def num_seeds(self) -> int:
        """Number of training seeds."""
        return len(self.metrics)

    def row(self) -> dict[str, Any]:
        """Return all metrics by key, averaged over seeds, for a row of a table."""
        means, ends = mean_over_seeds(self.metrics), self.interval and list(self.interval)
        return {**means, "wer": self.wer, "wer_interval": ends, "ctc_wer": self.ctc_wer}


@dataclass(frozen=True)
class Difference:
    """Difference between a system and the baseline on a set."""

    name: str
    difference: float
    """WER of the system minus WER of the baseline."""
    interval: Interval
    p_value: float
    p_adjusted: float
    verdict: Verdict
    probability_better: float | None = None
    """Share of resamples in which this system's WER is below the baseline's. Ties count half. None in a benchmark."""
    mapsswe: MatchedPairs | None = None
    """Result of MAPSSWE. None in results of a benchmark, or if either system has several seeds."""
    ctc_difference: float | None = None
    """WER of this system's CTC head minus WER of the baseline's CTC head. None if either system has no CTC head."""
    ctc_interval: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields, with lists instead of tuples."""
        lists = {"interval": list(self.interval), "ctc_interval": self.ctc_interval and list(self.ctc_interval)}
        return asdict(self) | lists

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Difference:
        """Create a difference from the result of :meth:`to_json`."""
        return cls(**{**row, "mapsswe": row["mapsswe"] and MatchedPairs(**row["mapsswe"])})

    def to_benchmark(self) -> dict[str, Any]:
        """Return the fields that are written to a benchmark's ``results.json``, by their keys in that file."""
        return {key: getattr(self, field) for field, key in _BENCHMARK_KEYS.items()}

    @classmethod
    def of_benchmark(cls, row: Mapping[str, Any]) -> Difference:
        """Create a difference from the result of :meth:`to_benchmark`."""
        return cls(**{field: row[key] for field, key in _BENCHMARK_KEYS.items()})


@dataclass(frozen=True)
class Slice:
    """Scores on the utterances whose ``column`` has this ``value``."""

    column: str
    value: str
    num_utterances: int
    num_reference_words: int
    wer: dict[str, float]
    intervals: dict[str, Interval | None]
    """Interval of each system's rate. None if there are too few units."""
    difference_intervals: dict[str, Interval | None]
    """Interval of each system's difference from the baseline. None if there are too few units."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields, with lists instead of tuples."""
        fields = asdict(self)
        for key in ("intervals", "difference_intervals"):
            fields[key] = {name: bounds and list(bounds) for name, bounds in fields[key].items()}
        return fields

    def stands_out(self, name: str) -> bool:
        """Whether the interval of this system's difference excludes zero. This is a hint, not a test."""
        bounds = self.difference_intervals.get(name)
        return bounds is not None and (bounds[0] > 0 or bounds[1] < 0)


@dataclass(frozen=True)
class SetComparison:
    """Rates and verdicts on a set."""

    aligned: AlignedSet
    rates: tuple[Rates, ...]
    differences: tuple[Difference, ...]
    """Differences of all other systems from the baseline."""

    @cached_property
    def slices(self) -> list[Slice]:
        """Slices by duration and by each metadata column with few values."""
        return list(_slices(self.aligned))


def units_column(rows: Sequence[Row], named: str | None, of_recipes: Iterable[str | None] = ()) -> str | None:
    """Choose the metadata column whose groups are resampled as a whole. None means that utterances are resampled.

    The choice is the first of these that applies:

    1. the column that the user named
    2. the column in ``evaluation.group_by`` of the recipes
    3. ``speaker``, if every utterance has a speaker and there are several speakers
    4. no column (None)

    Args:
        rows: the compared utterances, with ``metadata``.
        named: the value of ``--group-by``.
        of_recipes: the value of ``evaluation.group_by`` in each recipe.

    Raises:
        UserError: the recipes name different columns.
    """
    if named:
        return named
    columns = sorted({column for column in of_recipes if column})
    if len(columns) > 1:
        raise UserError(
            f"the runs were scored with evaluation.group_by {' and '.join(columns)}; choose one column, such as "
            f"--group-by {columns[0]}"
        )
    if columns:
        return columns[0]
    speakers = [row["metadata"].get(SPEAKER) for row in rows]
    return SPEAKER if all(speakers) and len(set(speakers)) > 1 else None


def compare_sets(sets: Mapping[str, AlignedSet], *, num_draws: int = NUM_DRAWS) -> dict[str, SetComparison]:
    """Compare every system with the first system of its set. Holm's correction treats all comparisons as one family.

    Sets in which no reference has a word have no differences. Each interval is computed from ``num_draws`` resamples.
    """
    others = {name: aligned.systems[1:] if aligned.words.any() else () for name, aligned in sets.items()}
    tosses = num_tosses(sum(map(len, others.values())))
    found = {
        name: [_difference(aligned, other, num_draws, tosses) for other in others[name]]
        for name, aligned in sets.items()
    }
    adjusted = iter(holm([entry.p_value for differences in found.values() for entry in differences]))
    return {
        name: SetComparison(
            aligned,
            tuple(_rates(aligned, system, num_draws) for system in aligned.systems),
            tuple(_decided(entry, next(adjusted)) for entry in found[name]),
        )
        for name, aligned in sets.items()
    }


def num_tosses(num_comparisons: int) -> int:
    """Return the number of draws of each test, which allows p-values below 0.05 after Holm's correction."""
    return max(_MIN_TOSSES, _TOSSES_PER_COMPARISON * num_comparisons)


def too_few_units(compared: Mapping[str, SetComparison]) -> Iterator[str]:
    """Yield a warning for each set with too few units to show any difference. Skip sets with several seeds."""
    family = sum(len(entry.differences) for entry in compared.values())
    for name, entry in compared.items():
        units = entry.aligned.num_groups or len(entry.aligned.rows)
        # The smallest possible p: of the 2**units exchanges, 2 or more (no unit, all units) are as extreme as the data.
        least = 2.0 ** (1 - units)
        if entry.differences and family * least >= SIGNIFICANCE and all(rate.num_seeds == 1 for rate in entry.rates):
            kind = "utterances" if entry.aligned.column is None else f"groups by {entry.aligned.column}"
            yield (
                f"{name or 'the set'} has {units} {kind}, too few to show any difference: p cannot be below "
                f"{least:.2g}, or {min(1.0, family * least):.2g} after correction"
            )


def _rates(aligned: AlignedSet, system: System, num_draws: int) -> Rates:
    errors, words, ctc = system.errors, system.words, system.ctc
    metrics = [measure(transcripts) for transcripts in system.seeds]
    if not words.any():
        return Rates(system.name, None, None, 0, (), metrics, None, None)
    rated = partial(wer_interval, groups=aligned.groups, num_draws=num_draws)
    return Rates(
        system.name,
        mean_wer(errors, words),
        rated(errors, words),
        int(words[0].sum()),
        tuple(map(mean_wer, errors, words)),
        metrics,
        None if ctc is None else mean_wer(ctc.errors, ctc.words),
        None if ctc is None else rated(ctc.errors, ctc.words),
    )


def _difference(aligned: AlignedSet, other: System, num_draws: int, tosses: int) -> Difference:
    baseline, groups = aligned.systems[0], aligned.groups
    counts = (baseline.errors, other.errors, baseline.words, other.words)
    draws = difference_draws(*counts, groups=groups, num_draws=num_draws)
    ctc_difference = ctc_interval = None
    if baseline.ctc is not None and other.ctc is not None:
        ctc = (baseline.ctc.errors, other.ctc.errors, baseline.ctc.words, other.ctc.words)
        ctc_difference = mean_wer(ctc[1], ctc[3]) - mean_wer(ctc[0], ctc[2])
        ctc_interval = difference_interval(*ctc, groups=groups, num_draws=num_draws)
    edits = [[each.edits for each in side.alignments] for side in (baseline, other)]
    return Difference(
        other.name,
        mean_wer(other.errors, other.words) - mean_wer(baseline.errors, baseline.words),
        percentile_interval(draws),
        difference_p_value(*counts, groups=groups, num_draws=tosses),
        p_adjusted=1.0,
        verdict=TIE,
        probability_better=share_below_zero(draws),
        mapsswe=matched_pairs(*edits) if len(baseline.seeds) == len(other.seeds) == 1 else None,
        ctc_difference=ctc_difference,
        ctc_interval=ctc_interval,
    )


def _decided(entry: Difference, p_adjusted: float) -> Difference:
    verdict: Verdict = TIE
    if p_adjusted < SIGNIFICANCE:
        verdict = "better" if entry.difference < 0 else "worse"
    return replace(entry, p_adjusted=p_adjusted, verdict=verdict)


def _slices(aligned: AlignedSet) -> Iterator[Slice]:
    for column, value, indices in slices(aligned.rows):
        if not aligned.words[indices].any():
            continue
        groups = None if aligned.groups is None else [aligned.groups[index] for index in indices]
        enough = (num_groups(groups) or len(indices)) >= _MIN_SLICE_UNITS
        errors = {system.name: system.errors[:, indices] for system in aligned.systems}
        words = {system.name: system.words[:, indices] for system in aligned.systems}
        rated = partial(wer_interval, groups=groups, num_draws=_NUM_SLICE_DRAWS)
        between = partial(difference_interval, groups=groups, num_draws=_NUM_SLICE_DRAWS)
        first, *others = errors
        yield Slice(
            column,
            value,
            len(indices),
            int(aligned.words[indices].sum()),
            {name: mean_wer(part, words[name]) for name, part in errors.items()},
            {name: rated(part, words[name]) if enough else None for name, part in errors.items()},
            {
                name: between(errors[first], errors[name], words[first], words[name]) if enough else None
                for name in others
            },
        )
