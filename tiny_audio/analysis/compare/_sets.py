"""One evaluation set: rates of each variant, differences from the first, slices, and the sentences that changed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_audio.analysis.compare._runs import Row, Variant, doubts, paired_rows
from tiny_audio.analysis.scoring import Alignment, Normalizer, align
from tiny_audio.analysis.significance import (
    difference_interval,
    difference_p_value,
    mean_wer,
    num_groups,
    wer_interval,
)
from tiny_audio.analysis.slices import slices
from tiny_audio.config import UserError

_NUM_BOOTSTRAP = 2000
_NUM_SLICE_BOOTSTRAP = 1000
_MIN_UNITS = 5
"""Utterances, or groups, of a slice below which an interval would be made up."""
_NUM_SENTENCES = 10


@dataclass(frozen=True)
class _Scored:
    """A variant's word errors on one set, and those of its CTC head, where all its runs have one: ``[S, U]``."""

    name: str
    errors: NDArray[np.int64]
    ctc_errors: NDArray[np.int64] | None
    alignments: tuple[list[Alignment], ...]
    rows: tuple[list[Row], ...]


def compare_set(
    set_name: str, variants: Sequence[Variant], rule: Normalizer, column: str | None, *, common: bool
) -> dict[str, Any]:
    """An entry of ``sets`` of a :data:`tiny_audio.analysis.compare.Comparison`, its p-values not adjusted yet.

    Args:
        set_name: the set, which all runs were scored on.
        variants: the baseline first.
        rule: applied to references and hypotheses alike.
        column: metadata column whose groups are resampled whole; None resamples utterances.
        common: use the utterances that all runs have.

    Raises:
        UserError: other utterances or references, no word in them, or no such column.
    """
    runs = [run for variant in variants for run in variant.runs]
    rows, left_out = paired_rows(set_name, runs, common=common)
    taken = iter(rows)
    scored = [_score(variant.name, [next(taken) for _ in variant.runs], rule) for variant in variants]
    words = np.array([alignment.num_reference_words for alignment in scored[0].alignments[0]])
    if not words.any():
        raise UserError(
            f"{set_name}: the references have no word after the normalizer {rule.name!r}; choose another by "
            "--normalizer"
        )
    groups = _groups(set_name, rows[0], column)
    baseline, *others = scored
    return {
        "num_utterances": len(rows[0]),
        "num_reference_words": int(words.sum()),
        "group_by": column,
        "num_groups": num_groups(groups),
        "left_out": left_out,
        "doubts": list(doubts(set_name, runs, rows)),
        "normalizer": rule.name,
        "normalizer_version": rule.version,
        "scorer": "jiwer",
        "scorer_version": importlib.metadata.version("jiwer"),
        "variants": [_rates(entry, words, groups) for entry in scored],
        "differences": [_difference(baseline, other, words, groups) for other in others],
        "slices": list(_slices(scored, rows[0], words, groups)),
        "changed": [_changed(baseline, other) for other in others],
    }


def _groups(set_name: str, rows: Sequence[Row], column: str | None) -> list[str | None] | None:
    if column is None:
        return None
    groups = [row["metadata"].get(column) for row in rows]
    if not any(groups):
        columns = ", ".join(sorted({name for row in rows for name in row["metadata"]})) or "none"
        raise UserError(
            f"{set_name}: no utterance has a column {column!r} to group by (columns: {columns}); name one of them by "
            "--group-by"
        )
    return groups


def _score(name: str, rows: Sequence[list[Row]], rule: Normalizer) -> _Scored:
    def aligned(key: str) -> tuple[list[Alignment], ...]:
        return tuple(align([row["text"] for row in run], [row[key] for row in run], rule) for run in rows)

    def errors(alignments: Sequence[list[Alignment]]) -> NDArray[np.int64]:
        return np.array([[alignment.errors for alignment in run] for run in alignments])

    decoded = aligned("pred_text")
    has_head = all(row["ctc_text"] is not None for run in rows for row in run)
    return _Scored(name, errors(decoded), errors(aligned("ctc_text")) if has_head else None, decoded, tuple(rows))


