"""HTML elements that several pages share: scores, warnings, verdicts, slices, and utterances word by word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from tiny_audio.analysis.comparison import SIGNIFICANCE, TIE, Difference, Rates, Slice
from tiny_audio.analysis.report._html import DASH, Markup, count, interval, label, number, percent, table, tag
from tiny_audio.analysis.report._svg import IntervalRow, interval_plot
from tiny_audio.analysis.scoring import Alignment
from tiny_audio.analysis.scoring.metrics import Metric, metric_columns
from tiny_audio.analysis.warnings import comparison_of, warnings_of

_MAX_COLUMNS = 300  # maximum number of word columns shown; a looping hypothesis can have thousands of words
_MAX_TITLE = 80
NO_WER = "No reference has a word, so there is no word error rate."
Columns = Sequence[tuple[str, Sequence[object]]]


def page_title(names: Sequence[str]) -> str:
    """Join all names. If the title would be too long, return the first name and the number of other names."""
    title = ", ".join(names)
    if len(title) <= _MAX_TITLE or len(names) == 1:
        return title
    return f"{names[0]} and {len(names) - 1} other{'s' if len(names) > 2 else ''}"


def scores_table(
    head: Sequence[str],
    rows: Sequence[tuple[Sequence[object], Mapping[str, Any]]],
    *,
    grouped_by: str | None = None,
    after: Columns = (),
) -> Markup:
    """Create a table with every metric that any row has.

    Args:
        head: heads of the columns on the left of the metrics.
        rows: for each row, the cells on the left of the metrics, and the scores by key.
        grouped_by: the metadata column whose groups were resampled for the intervals with keys ``*_by_group``. None if
            there are no such keys.
        after: heads and cells of the columns on the right of the metrics.
    """
    columns: list[tuple[object, Sequence[object]]] = []
    entries = [scores for _, scores in rows]
    for column in metric_columns(entries, text=metric_text, interval=interval, grouped_by=grouped_by):
        columns.append((tag("span", column.head, title=column.label), column.cells))
    columns += after
    cells = [[*first, *(column[index] for _, column in columns)] for index, (first, _) in enumerate(rows)]
    return table([*head, *(title for title, _ in columns)], cells, numbers=range(len(head), len(head) + len(columns)))


def warning_notes(sets: Mapping[str, Mapping[str, Any]]) -> list[Markup]:
    """Create a paragraph for each warning about a set, and one that says how each set was compared with training data.

    ``sets`` are the scores by name of the set.
    """
    warnings = [
        tag("p", tag("b", "Warning: "), f"{name}: {text}.")
        for name, scores in sets.items()
        for text in warnings_of(scores)
    ]
    compared = ((name, comparison_of(scores)) for name, scores in sets.items())
    return warnings + [tag("p", f"{name}: {text}.", class_="muted") for name, text in compared if text]


def metric_text(metric: Metric, value: float | None) -> str:
    """Format a metric's value for a page."""
    if value is None:
        return DASH
    return percent(value) if metric.unit == "share" else metric.text(value)


def verdicts(differences: Sequence[tuple[str, Difference]], units: str, warnings: Iterable[str] = ()) -> list[Markup]:
    """Create a table of verdicts with an explanation. Holm's correction treats all rows as one family.

    Args:
        differences: pairs of set name and difference.
        units: the resampled units, such as ``utterances``.
        warnings: warnings about these verdicts.
    """
    if not differences:
        return []
    size = len(differences)
    with_sets, with_mapsswe = any(name for name, _ in differences), any(entry.mapsswe for _, entry in differences)
    with_share = any(entry.probability_better is not None for _, entry in differences)
    head = ["System", *(["Set"] if with_sets else []), "Verdict", "Difference", "95 % interval"]
    head += [*(["Better in"] if with_share else []), "p", "Adjusted p"]
    head += ["MAPSSWE z", "MAPSSWE p"] if with_mapsswe else []
    rows = []
    for name, entry in differences:
        cells: list[object] = [label(entry.name), *([name] if with_sets else [])]
        cells.append(tag("span" if entry.verdict == TIE else "b", entry.verdict, class_="nowrap"))
        cells += [percent(entry.difference, sign="+"), interval(entry.interval, sign="+")]
        cells += [_share(entry.probability_better)] if with_share else []
        cells += [p_text(entry.p_value), p_text(entry.p_adjusted)]
        if with_mapsswe:
            test = entry.mapsswe
            cells += [DASH, DASH] if test is None else [f"{test.z:.3f}".replace("-", "−"), p_text(test.p_value)]
        rows.append(cells)
    note = (
        "The difference is the system's word error rate minus that of the baseline on the same utterances, in "
        "percentage points. If it is below zero, the system has the lower rate. The 95 % interval (paired bootstrap) "
        f"and p (approximate randomization) are computed by resampling {units}. p is the probability that two equally "
        "good systems differ by at least this much. The verdict is “better” or “worse” if p is below "
        f"{SIGNIFICANCE:g} after Holm's correction for {count(size)} comparison{'s' if size > 1 else ''}. “No "
        "difference shown” does not mean that the systems are equally good."
    )
    if with_share:
        note += " “Better in” is the share of the bootstrap's resamples in which the system is better."
    if with_mapsswe:
        note += (
            " MAPSSWE is the matched-pairs test of NIST's sc_stats and does not affect the verdict. If its z is above "
            "0, the system has fewer errors than the baseline."
        )
    return [
        table(head, rows, numbers=range(3 if with_sets else 2, len(head))),
        *(tag("p", tag("b", "Warning: "), text, ".") for text in warnings),
        tag("p", note, class_="muted"),
    ]


