"""Text tables of scores and comparisons for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tiny_audio.analysis.compare import Changed, Comparison
from tiny_audio.analysis.comparison import Difference, SetComparison, Slice, too_few_units
from tiny_audio.analysis.rescore import Rescored
from tiny_audio.analysis.scoring import Alignment
from tiny_audio.analysis.scoring.metrics import known_metrics, metric_columns
from tiny_audio.analysis.warnings import warnings_of
from tiny_audio.runtime.columns import in_columns, wrapped

_NUM_CHANGED = 3
_NUM_WORST = 5
_NUM_WORST_OF_SEVERAL = 2
_MAX_WORDS = 60
_MAX_WIDTH = 60
_LEGEND = "errors are marked as [-reference-] and {+hypothesis+}"
SEEDS_INCLUDED = "include the variation between seeds"
"""The text that ends a sentence about intervals and p-values, if a system has several seeds."""


def scores_table(
    head: Sequence[str],
    rows: Sequence[tuple[Sequence[str], Mapping[str, Any]]],
    *,
    grouped_by: str | None = None,
    after: Mapping[str, str] | None = None,
) -> str:
    """Format a table with every metric that any row has. Some metrics and all failures are listed below the table.

    Args:
        head: heads of the columns on the left of the metrics.
        rows: for each row, the cells on the left of the metrics, and the scores by key.
        grouped_by: the metadata column whose groups were resampled for the intervals with keys ``*_by_group``. None if
            there are no such keys.
        after: heads, by key, of columns with counts, such as ``{"num_utterances": "clips"}``. These columns are on the
            right of the metrics.
    """
    entries = [scores for _, scores in rows]
    shown = metric_columns(entries, interval=_ends, grouped_by=grouped_by, all_metrics=False)
    columns = [[column.head, *column.cells] for column in shown]
    columns += [
        [title, *("" if entry.get(key) is None else f"{entry[key]:,}" for entry in entries)]
        for key, title in (after or {}).items()
    ]
    texts = [list(head), *(list(cells) for cells, _ in rows)]
    table = in_columns(
        [[*cells, *(column[index] for column in columns)] for index, cells in enumerate(texts)], num_texts=len(head)
    )
    failures = [metric for metric in known_metrics(entries) if metric.is_failure]
    lines = []
    for metric in (metric for metric in known_metrics(entries) if metric.has_line):
        for cells, entry in rows:
            if entry.get(metric.key) is not None:
                ends = entry.get(metric.interval or "")
                text = f"{metric.text(entry[metric.key])}{f' {metric.interval_text(ends)}' if ends else ''}"
                lines.append(f"{' '.join(cells).strip()}: {text} {metric.label}")
    for cells, entry in rows:
        found = [f"{metric.label} {metric.text(entry[metric.key])}" for metric in failures if entry.get(metric.key)]
        if found:
            lines.append(f"{' '.join(cells).strip()}: {', '.join(found)}")
    return "\n".join([table, *lines])


def warning_lines(rows: Iterable[tuple[Sequence[str], Mapping[str, Any]]]) -> Iterator[str]:
    """Yield the warnings about each row's scores, wrapped for a terminal. ``rows`` are as in :func:`scores_table`."""
    for cells, scores in rows:
        for text in warnings_of(scores):
            yield from wrapped(f"warning: {' '.join(cells).strip()}: {text}")


def differences_table(baseline: str, differences: Sequence[tuple[str, Difference]], units: str) -> str:
    """Format a table of verdicts, one comparison per row. Holm's correction treats all rows as one family.

    Args:
        baseline: the name of the baseline.
        differences: pairs of set name and difference.
        units: the resampled units, such as ``utterances``.
    """
    size = len(differences)
    head = [f"against {baseline}", "set", "", "difference", "95 % interval", "p", "adjusted"]
    rows = [[*head, "segments", "MAPSSWE z", "MAPSSWE p"]]
    for set_name, entry in differences:
        cells = [entry.name, set_name, entry.verdict, f"{100 * entry.difference:+.2f}", _ends(entry.interval, "+")]
        test = entry.mapsswe
        mapsswe = [""] * 3 if test is None else [f"{test.num_segments:,}", f"{test.z:.3f}", _p(test.p_value)]
        rows.append([*cells, _p(entry.p_value), _p(entry.p_adjusted), *mapsswe])
    empty = [index for index, column in enumerate(zip(*rows[1:], strict=True)) if not any(column)]
    kept = [[cell for index, cell in enumerate(row) if index not in empty] for row in rows]
    return (
        f"{in_columns(kept, num_texts=2 if 1 in empty else 3)}\n"
        "Differences in WER are in percentage points. If the difference is below 0, the system has a lower WER than "
        f"the baseline. Intervals and p are computed by resampling {units}. Adjusted: p after Holm's correction for "
        f"{size} comparison{'s' if size > 1 else ''}. The verdict is better or worse only if the adjusted p is below "
        "0.05."
    )


