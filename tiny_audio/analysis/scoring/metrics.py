"""The metrics that are shown in the terminal, JSON, HTML pages and model cards.

To add a metric, add one :class:`Metric` to :data:`METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiny_audio.analysis.scoring._alignment import Alignment, align, loops
from tiny_audio.analysis.scoring._costs import Cost, scorer
from tiny_audio.analysis.scoring._normalizers import Normalizer


@dataclass(frozen=True)
class Transcripts:
    """Raw references and hypotheses of one system on one set, with their normalized forms and alignments."""

    references: Sequence[str]
    hypotheses: Sequence[str]
    normalizer: Normalizer
    cost: Cost | None = None
    """The costs of edits. If None, the normalizer's costs are used."""
    durations_s: Sequence[float | None] | None = None
    """Duration of each utterance in seconds, None if unknown. If ``durations_s`` itself is None, all are unknown."""

    @property
    def applied_cost(self) -> Cost:
        """The costs of edits that the alignment uses."""
        return self.cost or self.normalizer.cost

    @cached_property
    def normalized(self) -> tuple[list[str], list[str]]:
        """Normalized references and hypotheses."""
        return list(map(self.normalizer, self.references)), list(map(self.normalizer, self.hypotheses))

    @property
    def is_silent(self) -> bool:
        """Whether every reference is empty, because nobody speaks. Then there is no word error rate."""
        return not any(reference.strip() for reference in self.references)

    @cached_property
    def alignments(self) -> list[Alignment]:
        """Word alignment of each utterance."""
        return align(self.references, self.hypotheses, self.normalizer, cost=self.applied_cost)

    @cached_property
    def errors(self) -> NDArray[np.int64]:
        """Number of word errors in each utterance, ``[U]``."""
        return np.array([alignment.errors for alignment in self.alignments])

    @cached_property
    def words(self) -> NDArray[np.int64]:
        """Number of reference words in each utterance, ``[U]``."""
        return np.array([alignment.num_reference_words for alignment in self.alignments])

    @property
    def scorer(self) -> tuple[str, str]:
        """Program that aligned the words, and its version."""
        return scorer(self.applied_cost)

    def total(self, kind: Literal["substitutions", "deletions", "insertions"]) -> int:
        """Return the number of errors of one kind in the whole set."""
        return sum(getattr(alignment, kind) for alignment in self.alignments)


@dataclass(frozen=True)
class Metric:
    """The definition of a metric."""

    key: str
    """Name in JSON."""
    label: str
    """Full name."""
    short: str
    """Column head."""
    unit: Literal["share", "count", "ratio", "USD"]
    direction: Literal["lower", "higher"]
    """Whether lower or higher values are better."""
    format: str
    """Format specification of the value, such as ``.2%``."""
    compute: Callable[[Transcripts], float | int | None] | None = None
    """Computes the metric from the transcripts. None for metrics that a command adds to the scores, such as speed."""
    interval: str | None = None
    """Key of the metric's 95 % interval, if it has one."""
    is_failure: bool = False
    """Whether the metric counts failures. The terminal lists failures below the table, unless their value is 0."""
    has_line: bool = False
    """Whether the terminal shows the metric below the table, because the table has no room for it."""

    def text(self, value: float | None) -> str:
        """Format a value. None becomes an empty string."""
        if value is None:
            return ""
        # A mean of counts over seeds may be fractional.
        return f"{value:,.1f}" if self.unit == "count" and value != int(value) else f"{value:{self.format}}"

    def interval_text(self, ends: Sequence[float]) -> str:
        """Format both ends of an interval."""
        return f"[{', '.join(map(self.text, ends))}]"


def _cer(transcripts: Transcripts) -> float | None:
    import jiwer

    if not any(transcripts.normalized[0]):
        return None
    return float(jiwer.process_characters(*transcripts.normalized).cer)


def _looping(transcripts: Transcripts) -> int:
    pairs = zip(transcripts.references, transcripts.hypotheses, strict=True)
    return sum(loops(hypothesis) and not loops(reference) for reference, hypothesis in pairs)


def _wer(transcripts: Transcripts) -> float | None:
    return float(transcripts.errors.sum() / transcripts.words.sum()) if transcripts.words.any() else None


def _empty(transcripts: Transcripts) -> int:
    return sum(bool(reference) and not text for reference, text in zip(*transcripts.normalized, strict=True))


def _non_speech_insertions(transcripts: Transcripts) -> float | None:
    """Return the words inserted per hour of utterances with an empty reference.

    Return None if there are no such utterances or if any of their durations is unknown.
    """
    silent = np.array([not reference.strip() for reference in transcripts.references])
    if not silent.any() or transcripts.durations_s is None:
        return None
    seconds = [duration for duration, chosen in zip(transcripts.durations_s, silent, strict=True) if chosen]
    known = [duration for duration in seconds if duration is not None]
    if len(known) < len(seconds) or not sum(known):
        return None
    return float(transcripts.errors[silent].sum() / (sum(known) / 3600))