def _rates(scored: _Scored, words: NDArray[np.int64], groups: Sequence[str | None] | None) -> dict[str, Any]:
    """A variant on a set: means over its seeds, the interval over utterances and seeds; ``seeds``: rates of each."""
    rated = partial(wer_interval, words=words, groups=groups, num_draws=_NUM_BOOTSTRAP)
    kinds = ("substitutions", "deletions", "insertions")
    flat = [alignment for run in scored.alignments for alignment in run]
    ctc = scored.ctc_errors
    return {
        "name": scored.name,
        "wer": mean_wer(scored.errors, words),
        "wer_interval": list(rated(scored.errors)),
        "seeds": [mean_wer(errors[None], words) for errors in scored.errors],
        **{kind: sum(getattr(alignment, kind) for alignment in flat) / len(scored.errors) for kind in kinds},
        "ctc_wer": None if ctc is None else mean_wer(ctc, words),
        "ctc_wer_interval": None if ctc is None else list(rated(ctc)),
    }


def _difference(
    baseline: _Scored, other: _Scored, words: NDArray[np.int64], groups: Sequence[str | None] | None
) -> dict[str, Any]:
    """A variant against the baseline; of its CTC head too, where both have one: an interval, and no verdict.

    The interval is of this one comparison; ``p_adjusted`` and ``verdict`` allow for all that were made.
    """
    between = partial(difference_interval, words=words, groups=groups, num_draws=_NUM_BOOTSTRAP)
    entry: dict[str, Any] = {
        "name": other.name,
        "difference": mean_wer(other.errors, words) - mean_wer(baseline.errors, words),
        "interval": list(between(baseline.errors, other.errors)),
        "p_value": difference_p_value(baseline.errors, other.errors, words, groups=groups),
        "ctc_difference": None,
        "ctc_interval": None,
    }
    if baseline.ctc_errors is not None and other.ctc_errors is not None:
        entry["ctc_difference"] = mean_wer(other.ctc_errors, words) - mean_wer(baseline.ctc_errors, words)
        entry["ctc_interval"] = list(between(baseline.ctc_errors, other.ctc_errors))
    return entry


def _slices(
    scored: Sequence[_Scored], rows: Sequence[Row], words: NDArray[np.int64], groups: Sequence[str | None] | None
) -> Iterator[dict[str, Any]]:
    baseline, *others = scored
    for column, value, places in slices(rows):
        said = words[places]
        if not said.any():
            continue
        inside = None if groups is None else [groups[place] for place in places]
        num_units = num_groups(inside) or len(places)
        between = partial(difference_interval, words=said, groups=inside, num_draws=_NUM_SLICE_BOOTSTRAP)
        yield {
            "column": column,
            "value": value,
            "num_utterances": len(places),
            "num_reference_words": int(said.sum()),
            "wer": {entry.name: mean_wer(entry.errors[:, places], said) for entry in scored},
            "intervals": {
                other.name: list(between(baseline.errors[:, places], other.errors[:, places]))
                if num_units >= _MIN_UNITS
                else None
                for other in others
            },
        }


def _changed(baseline: _Scored, other: _Scored) -> dict[str, Any]:
    """Sentences on which the first run of ``other`` did better or worse than the first of the baseline, most first."""
    before, after = baseline.errors[0], other.errors[0]
    gains = (before - after).tolist()
    places = range(len(gains))

    def sentences(chosen: list[int], gain: Callable[[int], int]) -> list[dict[str, Any]]:
        # Of equal gains, the short sentences: there the same number of words weighs most.
        length = [alignment.num_reference_words for alignment in baseline.alignments[0]]
        ordered = sorted(chosen, key=lambda place: (-gain(place), length[place], place))
        return [_sentence(baseline, other, place) for place in ordered[:_NUM_SENTENCES]]

    improved = [place for place in places if gains[place] > 0]
    worsened = [place for place in places if gains[place] < 0]
    return {
        "name": other.name,
        "num_improved": len(improved),
        "num_worsened": len(worsened),
        "num_other": len(gains) - len(improved) - len(worsened),
        "improved": sentences(improved, lambda place: gains[place]),
        "worsened": sentences(worsened, lambda place: -gains[place]),
    }


def _sentence(baseline: _Scored, other: _Scored, place: int) -> dict[str, Any]:
    row = baseline.rows[0][place]
    return {
        "id": row["id"],
        "duration": row["duration"],
        "metadata": row["metadata"],
        "text": row["text"],
        "baseline": row["pred_text"],
        "other": other.rows[0][place]["pred_text"],
        "baseline_errors": int(baseline.errors[0][place]),
        "other_errors": int(other.errors[0][place]),
    }