def verdicts(baseline: str, sets: Mapping[str, SetComparison]) -> Iterator[str]:
    """Yield the table of verdicts, with warnings about sets that have too few units."""
    rows = [(name, entry) for name, compared in sets.items() for entry in compared.differences]
    if rows:
        warnings = (f"warning: {text}" for text in too_few_units(sets))
        units = units_text(compared.aligned.column for compared in sets.values())
        yield "\n".join([differences_table(baseline, rows, units), *warnings])


def units_text(columns: Iterable[str | None]) -> str:
    """Describe the resampled units, such as ``utterances`` or ``whole groups by speaker``.

    ``columns`` are results of :func:`tiny_audio.analysis.comparison.units_column`.
    """
    units = ("utterances" if column is None else f"whole groups by {column}" for column in columns)
    return " and ".join(dict.fromkeys(units))


def slices_table(slices: Sequence[Slice], names: Sequence[str]) -> str:
    """Format the WER of each slice. Mark a WER if the interval of its difference from the baseline excludes zero."""
    rows = [["WER by slice", "", "clips", *names]]
    for part in slices:
        rates = (f"{part.wer[name]:.2%}{'*' if part.stands_out(name) else ' '}" for name in names)
        rows.append([part.column, part.value, f"{part.num_utterances:,}", *rates])
    text = in_columns(rows, num_texts=2)
    note = "\n* The 95 % interval of the difference from the baseline excludes zero. This is a hint, not a test."
    return text + note if any(part.stands_out(name) for part in slices for name in names) else text


def comparison_table(comparison: Comparison) -> str:
    """Format a comparison of runs. Long lists are shortened."""
    return "\n\n".join(_comparison_blocks(comparison))


def _comparison_blocks(comparison: Comparison) -> Iterator[str]:
    for name, entry in comparison.sets.items():
        compared, paired = entry.comparison, entry.paired
        facts = [f"{len(paired.aligned.rows):,} utterances", f"{int(paired.aligned.words.sum()):,} words"]
        if paired.aligned.column is not None:
            facts.append(f"{paired.aligned.num_groups} groups by {paired.aligned.column} are resampled")
        if paired.left_out:
            facts.append(f"{paired.left_out:,} utterances left out because they are not the same in all runs")
        rates = [((with_seeds(rate.name, rate.num_seeds),), rate.row()) for rate in compared.rates]
        lines = [f"{name}: {', '.join(facts)}; normalizer {paired.normalizer.name}"]
        yield "\n".join([*lines, *(f"  warning: {text}" for text in paired.warnings), scores_table([""], rates)])
    yield from verdicts(comparison.baseline, {name: entry.comparison for name, entry in comparison.sets.items()})
    for name, entry in comparison.sets.items():
        if entry.comparison.slices:
            yield f"{name}\n{slices_table(entry.comparison.slices, [rate.name for rate in entry.comparison.rates])}"
        yield from (_changed(name, changed, comparison.baseline) for changed in entry.changed)
    rows = [["", "parameters", "trained", "steps", "hours of audio", "training s", "device"]]
    for variant in comparison.variants:
        sizes = (f"{variant.parameters[key]:,}" for key in ("total", "trainable"))
        cells = [variant.name, *sizes, f"{variant.steps:,}", f"{variant.audio_hours:,.1f}", f"{variant.wall_s:,.0f}"]
        rows.append([*cells, variant.device])
    yield in_columns(rows, num_texts=1)
    if len(comparison.variants) > 1:
        names = [variant.name for variant in comparison.variants]
        fields = [[field.field, *(_short(field.values[name]) for name in names)] for field in comparison.recipe]
        table = [["recipe", *names], *fields]
        yield in_columns(table, num_texts=1 + len(names)) if fields else "The recipes are the same."


