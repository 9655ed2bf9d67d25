"""The HTML page of a comparison of runs: verdicts, scores, slices, and the sentences that changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tiny_audio.analysis.compare import Changed, ComparedSet, Comparison, Sentence
from tiny_audio.analysis.comparison import too_few_units
from tiny_audio.analysis.report._html import (
    DASH,
    Markup,
    compact,
    count,
    duration,
    interval,
    label,
    page,
    percent,
    sections,
    table,
    tag,
)
from tiny_audio.analysis.report._systems import (
    page_title,
    rate_plots,
    rate_rows,
    scores_table,
    side_by_side,
    side_by_side_legend,
    slices_table,
    verdicts,
)
from tiny_audio.analysis.report._utterances import audio_player
from tiny_audio.analysis.report.audio import ReadAudio
from tiny_audio.analysis.tables import SEEDS_INCLUDED, units_text, with_seeds


def render_comparison(comparison: Comparison, read_audio: ReadAudio) -> str:
    """Render the page. ``read_audio`` returns the encoded clip of a row, to be embedded in the page."""
    title = page_title([variant.name for variant in comparison.variants])
    compared = {name: entry.comparison for name, entry in comparison.sets.items()}
    differences = [(name, entry) for name, found in compared.items() for entry in found.differences]
    units = units_text(entry.aligned.column for entry in compared.values())
    baseline = tag("p", "The baseline is ", tag("b", comparison.baseline), ".", class_="muted")
    return page(
        title,
        tag("h1", title),
        baseline if differences else None,
        *verdicts(differences, units, too_few_units(compared)),
        *sections(
            [
                *(
                    (name, list(_set(entry, comparison.baseline, read_audio)))
                    for name, entry in comparison.sets.items()
                ),
                ("Runs", _runs(comparison)),
                ("Where the recipes differ", _recipe(comparison)),
            ]
        ),
    )


def _set(entry: ComparedSet, baseline: str, read_audio: ReadAudio) -> Iterator[Markup]:
    compared = entry.comparison
    has_seeds = any(rate.num_seeds > 1 for rate in compared.rates)
    yield tag("p", _about(entry, has_seeds), class_="muted")
    for warning in entry.paired.warnings:
        yield tag("p", tag("b", "Warning: "), warning, ".")
    rates = [(with_seeds(rate.name, rate.num_seeds), rate) for rate in compared.rates]
    yield rate_plots("Word error rate", rate_rows(rates), baseline, compared.differences)
    yield tag("h3", "Scores")
    yield _scores(entry, has_seeds)
    if compared.slices:
        yield tag("h3", "By slice")
        yield from slices_table(compared.slices, [rate.name for rate in compared.rates])
    if entry.changed:
        yield tag("h3", "Sentences that changed")
        yield side_by_side_legend(
            "Hypotheses of each variant's first seed, below the reference"
            if has_seeds
            else "Hypotheses below the reference"
        )
        for changed in entry.changed:
            yield from _changed(changed, baseline, read_audio, folded=len(entry.changed) > 1)


def _about(entry: ComparedSet, has_seeds: bool) -> str:
    aligned, paired = entry.paired.aligned, entry.paired
    scorer = entry.comparison.aligned.systems[0].seeds[0]
    facts = [
        f"{count(len(aligned.rows))} utterances, {count(int(aligned.words.sum()))} reference words",
        f"{count(paired.left_out)} utterances are left out, because they are missing from some runs or differ between "
        "runs (reference or duration)"
        if paired.left_out
        else None,
        f"normalizer {paired.normalizer.name} ({paired.normalizer.version})",
        f"scorer {' '.join(scorer.scorer)}",
        f"intervals come from a bootstrap over {units_text([entry.comparison.aligned.column])}"
        + (f", and {SEEDS_INCLUDED}" if has_seeds else ""),
    ]
    return "; ".join(fact for fact in facts if fact) + "."


def _scores(entry: ComparedSet, has_seeds: bool) -> Markup:
    compared = entry.comparison
    after: list[tuple[str, list[str]]] = []
    if has_seeds:
        by_seed = [", ".join(f"{100 * wer:.2f}" for wer in rate.by_seed) for rate in compared.rates]
        after.append(("WER of each seed, %", by_seed))
    if any(difference.ctc_difference is not None for difference in compared.differences):
        changes = [(each.ctc_difference, each.ctc_interval) for each in compared.differences]
        after.append(
            ("CTC head: WER difference from baseline", [DASH, *(percent(value, sign="+") for value, _ in changes)])
        )
        after.append(("95 % interval (CTC head)", [DASH, *(interval(ends, sign="+") for _, ends in changes)]))
    rows = [((label(rate.name),), rate.row()) for rate in compared.rates]
    return scores_table(["Variant"], rows, after=after)


def _changed(changed: Changed, baseline: str, read_audio: ReadAudio, *, folded: bool) -> Iterator[Markup]:
    yield tag("h4", f"{changed.name} compared with {baseline}")
    counts = (
        f"{count(changed.num_improved)} sentences have fewer errors. {count(changed.num_worsened)} have more errors. "
        f"{count(changed.num_other)} have the same number of errors."
    )
    yield tag("p", counts)
    for title, sentences in (("Largest improvements", changed.improved), ("Largest regressions", changed.worsened)):
        if sentences:
            parts = (_sentence(sentence, [baseline, changed.name], read_audio) for sentence in sentences)
            yield tag("details", tag("summary", f"{title} ({len(sentences)})"), *parts, open=None if folded else "")


def _sentence(sentence: Sentence, names: Sequence[str], read_audio: ReadAudio) -> Markup:
    before, after = (side.errors for side in sentence.sides)
    player = audio_player(read_audio(sentence.row))
    return side_by_side(sentence.row, [f"errors: {before} → {after}"], names, sentence.sides, player)


def _runs(comparison: Comparison) -> list[Markup]:
    head = ["Variant", "Parameters", "Trained", "Steps", "Hours of audio", "Training time", "Device", "Runs"]
    rows = []
    for variant in comparison.variants:
        sizes = (count(variant.parameters[key]) for key in ("total", "trainable"))
        runs = [tag("div", tag("code", run.folder), f" seed {run.seed}", class_="nowrap") for run in variant.runs]
        cells = [label(variant.name), *sizes, count(variant.steps), compact(variant.audio_hours)]
        rows.append([*cells, duration(variant.wall_s), variant.device, tag("div", *runs)])
    return [table(head, rows, numbers=(1, 2, 3, 4, 5))]


def _recipe(comparison: Comparison) -> list[Markup]:
    if not comparison.recipe:
        return [tag("p", "The recipes are the same.")]
    names = [variant.name for variant in comparison.variants]
    rows = []
    for field in comparison.recipe:
        values = (field.values[name] for name in names)
        rows.append([tag("code", field.field), *(tag("code", DASH if value is None else value) for value in values)])
    return [table(["Field", *map(label, names)], rows)]
