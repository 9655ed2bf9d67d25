"""Compare several runs on one evaluation set, and find the sentences that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tiny_audio.analysis.compare._runs import Row, Variant, audio_warnings, paired_rows
from tiny_audio.analysis.comparison import AlignedSet, Rates, SetComparison, System, units_column
from tiny_audio.analysis.scoring import Alignment, Normalizer, Transcripts

_NUM_SENTENCES = 10


@dataclass(frozen=True)
class PairedSet:
    """A set that all runs were scored on: the aligned hypotheses of all runs, and details of the pairing."""

    aligned: AlignedSet
    rows: Sequence[Sequence[Row]]
    """The rows of each variant's first run."""
    normalizer: Normalizer
    left_out: int
    """Number of utterances that are left out, because they are not the same in all runs."""
    warnings: Sequence[str]
    """Reasons why the runs may have been scored on different audio."""


@dataclass(frozen=True)
class Sentence:
    """An utterance in which a variant and the baseline have different numbers of errors."""

    row: Row
    """The row of the baseline."""
    other: str
    """The raw hypothesis of the other variant."""
    sides: tuple[Alignment, Alignment]
    """The word alignments of the baseline and of the other variant."""

    def to_json(self) -> dict[str, Any]:
        """Return the sentence as it is written to ``comparison.json``."""
        before, after = (side.errors for side in self.sides)
        row = {key: self.row[key] for key in ("id", "duration", "metadata", "text")}
        texts = {"baseline": self.row["pred_text"], "other": self.other}
        return {**row, **texts, "baseline_errors": before, "other_errors": after}


@dataclass(frozen=True)
class Changed:
    """Sentences in which a variant and the baseline have different numbers of errors, the largest differences first.

    Only the first run of the variant is compared with the first run of the baseline.
    """

    name: str
    """Name of the variant."""
    num_improved: int
    """Number of sentences in which the variant has fewer errors than the baseline."""
    num_worsened: int
    num_other: int
    """Number of sentences in which the variant and the baseline have the same number of errors."""
    improved: list[Sentence]
    """The first few improved sentences."""
    worsened: list[Sentence]


@dataclass(frozen=True)
class ComparedSet:
    """A comparison on one set."""

    paired: PairedSet
    comparison: SetComparison

    @cached_property
    def changed(self) -> list[Changed]:
        """The changed sentences of each variant except the baseline."""
        return [_changed(self.paired, index) for index in range(1, len(self.paired.rows))]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of this set in ``comparison.json``."""
        paired, aligned = self.paired, self.paired.aligned
        scored = aligned.systems[0].seeds[0]
        scorer, scorer_version = scored.scorer
        return {
            "num_utterances": len(aligned.rows),
            "num_reference_words": int(aligned.words.sum()),
            "group_by": aligned.column,
            "num_groups": aligned.num_groups,
            "left_out": paired.left_out,
            "doubts": list(paired.warnings),
            "normalizer": paired.normalizer.name,
            "normalizer_version": paired.normalizer.version,
            "cost": scored.applied_cost,
            "scorer": scorer,
            "scorer_version": scorer_version,
            "variants": [_rates(entry) for entry in self.comparison.rates],
            "differences": [entry.to_json() for entry in self.comparison.differences],
            "slices": [
                {
                    **{key: getattr(part, key) for key in ("column", "value", "num_utterances", "num_reference_words")},
                    "wer": part.wer,
                    "intervals": part.difference_intervals,
                }
                for part in self.comparison.slices
            ],
            "changed": [
                {
                    **{key: getattr(changed, key) for key in ("name", "num_improved", "num_worsened", "num_other")},
                    "improved": [sentence.to_json() for sentence in changed.improved],
                    "worsened": [sentence.to_json() for sentence in changed.worsened],
                }
                for changed in self.changed
            ],
        }


def pair_set(
    set_name: str, variants: Sequence[Variant], normalizer: Normalizer, group_by: str | None, *, common: bool
) -> PairedSet:
    """Pair the hypotheses of all runs by utterance, and align them.

    Args:
        set_name: a set that all runs were scored on.
        variants: the variants, the baseline first.
        normalizer: the normalizer of references and hypotheses.
        group_by: the value of ``--group-by``.
        common: leave out utterances that are not the same in all runs, instead of raising an error.

    Raises:
        UserError: see :func:`paired_rows`, :func:`units_column` and :meth:`AlignedSet.check`.
    """
    runs = [run for variant in variants for run in variant.runs]
    rows, left_out = paired_rows(set_name, runs, common=common)
    unused = iter(rows)
    by_variant = [[next(unused) for _ in variant.runs] for variant in variants]
    systems = [_system(variant.name, seeds, normalizer) for variant, seeds in zip(variants, by_variant, strict=True)]
    aligned = AlignedSet(systems, rows[0], units_column(rows[0], group_by, [run.group_by for run in runs]))
    aligned.check(set_name)
    warnings = list(audio_warnings(set_name, runs, rows))
    return PairedSet(aligned, [seeds[0] for seeds in by_variant], normalizer, left_out, warnings)


def _system(name: str, seeds: Sequence[Sequence[Row]], normalizer: Normalizer) -> System:
    def transcripts(key: str) -> list[Transcripts]:
        return [
            Transcripts(
                [row["text"] for row in rows],
                [row[key] for row in rows],
                normalizer,
                durations_s=[row["duration"] for row in rows],
            )
            for rows in seeds
        ]

    has_head = all(row["ctc_text"] is not None for rows in seeds for row in rows)
    head = System(name, transcripts("ctc_text")) if has_head else None
    return System(name, transcripts("pred_text"), head)


def _rates(entry: Rates) -> dict[str, Any]:
    return {
        "name": entry.name,
        **entry.row(),
        "seeds": list(entry.by_seed),
        "ctc_wer": entry.ctc_wer,
        "ctc_wer_interval": entry.ctc_interval and list(entry.ctc_interval),
    }


def _changed(paired: PairedSet, index: int) -> Changed:
    baseline, other = paired.aligned.systems[0], paired.aligned.systems[index]
    gains = (baseline.errors[0] - other.errors[0]).tolist()
    words = paired.aligned.words

    def most(sign: int) -> list[Sentence]:
        # Among sentences with equal gains, put short ones first, because the gain is a larger share of their words.
        chosen = [utterance for utterance, gain in enumerate(gains) if sign * gain > 0]
        chosen.sort(key=lambda utterance: (-sign * gains[utterance], words[utterance], utterance))
        return [
            Sentence(
                paired.rows[0][utterance],
                paired.rows[index][utterance]["pred_text"],
                (baseline.alignments[utterance], other.alignments[utterance]),
            )
            for utterance in chosen[:_NUM_SENTENCES]
        ]

    improved, worsened = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return Changed(other.name, improved, worsened, len(gains) - improved - worsened, most(1), most(-1))