def p_text(value: float) -> str:
    """Format a p-value."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _share(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def rate_rows(rates: Iterable[tuple[str, Rates]]) -> list[IntervalRow]:
    """Return the rows of a WER plot, given pairs of label and rates. Systems without WER are omitted."""
    return [IntervalRow(name, each.wer, each.interval, each.ctc_wer) for name, each in rates if each.wer is not None]


def rate_plots(title: str, rates: Sequence[IntervalRow], baseline: str, differences: Sequence[Difference]) -> Markup:
    """Plot the rates, and the differences from the baseline, with their intervals."""
    if not rates:
        return tag("p", NO_WER, class_="muted")
    plots = [interval_plot(title, rates, "CTC head alone, greedy")]
    if differences:
        rows = [IntervalRow(entry.name, entry.difference, entry.interval) for entry in differences]
        plots.append(interval_plot(f"Difference from {baseline}", rows, "", signed=True))
    return tag("div", *(tag("div", plot, style="margin:.7rem 0") for plot in plots))


def slices_table(slices: Sequence[Slice], names: Sequence[str]) -> list[Markup]:
    """Create a table with the WER of each slice. A table of a single system also has intervals."""
    if not slices:
        return []
    several = len(names) > 1
    rows = []
    before = None
    for part in slices:
        cells: list[object] = [tag("b", part.column) if part.column != before else ""]
        cells += [tag("span", part.value, class_="nowrap"), count(part.num_utterances), count(part.num_reference_words)]
        cells += [_slice_rate(part, name) for name in names]
        rows.append(cells if several else [*cells, interval(part.intervals[names[0]])])
        before = part.column
    head = ["Slice", "", "Utterances", "Words", *(map(label, names) if several else ["WER", "95 % interval"])]
    note = (
        "* In this slice, the 95 % interval of the difference from the baseline excludes zero. This is a hint, not a "
        "test. If two systems are equally good, the interval excludes zero in about one of twenty slices."
    )
    is_marked = any(part.stands_out(name) for part in slices for name in names)
    return [table(head, rows, numbers=range(2, len(head))), *([tag("p", note, class_="muted")] if is_marked else [])]


def _slice_rate(part: Slice, name: str) -> Markup:
    bounds = part.difference_intervals.get(name)
    title = None if bounds is None else f"difference from the baseline: {interval(bounds, sign='+')}"
    rate = percent(part.wer[name])
    return tag("span", tag("b", rate, "*") if part.stands_out(name) else rate, title=title)


def side_by_side(
    row: Mapping[str, Any], facts: Sequence[str], names: Sequence[str], sides: Sequence[Alignment], audio: Markup
) -> Markup:
    """Show one utterance word by word: the reference, and below it the hypotheses of several systems.

    Args:
        row: a row with ``id``, ``duration`` and ``metadata``.
        facts: texts shown after the duration.
        names: names of the systems.
        sides: alignments of the systems' hypotheses.
        audio: an audio player, or the reason why there is none.
    """
    seconds = number(row["duration"])
    shown = [*([] if seconds is None else [f"{seconds:.1f} s"]), *facts]
    shown += [f"{key}: {value}" for key, value in row["metadata"].items() if value is not None]
    columns = list(_columns(sides))
    hidden = len(columns) - _MAX_COLUMNS
    more = tag("span", f"… and {count(hidden)} more", class_="muted") if hidden > 0 else None
    heads = tag("span", tag("i", "reference"), *(tag("i", name) for name in names), class_="pair side")
    words = (
        tag("span", tag("i", reference or ""), *(_word(reference, word) for word in others), class_="pair")
        for reference, *others in columns[:_MAX_COLUMNS]
    )
    header = tag("header", tag("b", row["id"]), *(tag("span", fact) for fact in shown))
    return tag("article", header, audio, tag("div", heads, *words, more, class_="words trios"))


def _columns(sides: Sequence[Alignment]) -> Iterator[tuple[str | None, ...]]:
    """Yield columns: a reference word, then a word of each system.

    If several systems insert words at the same position, the inserted words share columns.
    """
    for spot in zip(*map(_by_word, sides), strict=True):
        yield from ((None, *inserted) for inserted in zip_longest(*(inserted for _, _, inserted in spot)))
        if (reference := spot[0][0]) is not None:
            yield reference, *(hypothesis for _, hypothesis, _ in spot)


def _by_word(alignment: Alignment) -> Iterator[tuple[str | None, str | None, list[str]]]:
    """Yield each reference word, its hypothesis word, and the words inserted before it.

    The last item has no reference word. It contains the words inserted at the end.
    """
    inserted: list[str] = []
    for reference, hypothesis in alignment.pairs:
        if reference is None:
            inserted.append(str(hypothesis))
        else:
            yield reference, hypothesis, inserted
            inserted = []
    yield None, None, inserted


def _word(reference: str | None, word: str | None) -> Markup:
    """Show one hypothesis word. Errors are marked by color, and also by an underline, a dash or a plus sign."""
    if reference == word:
        return tag("i", word or "")
    if reference is None:
        return tag("i", f"+{word}", class_="w-ins", title=f"inserted: {word}")
    if word is None:
        return tag("i", DASH, class_="w-del", title=f"deleted: {reference}")
    return tag("i", word, class_="w-sub", title=f"{word} instead of {reference}")


def side_by_side_legend(what: str = "Reference above") -> Markup:
    """Return the legend of :func:`side_by_side`."""
    samples = (("word", "word"), ("word", "other"), ("word", None), (None, "word"))
    names = ("right", "substituted (underlined)", "deleted (dash)", "inserted (+)")
    keys = (
        tag("span", tag("span", _word(*pair), class_="pair"), name) for pair, name in zip(samples, names, strict=True)
    )
    return tag("p", tag("span", f"{what}, all texts normalized:"), *keys, class_="legend muted")
