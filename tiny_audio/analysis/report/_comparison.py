"""Several runs on one page: who is better, by how much, where, and on which sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from tiny_audio.analysis.report._html import (
    DASH,
    Markup,
    compact,
    count,
    duration,
    interval,
    label,
    number,
    page,
    percent,
    table,
    tag,
)
from tiny_audio.analysis.report._svg import IntervalRow, interval_plot
from tiny_audio.analysis.scoring import Alignment, Normalizer, align, normalizer

_MAX_TITLE = 80
_MAX_COLUMNS = 300  # a looping hypothesis can have thousands of words


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """Runs compared, as one HTML page; ``comparison`` as in :data:`tiny_audio.analysis.compare.Comparison`.

    Raises:
        UserError: a set's ``normalizer`` is unknown.
    """
    variants = comparison["variants"]
    others = [variant["name"] for variant in variants[1:]]
    title = ", ".join(variant["name"] for variant in variants)
    if len(title) > _MAX_TITLE:
        title = f"{comparison['baseline']} and {len(others)} other{'s' if len(others) > 1 else ''}"
    sections: list[tuple[str, Sequence[object]]] = [
        *((name, list(_set(name, entry, comparison))) for name, entry in comparison["sets"].items()),
        ("Runs", _runs(variants)),
        ("Where the recipes differ", _recipe(comparison["recipe"], variants)),
    ]
    links = (tag("a", name, href=f"#section-{place}") for place, (name, _) in enumerate(sections))
    return page(
        title,
        tag("h1", title),
        tag("p", "compared with ", tag("b", comparison["baseline"]), ", the baseline", class_="muted")
        if others
        else None,
        *_verdicts(comparison),
        tag("nav", *links),
        *(
            tag("section", tag("h2", name), *parts, id=f"section-{place}")
            for place, (name, parts) in enumerate(sections)
        ),
    )


def _verdicts(comparison: Mapping[str, Any]) -> list[Markup]:
    """One line per variant and set: what may be said, in words."""
    rows = []
    for set_name, entry in comparison["sets"].items():
        for found in entry["differences"]:
            verdict = found["verdict"]
            shown = tag("span" if verdict == "no difference shown" else "b", verdict, class_="nowrap")
            change, bounds = percent(found["difference"], sign="+"), interval(found["interval"], sign="+")
            p_values = (_p(found[key]) for key in ("p_value", "p_adjusted"))
            rows.append([label(found["name"]), set_name, shown, change, bounds, *p_values])
    if not rows:
        return []
    size = comparison["num_comparisons"]
    note = (
        "Difference in word error rate from the baseline, in percentage points, on the same utterances: below zero "
        "is better. The interval is each comparison's own. p is the chance of so large a difference between variants "
        "that are equally good (approximate randomization); “better” and “worse” want p, adjusted by Holm's "
        f"correction for {count(size)} comparison{'s' if size > 1 else ''}, below {comparison['significance']:g}. “No "
        "difference shown” does not mean that there is none."
    )
    head = ["Variant", "Set", "Against the baseline", "Difference", "95 % interval", "p", "p, adjusted"]
    return [table(head, rows, numbers=(3, 4, 5, 6)), tag("p", note, class_="muted")]


def _set(name: str, entry: Mapping[str, Any], comparison: Mapping[str, Any]) -> Iterator[Markup]:
    yield tag("p", _about(entry), class_="muted")
    for doubt in entry["doubts"]:
        yield tag("p", tag("b", "Mind: "), doubt, ".")
    plots = [
        interval_plot(
            "Word error rate",
            [
                IntervalRow(_with_seeds(variant), variant["wer"], tuple(variant["wer_interval"]), variant["ctc_wer"])
                for variant in entry["variants"]
            ],
            "CTC head alone, greedy",
        )
    ]
    if entry["differences"]:
        rows = [IntervalRow(row["name"], row["difference"], tuple(row["interval"])) for row in entry["differences"]]
        plots.append(interval_plot(f"Difference from {comparison['baseline']}", rows, "", signed=True))
    for plot in plots:
        yield tag("div", plot, style="margin:.7rem 0")
    yield tag("h3", "Scores")
    yield _scores(entry)
    if entry["slices"]:
        yield tag("h3", "By slice")
        yield from _slices(entry)
    if entry["changed"]:
        yield tag("h3", "Sentences that changed")
        has_seeds = any(len(variant["seeds"]) > 1 for variant in entry["variants"])
        yield trio_legend("Of the first seed of each; the" if has_seeds else "The")
        rule = normalizer(entry["normalizer"])
        for changed in entry["changed"]:
            yield from _changed(changed, comparison["baseline"], rule, folded=len(entry["changed"]) > 1)


def _about(entry: Mapping[str, Any]) -> str:
    groups = entry["num_groups"]
    whole = "utterances" if groups is None else f"{count(groups)} groups by {entry['group_by']}"
    left = entry["left_out"]
    facts = [
        f"{count(entry['num_utterances'])} utterances, {count(entry['num_reference_words'])} reference words",
        f"{count(left)} utterances that not all runs have are left out" if left else None,
        f"normalizer {entry['normalizer']} ({entry['normalizer_version']})",
        f"scorer {entry['scorer']} {entry['scorer_version']}",
        f"intervals resample {whole}"
        + (", and allow for other seeds" if any(len(v["seeds"]) > 1 for v in entry["variants"]) else ""),
    ]
    return "; ".join(fact for fact in facts if fact) + "."


def _with_seeds(variant: Mapping[str, Any]) -> str:
    seeds = len(variant["seeds"])
    return variant["name"] if seeds == 1 else f"{variant['name']} ({seeds} seeds)"


def _scores(entry: Mapping[str, Any]) -> Markup:
    head = ["Variant", "WER", "95 % interval", "Sub.", "Del.", "Ins."]
    has_head = any(variant["ctc_wer"] is not None for variant in entry["variants"])
    has_seeds = any(len(variant["seeds"]) > 1 for variant in entry["variants"])
    ctc_differences = {row["name"]: row for row in entry["differences"]}
    rows = []
    for variant in entry["variants"]:
        cells = [label(variant["name"]), tag("b", percent(variant["wer"])), interval(variant["wer_interval"])]
        cells += [compact(variant[kind]) for kind in ("substitutions", "deletions", "insertions")]
        if has_seeds:
            cells.append(", ".join(f"{100 * rate:.2f}" for rate in variant["seeds"]))
        if has_head:
            found = ctc_differences.get(variant["name"], {})
            cells += [percent(variant["ctc_wer"]), percent(found.get("ctc_difference"), sign="+")]
            cells.append(interval(found.get("ctc_interval"), sign="+"))
        rows.append(cells)
    head += ["WER of each seed, %"] if has_seeds else []
    head += ["CTC head alone", "Difference", "95 % interval"] if has_head else []
    return table(head, rows, numbers=range(1, len(head)))


def _slices(entry: Mapping[str, Any]) -> Iterator[Markup]:
    names = [variant["name"] for variant in entry["variants"]]
    head = ["Slice", "", "Utterances", "Words", *map(label, names)]
    rows = []
    before = None
    for part in entry["slices"]:
        cells: list[object] = [tag("b", part["column"]) if part["column"] != before else ""]
        cells.append(tag("span", part["value"], class_="nowrap"))
        cells += [count(part["num_utterances"]), count(part["num_reference_words"])]
        for name in names:
            rate, bounds = part["wer"][name], part["intervals"].get(name)
            leaves_zero_out = bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
            title = None if bounds is None else f"difference from the baseline: {interval(bounds, sign='+')}"
            shown = tag("b", percent(rate), "*") if leaves_zero_out else percent(rate)
            cells.append(tag("span", shown, title=title))
        rows.append(cells)
        before = part["column"]
    yield table(head, rows, numbers=range(2, len(head)))
    if any(bounds for part in entry["slices"] for bounds in part["intervals"].values()):
        note = (
            "* the 95 % interval of the difference from the baseline in this slice, alone, leaves out zero: a hint "
            "where to look, and no test, since one slice in twenty would by chance."
        )
        yield tag("p", note, class_="muted")


def _changed(changed: Mapping[str, Any], baseline: str, rule: Normalizer, *, folded: bool) -> Iterator[Markup]:
    yield tag("h4", f"{changed['name']} against {baseline}")
    counts = (
        f"Sentences with fewer errors: {count(changed['num_improved'])}; with more: "
        f"{count(changed['num_worsened'])}; with as many: {count(changed['num_other'])}."
    )
    yield tag("p", counts)
    for key, title in (("improved", "The most improved"), ("worsened", "The most worsened")):
        sentences = changed[key]
        if sentences:
            parts = (_sentence(sentence, baseline, changed["name"], rule) for sentence in sentences)
            yield tag("details", tag("summary", f"{title} ({len(sentences)})"), *parts, open=None if folded else "")


def _sentence(sentence: Mapping[str, Any], baseline: str, other: str, rule: Normalizer) -> Markup:
    seconds = number(sentence["duration"])
    errors = f"{sentence['baseline_errors']} → {sentence['other_errors']} errors"
    facts = [errors, None if seconds is None else f"{seconds:.1f} s"]
    facts += [f"{key}: {value}" for key, value in sentence["metadata"].items() if value is not None]
    before, after = align([sentence["text"]] * 2, [sentence["baseline"], sentence["other"]], rule)
    columns = list(_columns(before, after))
    hidden = len(columns) - _MAX_COLUMNS
    more = tag("span", f"… and {count(hidden)} more", class_="muted") if hidden > 0 else None
    side = tag("span", tag("i", "reference"), tag("i", baseline), tag("i", other), class_="pair side")
    header = tag("header", tag("b", sentence["id"]), *(tag("span", fact) for fact in facts if fact))
    words = (_trio(*column) for column in columns[:_MAX_COLUMNS])
    return tag("article", header, tag("div", side, *words, more, class_="words trios"))


def _columns(before: Alignment, after: Alignment) -> Iterator[tuple[str | None, str | None, str | None]]:
    """(reference, baseline, other) words of two alignments with one reference, insertions side by side."""
    for (said, one, inserted), (_, two, also) in zip(by_word(before), by_word(after), strict=True):
        yield from ((None, *pair) for pair in zip_longest(inserted, also))
        if said is not None:
            yield said, one, two


def by_word(alignment: Alignment) -> Iterator[tuple[str | None, str | None, list[str]]]:
    """Each reference word, what was heard for it, and what was inserted before it; at last the end, a ``None``."""
    inserted: list[str] = []
    for said, heard in alignment.pairs:
        if said is None:
            inserted.append(str(heard))
        else:
            yield said, heard, inserted
            inserted = []
    yield None, None, inserted


def _trio(said: str | None, *heard: str | None) -> Markup:
    return tag("span", tag("i", said or ""), *(heard_word(said, word) for word in heard), class_="pair")


def heard_word(said: str | None, word: str | None) -> Markup:
    """The kind of error shows without color too: underlined, a dash, a plus."""
    if said == word:
        return tag("i", word or "")
    if said is None:
        return tag("i", f"+{word}", class_="w-ins", title=f"inserted: {word}")
    if word is None:
        return tag("i", DASH, class_="w-del", title=f"deleted: {said}")
    return tag("i", word, class_="w-sub", title=f"{said}, heard as {word}")


def trio_legend(whose: str = "The") -> Markup:
    """How words of several hypotheses under one reference are to be read."""
    samples = (("word", "word"), ("word", "other"), ("word", None), (None, "word"))
    names = ("right", "substituted (underlined)", "deleted (dash)", "inserted (+)")
    keys = (
        tag("span", tag("span", heard_word(*pair), class_="pair"), name)
        for pair, name in zip(samples, names, strict=True)
    )
    said = f"{whose} reference above, all normalized:"
    return tag("p", tag("span", said), *keys, class_="legend muted")


def _runs(variants: Sequence[Mapping[str, Any]]) -> list[Markup]:
    head = ["Variant", "Parameters", "Trained", "Steps", "Hours of audio", "Training time", "Device", "Runs"]
    rows = []
    for variant in variants:
        sizes = (count(variant["parameters"][key]) for key in ("total", "trainable"))
        runs = [
            tag("div", tag("code", run["folder"]), f" seed {run['seed']}", class_="nowrap") for run in variant["runs"]
        ]
        cells = [label(variant["name"]), *sizes, count(variant["steps"]), compact(variant["audio_hours"])]
        rows.append([*cells, duration(variant["wall_s"]), variant["device"], tag("div", *runs)])
    return [table(head, rows, numbers=(1, 2, 3, 4, 5))]


def _recipe(fields: Sequence[Mapping[str, Any]], variants: Sequence[Mapping[str, Any]]) -> list[Markup]:
    if not fields:
        return [tag("p", "Nowhere.")]
    names = [variant["name"] for variant in variants]
    rows = []
    for field in fields:
        values = (field["values"][name] for name in names)
        rows.append([tag("code", field["field"]), *(tag("code", DASH if v is None else v) for v in values)])
    return [table(["Field", *map(label, names)], rows)]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
