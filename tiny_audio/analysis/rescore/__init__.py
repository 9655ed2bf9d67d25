"""Compute scores and verdicts from files of raw hypotheses, without a model, audio or torch.

A target is one system's file of hypotheses. The first target is the baseline. Only clips for which every target has a
hypothesis are scored. A clip failed if its row has an error (see :data:`Row`). Failed clips affect the failure rate
but not the WER. Therefore, always read both rates together. Verdicts follow the rule of
:mod:`tiny_audio.analysis.comparison`.

    ``RTFx`` = seconds of audio / seconds of processing, over the clips for which both are known and above 0. Programs
    differ in what they count as processing time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tiny_audio.analysis.comparison import (
    SIGNIFICANCE,
    AlignedSet,
    Difference,
    SetComparison,
    System,
    compare_sets,
    units_column,
)
from tiny_audio.analysis.rescore._chunks import PARENT, check_chunks, join_chunks
from tiny_audio.analysis.rescore._rows import Row, Target, common_ids, read_targets
from tiny_audio.analysis.scoring import (
    Cost,
    Normalizer,
    Transcripts,
    check_cost,
    glues_words,
    normalizer,
    score_transcripts,
)

__all__ = ["PARENT", "Rescored", "Target", "align_targets", "check_chunks", "join_chunks", "read_targets", "rescore"]

_NUM_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Rescored:
    """Scores and comparison of files of hypotheses."""

    targets: Sequence[Target]
    rows: Sequence[Sequence[Row]]
    """The scored rows of each target. The clips have the same order for all targets."""
    comparison: SetComparison

    @property
    def left_out(self) -> int:
        """Number of clips for which at least one target has no hypothesis."""
        return len(set().union(*(target.rows for target in self.targets))) - len(self.rows[0])

    @cached_property
    def glued_references(self) -> int:
        """Number of references in which the normalizer joins number words, such as "one two" into "12"."""
        first = self.transcripts[0]
        return sum(glues_words(text, first.normalizer) for text in first.references)

    @property
    def transcripts(self) -> list[Transcripts]:
        """The transcripts of each target."""
        return [system.seeds[0] for system in self.comparison.aligned.systems]

    @cached_property
    def scores(self) -> list[dict[str, Any]]:
        """Metrics and facts of each target, by key.

        - ``name``, ``path``, and the keys of :class:`tiny_audio.analysis.scoring.Score`
        - ``wer_interval_by_group``: interval of ``wer``, computed by resampling groups. None if there are no groups.
          In contrast, ``wer_interval`` is computed by resampling utterances.
        - ``ctc_wer``: WER of the CTC head. None if any row has no ``ctc_text``.
        - ``rtfx``
        - ``num_timed``: number of scored clips whose duration and processing time are known and above 0
        - ``failures``, ``num_clips`` and ``failure_rate``: computed from all clips of the target
        - ``empty_rate`` and ``looping_rate``: computed from the scored clips
        - ``truncated_rate``: computed from the scored clips that have ``truncated``. None if there are none.
        """
        return [self._scores(index) for index in range(len(self.targets))]

    def _scores(self, index: int) -> dict[str, Any]:
        target, rows, rates = self.targets[index], self.rows[index], self.comparison.rates[index]
        scored = score_transcripts(self.transcripts[index], num_bootstrap=_NUM_BOOTSTRAP)
        timed = [row for row in rows if row["time"] and row["duration"]]
        flags = [row["truncated"] for row in rows if row["truncated"] is not None]
        failures = len(target.rows) - len(target.answered)
        return {
            "name": target.name,
            "path": str(target.path),
            **scored.model_dump(mode="json"),
            "wer_interval_by_group": self.comparison.aligned.column and rates.interval and list(rates.interval),
            "ctc_wer": rates.ctc_wer,
            "num_clips": len(target.rows),
            "failures": failures,
            "failure_rate": failures / len(target.rows),
            "empty_rate": scored.empty_hypotheses / len(rows),
            "looping_rate": scored.looping_hypotheses / len(rows),
            "truncated_rate": sum(flags) / len(flags) if flags else None,
            "num_timed": len(timed),
            "rtfx": sum(row["duration"] for row in timed) / sum(row["time"] for row in timed) if timed else None,
        }

    @property
    def summary(self) -> dict[str, Any]:
        """The result as JSON. Rates are fractions.

        - the normalizer and the scorer, each with its version, and the cost
        - ``group_by`` and ``num_groups``: None if utterances are resampled
        - ``num_utterances``: number of scored utterances
        - ``num_reference_words``: number of their reference words, as counted for the baseline. With the cost
          ``joined``, this number depends on the hypotheses, so other targets can have other numbers.
        - ``left_out``, ``glued_references``, ``baseline``, ``significance``
        - ``targets``: see :attr:`scores`
        - ``differences``: for each target except the first, the fields of a
          :class:`tiny_audio.analysis.comparison.Difference`, without those of the CTC head
        - ``slices``: the fields of each :class:`tiny_audio.analysis.comparison.Slice`
        """
        aligned, first = self.comparison.aligned, self.scores[0]
        return {
            **{key: first[key] for key in ("normalizer", "normalizer_version", "cost", "scorer", "scorer_version")},
            "group_by": aligned.column,
            "num_groups": aligned.num_groups,
            "num_utterances": len(aligned.rows),
            "num_reference_words": int(aligned.words.sum()),
            "left_out": self.left_out,
            "glued_references": self.glued_references,
            "baseline": self.targets[0].name,
            "significance": SIGNIFICANCE,
            "targets": self.scores,
            "differences": [_without_ctc(entry) for entry in self.comparison.differences],
            "slices": [part.to_json() for part in self.comparison.slices],
        }


def rescore(
    paths: Sequence[Path],
    *,
    normalizer_name: str = "whisper_english",
    cost: str | None = None,
    group_by: str | None = None,
) -> Rescored:
    """Score files of hypotheses. :data:`Row` describes the lines of a file.

    Args:
        paths: the files. The first is the baseline.
        normalizer_name: the normalizer of references and hypotheses.
        cost: the costs of edits, see :data:`tiny_audio.analysis.scoring.Cost`. If None, the normalizer's costs are
            used.
        group_by: a metadata column, such as ``speaker``. Clips with the same value are resampled together. For the
            default, see :func:`tiny_audio.analysis.comparison.units_column`.

    Raises:
        UserError: one of these problems:

            - A file cannot be read.
            - Targets have different references for the same clip.
            - There is no clip for which every target has a hypothesis.
            - The normalizer removes all text of the references.
            - The normalizer, the cost or the column is unknown.
    """
    weights = None if cost is None else check_cost(cost)
    rule = normalizer(normalizer_name)
    targets = read_targets(paths)
    aligned, rows = align_targets(targets, rule, cost=weights, group_by=group_by)
    aligned.check(", ".join(map(str, paths)))
    return Rescored(targets, rows, compare_sets({"": aligned})[""])


def align_targets(
    targets: Sequence[Target], rule: Normalizer, *, cost: Cost | None = None, group_by: str | None = None
) -> tuple[AlignedSet, list[list[Row]]]:
    """Align the clips for which every target has a hypothesis.

    Return the aligned set, and the rows of each target in the order of the aligned clips.

    Raises:
        UserError: two targets have different references for the same clip, or there is no clip for which every target
            has a hypothesis.
    """
    ids = common_ids(targets)
    rows = [[target.rows[name] for name in ids] for target in targets]
    texts = [row["text"] for row in rows[0]]
    durations_s = [row["duration"] for row in rows[0]]
    systems = []
    for target, answers in zip(targets, rows, strict=True):
        ctc = [row["ctc_text"] for row in answers]
        hypotheses = Transcripts(texts, [row["pred_text"] for row in answers], rule, cost, durations_s)
        head = None if None in ctc else System(target.name, [Transcripts(texts, ctc, rule, cost, durations_s)])
        systems.append(System(target.name, [hypotheses], head))
    return AlignedSet(systems, rows[0], units_column(rows[0], group_by)), rows


def _without_ctc(entry: Difference) -> dict[str, Any]:
    return {key: value for key, value in entry.to_json().items() if not key.startswith("ctc_")}