METRICS: tuple[Metric, ...] = (
    Metric("wer", "word error rate", "WER", "share", "lower", ".2%", _wer, interval="wer_interval"),
    Metric("cer", "character error rate", "CER", "share", "lower", ".2%", _cer),
    Metric("substitutions", "words substituted", "sub", "count", "lower", ",.0f", lambda t: t.total("substitutions")),
    Metric("deletions", "words deleted", "del", "count", "lower", ",.0f", lambda t: t.total("deletions")),
    Metric("insertions", "words inserted", "ins", "count", "lower", ",.0f", lambda t: t.total("insertions")),
    Metric(
        *("error_free_rate", "utterances without error", "exact", "share", "higher", ".2%"),
        compute=lambda transcripts: float((transcripts.errors == 0).mean()),
    ),
    Metric("empty_hypotheses", "empty hypotheses", "empty", "count", "lower", ",.0f", _empty, is_failure=True),
    Metric("looping_hypotheses", "looping hypotheses", "looping", "count", "lower", ",.0f", _looping, is_failure=True),
    Metric(
        *("non_speech_insertions_per_hour", "words inserted per hour of audio without speech", "ins/h no speech"),
        *("ratio", "lower", ",.1f"),
        compute=_non_speech_insertions,
    ),
    Metric("ctc_wer", "word error rate of the CTC head alone", "CTC head", "share", "lower", ".2%"),
    Metric("truncated_hypotheses", "truncated hypotheses", "truncated", "count", "lower", ",.0f", is_failure=True),
    Metric("truncated_rate", "hypotheses truncated", "truncated", "share", "lower", ".2%", is_failure=True),
    Metric("failure_rate", "clips without a hypothesis", "failed", "share", "lower", ".2%", is_failure=True),
    Metric("rtfx", "seconds of audio per second of processing", "RTFx", "ratio", "higher", ",.4g"),
    Metric("cost_usd", "cost in US dollars", "USD", "USD", "lower", ",.2f"),
    Metric(
        *("bits_from_audio", "bits per token from the audio", "audio bits", "ratio", "higher", ".2f"),
        interval="bits_from_audio_interval",
        has_line=True,
    ),
)
"""All metrics, in the order of the columns of tables."""


def metric_of(key: str) -> Metric:
    """Return the metric with this key."""
    return next(metric for metric in METRICS if metric.key == key)


def measure(transcripts: Transcripts) -> dict[str, float | int | None]:
    """Return the value of every metric that has a function ``compute``, by key. None if a metric does not apply."""
    return {metric.key: metric.compute(transcripts) for metric in METRICS if metric.compute is not None}


@dataclass(frozen=True)
class Column:
    """A column of a table of scores."""

    head: str
    label: str
    """The long form of the column head."""
    cells: list[str]


def metric_columns(
    entries: Sequence[Mapping[str, Any]],
    *,
    text: Callable[[Metric, Any], str] = Metric.text,
    interval: Callable[[Any], str],
    grouped_by: str | None = None,
    all_metrics: bool = True,
) -> Iterator[Column]:
    """Yield the columns of each metric that any of the ``entries`` has: first its values, then their intervals, if any.

    Args:
        entries: the scores of each row, by key.
        text: formats a value.
        interval: formats the interval of a metric whose unit is ``share``.
        grouped_by: the metadata column whose groups were resampled for the intervals with keys ``*_by_group``. None if
            there are no such keys.
        all_metrics: include the metrics that the terminal shows below the table.
    """
    for metric in known_metrics(entries):
        if not all_metrics and (metric.is_failure or metric.has_line):
            continue
        yield Column(metric.short, metric.label, [text(metric, entry.get(metric.key)) for entry in entries])
        if metric.interval is None:
            continue
        whole = f"95 % interval of the {metric.label}"
        columns = (
            (metric.interval, "95 % interval", whole),
            (f"{metric.interval}_by_group", f"by {grouped_by}", f"{whole}, resampling groups by {grouped_by}"),
        )
        for key, head, label in columns:
            if any(entry.get(key) for entry in entries):
                ends = interval if metric.unit == "share" else metric.interval_text
                cells = [ends(entry[key]) if entry.get(key) else "" for entry in entries]
                yield Column(head, label, cells)


def known_metrics(entries: Iterable[Mapping[str, Any]]) -> list[Metric]:
    """Return the metrics for which at least one entry has a value. The entries are the scores of each row, by key."""
    entries = list(entries)
    return [metric for metric in METRICS if any(entry.get(metric.key) is not None for entry in entries)]


def mean_over_seeds(seeds: Sequence[Mapping[str, Any]], *, total_counts: bool = False) -> dict[str, Any]:
    """Average the results of :func:`measure` for several runs. If ``total_counts``, counts are summed instead."""
    counts = {metric.key for metric in METRICS if metric.unit == "count"}
    sums = {key: sum(seed[key] for seed in seeds) for key in seeds[0] if seeds[0][key] is not None}
    means = {key: value if total_counts and key in counts else value / len(seeds) for key, value in sums.items()}
    return {key: means.get(key) for key in seeds[0]}
