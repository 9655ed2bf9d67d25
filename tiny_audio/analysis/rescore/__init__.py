"""Raw hypotheses -> scores, and whether one system is better than another. No model, no audio, no torch.

A clip counts for a target where that has a hypothesis for it. One that failed (see :data:`Row`) is in the failure rate
and in no other: WER is over the others, so the two must be read side by side. Of several targets, the first is the
baseline, and all rates that stand beside each other are over the clips that all of them have.

    ``RTFx`` = seconds of audio / seconds of processing, over the clips with both: 100 is a hundred times faster than
    the audio plays. What a ``time`` holds is for whoever measured it to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_audio.analysis.rescore._rows import Row, Target, common_ids, read_targets
from tiny_audio.analysis.rescore._sounds import audio_reader
from tiny_audio.analysis.rescore._table import rescore_table
from tiny_audio.analysis.scoring import (
    Alignment,
    NormalizerName,
    align,
    check_cost,
    difference_of,
    glues_words,
    normalizer,
    score,
)
from tiny_audio.analysis.significance import (
    difference_interval,
    holm,
    matched_pairs,
    mean_wer,
    num_groups,
    wer_interval,
)
from tiny_audio.analysis.slices import slices
from tiny_audio.config import UserError

__all__ = ["Rescored", "Row", "Target", "audio_reader", "read_targets", "rescore", "rescore_table"]

SIGNIFICANCE = 0.05
_NUM_BOOTSTRAP = 2000
_NUM_SLICE_BOOTSTRAP = 1000
_MIN_UNITS = 5
"""Utterances, or groups, of a slice below which an interval would be made up."""
_SPEAKER = "speaker"


@dataclass(frozen=True)
class Rescored:
    """What :func:`rescore` finds.

    Args:
        summary: as JSON, rates as fractions.

            - ``normalizer, normalizer_version, cost, scorer, scorer_version``; ``group_by, num_groups`` (speakers, as a
              rule) or None; ``num_utterances, num_reference_words`` that are scored; ``left_out``: clips of some target
              that not all have a hypothesis for; ``glued_references``: those whose numbers the normalizer makes one
              word of (see :func:`tiny_audio.analysis.scoring.glues_words`); ``baseline``: the first target's name;
              ``significance``;
            - ``targets``: of each, ``name, path``, the keys of :class:`tiny_audio.analysis.scoring.Score`,
              ``wer_interval_by_group`` (None without groups), ``rtfx`` and ``num_timed`` (clips with a time),
              ``ctc_wer`` (None unless all have one) and ``failures, num_clips, failure_rate`` over all its own clips;
              ``empty_rate, looping_rate, truncated_rate`` over those scored, the last None where not known;
            - ``differences``: of each but the first, ``name, difference, interval, probability_better`` as
              :class:`tiny_audio.analysis.scoring.PairedDifference` (over groups where there are some), ``mapsswe``
              (fields of
              :class:`tiny_audio.analysis.significance.MatchedPairs`), ``p_adjusted`` (MAPSSWE's p after Holm's
              correction for the number of differences) and ``verdict``;
            - ``slices``: ``column, value, num_utterances, num_reference_words``, and by target's name ``wer``,
              ``intervals`` of it, and ``difference_intervals``; None where there are too few utterances for one.
        rows: of each target, in one order, those that are scored.
        alignments: of each target, in that order.
    """

    summary: dict[str, Any]
    rows: list[list[Row]]
    alignments: list[list[Alignment]]


def rescore(
    paths: Sequence[Path],
    *,
    normalizer_name: str = "whisper_english",
    cost: str = "unit",
    group_by: str | None = None,
) -> Rescored:
    """Score files of hypotheses; see :data:`Row` for what is in them.

    Args:
        paths: one, or several that are compared with the first.
        normalizer_name: applied to references and hypotheses alike.
        cost: of an edit; see :data:`tiny_audio.analysis.scoring.Cost`.
        group_by: metadata column whose groups are resampled whole; None takes ``speaker`` where there is such a column.

    Raises:
        UserError: a file cannot be read, references differ, nothing is in common, or a name that there is not.
    """
    weights = check_cost(cost)
    rule = normalizer(_name(normalizer_name))
    targets = read_targets(paths)
    ids = common_ids(targets)
    rows = [[target.rows[name] for name in ids] for target in targets]
    texts = [row["text"] for row in rows[0]]
    column, groups = _groups(rows[0], group_by)
    alignments = [align(texts, [row["pred_text"] for row in heard], rule, cost=weights) for heard in rows]
    words = np.array([alignment.num_reference_words for alignment in alignments[0]])
    errors = [np.array([[alignment.errors for alignment in side]]) for side in alignments]
    entries = []
    for target, heard, aligned, wrong in zip(targets, rows, alignments, errors, strict=True):
        scores = score(
            texts,
            [row["pred_text"] for row in heard],
            rule,
            num_bootstrap=_NUM_BOOTSTRAP,
            cost=weights,
            alignments=aligned,
        )
        by_group = None if groups is None else wer_interval(wrong, words, groups=groups, num_draws=_NUM_BOOTSTRAP)
        ctc = [row["ctc_text"] for row in heard]
        ctc_errors = sum(a.errors for a in align(texts, ctc, rule, cost=weights)) if None not in ctc else None
        entries.append(
            {
                "name": target.name,
                "path": str(target.path),
                **scores.model_dump(mode="json"),
                "wer_interval_by_group": None if by_group is None else list(by_group),
                "ctc_wer": None if ctc_errors is None else ctc_errors / int(words.sum()),
                **_rates(target, heard, scores.empty_hypotheses, scores.looping_hypotheses),
            }
        )
    differences = list(_differences(targets, alignments, groups))
    summary = {
        **{key: entries[0][key] for key in ("normalizer", "normalizer_version", "cost", "scorer", "scorer_version")},
        "group_by": column,
        "num_groups": num_groups(groups),
        "num_utterances": len(ids),
        "num_reference_words": int(words.sum()),
        "left_out": len(set().union(*(target.rows for target in targets))) - len(ids),
        "glued_references": sum(glues_words(text, rule) for text in texts),
        "baseline": targets[0].name,
        "significance": SIGNIFICANCE,
        "targets": entries,
        "differences": differences,
        "slices": list(_slices([target.name for target in targets], rows[0], errors, words, groups)),
    }
    return Rescored(summary, rows, alignments)


def _name(name: str) -> NormalizerName:
    return name  # type: ignore[return-value]  # normalizer() refuses a name that is none


def _groups(rows: Sequence[Row], wanted: str | None) -> tuple[str | None, list[str | None] | None]:
    column = wanted or _SPEAKER
    groups = [row["metadata"].get(column) for row in rows]
    if any(groups):
        return column, groups
    if wanted is None:
        return None, None
    columns = ", ".join(sorted({name for row in rows for name in row["metadata"]})) or "none"
    raise UserError(
        f"--group-by {wanted}: no clip has a column of that name (columns: {columns}); name one of them, or leave it "
        "out"
    )


def _rates(target: Target, heard: Sequence[Row], num_empty: int, num_looping: int) -> dict[str, Any]:
    timed = [row for row in heard if row["time"] and row["duration"]]
    flags = [row["truncated"] for row in heard if row["truncated"] is not None]
    failures = len(target.rows) - len(target.heard)
    return {
        "num_clips": len(target.rows),
        "failures": failures,
        "failure_rate": failures / len(target.rows),
        "empty_rate": num_empty / len(heard),
        "looping_rate": num_looping / len(heard),
        "truncated_rate": sum(flags) / len(flags) if flags else None,
        "num_timed": len(timed),
        "rtfx": sum(row["duration"] for row in timed) / sum(row["time"] for row in timed) if timed else None,
    }


def _differences(
    targets: Sequence[Target], alignments: Sequence[Sequence[Alignment]], groups: Sequence[str | None] | None
) -> Iterator[dict[str, Any]]:
    baseline, *others = alignments
    edits = [[alignment.edits for alignment in side] for side in alignments]
    tests = [matched_pairs(edits[0], other) for other in edits[1:]]
    adjusted = holm([test.p_value for test in tests])
    for target, other, test, p_adjusted in zip(targets[1:], others, tests, adjusted, strict=True):
        found = difference_of(baseline, other, num_bootstrap=_NUM_BOOTSTRAP, groups=groups)
        yield {
            "name": target.name,
            "difference": found.difference,
            "interval": list(found.interval),
            "probability_better": found.probability_better,
            "mapsswe": asdict(test),
            "p_adjusted": p_adjusted,
            "verdict": _verdict(found.interval, p_adjusted),
        }


def _verdict(interval: tuple[float, float], p_adjusted: float) -> str:
    """Both must say so: MAPSSWE knows nothing of speakers, and the interval nothing of other comparisons."""
    low, high = interval
    if p_adjusted >= SIGNIFICANCE or low <= 0 <= high:
        return "no difference shown"
    return "better" if high < 0 else "worse"


def _slices(
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    errors: Sequence[NDArray[np.int64]],
    words: NDArray[np.int64],
    groups: Sequence[str | None] | None,
) -> Iterator[dict[str, Any]]:
    for column, value, places in slices(rows):
        said = words[places]
        if not said.any():
            continue
        inside = None if groups is None else [groups[place] for place in places]
        enough = (num_groups(inside) or len(places)) >= _MIN_UNITS
        parts = [wrong[:, places] for wrong in errors]
        rated = partial(wer_interval, words=said, groups=inside, num_draws=_NUM_SLICE_BOOTSTRAP)
        between = partial(difference_interval, words=said, groups=inside, num_draws=_NUM_SLICE_BOOTSTRAP)
        yield {
            "column": column,
            "value": value,
            "num_utterances": len(places),
            "num_reference_words": int(said.sum()),
            "wer": {name: mean_wer(part, said) for name, part in zip(names, parts, strict=True)},
            "intervals": {name: list(rated(part)) if enough else None for name, part in zip(names, parts, strict=True)},
            "difference_intervals": {
                name: list(between(parts[0], part)) if enough else None
                for name, part in zip(names[1:], parts[1:], strict=True)
            },
        }