def with_seeds(name: str, num_seeds: int) -> str:
    """Return the name of a system, followed by its number of seeds if there are several."""
    return name if num_seeds == 1 else f"{name} ({num_seeds} seeds)"


def _changed(set_name: str, changed: Changed, baseline: str) -> str:
    lines = [
        f"{set_name}, {changed.name} compared with {baseline}: {changed.num_improved} sentences with fewer errors, "
        f"{changed.num_worsened} with more errors, {changed.num_other} with the same number of errors"
    ]
    for title, sentences in (("improved", changed.improved), ("worsened", changed.worsened)):
        for sentence in sentences[:_NUM_CHANGED]:
            lines.append(f"  {title} {sentence.row['id']}")
            lines += [
                f"    {marked(side)}  ({name})"
                for side, name in zip(sentence.sides, (baseline, changed.name), strict=True)
            ]
    if len(lines) > 1:
        lines[0] += f"; {_LEGEND}"
    return "\n".join(lines)


def rescore_table(rescored: Rescored) -> str:
    """Format scores of hypotheses, and verdicts if there are several systems."""
    names = [target.name for target in rescored.targets]
    blocks = [_about(rescored), _rescored_scores(rescored), *verdicts(names[0], {"": rescored.comparison})]
    if rescored.comparison.slices:
        blocks.append(slices_table(rescored.comparison.slices, names))
    limit = _NUM_WORST if len(names) == 1 else _NUM_WORST_OF_SEVERAL
    for name, rows, system in zip(names, rescored.rows, rescored.comparison.aligned.systems, strict=True):
        pairs = [(row["id"], side) for row, side in zip(rows, system.alignments, strict=True)]
        worst = sorted(pairs, key=lambda pair: -pair[1].errors)[:limit]
        lines = [f"  {clip}: {side.errors} errors\n    {marked(side)}" for clip, side in worst if side.errors]
        if lines:
            blocks.append("\n".join([f"{name}, the worst utterances; {_LEGEND}", *lines]))
    return "\n\n".join(blocks)


def _about(rescored: Rescored) -> str:
    aligned, first = rescored.comparison.aligned, rescored.transcripts[0]
    facts = [f"{len(aligned.rows):,} utterances", f"{int(aligned.words.sum()):,} words"]
    if rescored.left_out:
        facts.append(f"{rescored.left_out:,} clips left out because a target has no hypothesis for them")
    facts.append(f"normalizer {first.normalizer.name} ({first.normalizer.version})")
    facts.append(f"cost {first.applied_cost} ({' '.join(first.scorer)})")
    text = "; ".join(facts)
    if rescored.glued_references:
        text += (
            f"\nwarning: in {rescored.glued_references:,} references, this normalizer joins digits into one word (one "
            "two -> 12). One wrong digit then makes the whole number wrong. --normalizer lower does not join digits."
        )
    return text


def _rescored_scores(rescored: Rescored) -> str:
    rows = [((entry["name"],), entry) for entry in rescored.scores]
    text = scores_table([""], rows, grouped_by=rescored.comparison.aligned.column)
    if any(entry["failures"] for entry in rescored.scores):
        text += "\nFailed: the share of the target's clips without a hypothesis. All other rates leave these clips out."
    return text


def marked(alignment: Alignment) -> str:
    """Format an alignment on one line, with marks like those of ``git diff --word-diff``."""
    words = []
    for reference, hypothesis in alignment.pairs[:_MAX_WORDS]:
        if reference == hypothesis:
            words.append(str(reference))
        else:
            deleted = "" if reference is None else f"[-{reference}-]"
            words.append(deleted + ("" if hypothesis is None else f"{{+{hypothesis}+}}"))
    return " ".join([*words, *(["…"] if len(alignment.pairs) > _MAX_WORDS else [])])


def _short(value: str | None) -> str:
    if value is None:
        return "–"
    return value if len(value) <= _MAX_WIDTH else f"{value[: _MAX_WIDTH - 1]}…"


def _ends(interval: Sequence[float], sign: str = "") -> str:
    low, high = interval
    return f"[{100 * low:{sign}.2f}, {100 * high:{sign}.2f}]"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
