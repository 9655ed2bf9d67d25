"""A trained benchmark on one page: who is better, by how much, and at what cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

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
    table,
    tag,
)
from tiny_audio.analysis.report._scatter import Point, scatter_plot
from tiny_audio.analysis.report._svg import IntervalRow, Series, interval_plot, line_chart
from tiny_audio.runtime.yaml_file import dump_yaml

_CONTROLS = {
    "again": "the baseline once more, under other seeds",
    "crippled": "made worse on purpose",
}


def render_benchmark(results: Mapping[str, Any]) -> str:
    """The page of a trained benchmark; ``results`` is its ``results.json``."""
    variants: Sequence[Mapping[str, Any]] = results["variants"]
    names = list(variants[0]["sets"])
    title = f"Projectors: {sum(variant['control'] is None for variant in variants)} variants"
    budget = results["budget"]
    spent = (
        f"{count(budget['steps'])} steps" if budget["seconds"] is None else f"{duration(budget['seconds'])} of steps"
    )
    facts = f"{spent} each, {len(results['seeds'])} seeds, baseline "
    sections: list[tuple[str, Sequence[object]]] = [
        ("Verdicts", _verdicts(results)),
        *((f"Quality and cost: {name}", _plots(name, results)) for name in names),
        ("Variants", [_variants(variants)]),
        ("Controls", _controls(results)),
        ("Training loss", _curves(variants)),
        ("How it was measured", _provenance(results)),
    ]
    sections = [(name, parts) for name, parts in sections if parts]
    links = (tag("a", name, href=f"#section-{place}") for place, (name, _) in enumerate(sections))
    return page(
        title,
        tag("h1", title),
        tag("p", facts, tag("b", results["baseline"]), f"; {results['date'][:10]}", class_="muted"),
        tag("nav", *links),
        *(
            tag("section", tag("h2", name), *parts, id=f"section-{place}")
            for place, (name, parts) in enumerate(sections)
        ),
    )


def _verdicts(results: Mapping[str, Any]) -> list[Markup]:
    rows = [row for row in results["comparisons"] if row["control"] is None]
    if not rows:
        return []
    note = (
        "Difference in word error rate from the baseline, averaged over seeds, in percentage points: below zero is "
        "better. Intervals resample utterances, the same for both, and allow for other seeds by the t distribution of "
        "Welch's test, since a handful of seeds is too few to resample. p is the chance of so large a difference "
        "between variants that are equally good; “better” and “worse” want p, adjusted by Holm's correction for these "
        f"{count(len(rows))} comparisons, below 0.05. “No difference shown” does not mean that there is none."
    )
    return [_comparisons(rows), tag("p", note, class_="muted")]


def _comparisons(rows: Sequence[Mapping[str, Any]]) -> Markup:
    head = ["Variant", "Set", "Against the baseline", "Difference", "95 % interval", "p", "p, adjusted"]
    return table(
        head,
        [
            [
                label(row["label"]),
                row["set"],
                tag("b", row["verdict"]) if row["verdict"] in ("better", "worse") else row["verdict"],
                percent(row["difference"], sign="+"),
                interval(row["interval"], sign="+"),
                *("< 0.001" if row[key] < 0.001 else f"{row[key]:.3f}" for key in ("p_value", "p_holm")),
            ]
            for row in rows
        ],
        numbers=(3, 4, 5, 6),
    )


def _plots(name: str, results: Mapping[str, Any]) -> list[Markup]:
    variants = results["variants"]
    first = variants[0]["sets"][name]
    facts = f"{count(first['num_utterances'])} utterances, {count(first['num_reference_words'])} reference words"
    rows = [_interval_row(variant, name) for variant in variants]
    costs = [
        ("Parameters of the projector", "parameters", compact),
        ("Training time", "train_s", duration),
        ("Embeddings per second of audio", "embeddings_per_s", compact),
    ]
    plots = [
        scatter_plot(
            f"Word error rate and {words[0].lower()}{words[1:]}",
            words,
            [
                Point(
                    variant["label"],
                    variant[key],
                    variant["sets"][name]["wer"],
                    tuple(variant["sets"][name]["interval"]),
                )
                for variant in variants
                if variant["control"] is None
            ],
            show,
        )
        for words, key, show in costs
    ]
    differences = [
        IntervalRow(row["label"], row["difference"], tuple(row["interval"]))
        for row in results["comparisons"]
        if row["set"] == name
    ]
    signed = interval_plot(f"Difference from {results['baseline']}", differences, "", signed=True)
    return [
        tag("p", facts, "; lower is better", class_="muted"),
        interval_plot("Word error rate, averaged over seeds", rows, ""),
        tag("div", signed, style="margin:.7rem 0"),
        tag("div", *plots, class_="charts"),
        _scores(variants, name),
    ]


def _interval_row(variant: Mapping[str, Any], name: str) -> IntervalRow:
    found = variant["sets"][name]
    return IntervalRow(variant["label"], found["wer"], tuple(found["interval"]))


def _scores(variants: Sequence[Mapping[str, Any]], name: str) -> Markup:
    head = ["Variant", "WER", "95 % interval", "WER of each seed, %", "Empty", "Looping", "Truncated"]
    rows = []
    for variant in variants:
        found = variant["sets"][name]
        cells: list[object] = [label(variant["label"]), tag("b", percent(found["wer"])), interval(found["interval"])]
        cells.append(", ".join(f"{100 * rate:.2f}" for rate in found["by_seed"]))
        rows.append(cells + [count(found[f"{kind}_hypotheses"]) for kind in ("empty", "looping", "truncated")])
    return table(head, rows, numbers=range(1, len(head)))


def _variants(variants: Sequence[Mapping[str, Any]]) -> Markup:
    head = ["Variant", "Projector", "Parameters", "Embeddings per s", "Training time", "Steps"]
    rows = []
    for variant in variants:
        fields = {key: value for key, value in variant["section"].items() if key != "name"}
        shown = ", ".join(f"{key} {json.dumps(value)}" for key, value in fields.items())
        steps = sorted(set(variant["steps"]))
        rows.append(
            [
                label(variant["label"]),
                tag("span", tag("code", variant["section"]["name"]), f" {shown}" if shown else None),
                count(variant["parameters"]),
                compact(variant["embeddings_per_s"]),
                duration(variant["train_s"]),
                count(steps[0]) if len(steps) == 1 else f"{count(steps[0])}–{count(steps[-1])}",
            ]
        )
    return table(head, rows, numbers=range(2, len(head)))


def _controls(results: Mapping[str, Any]) -> list[Markup]:
    if not results["controls"]:
        return []
    head = ["Control", "", "Must be called", "Is called", "Holds"]
    rows = []
    for control in results["controls"]:
        found = "; ".join(f"{name}: {verdict}" for name, verdict in control["found"].items())
        holds = "yes" if control["held"] else tag("b", "NO")
        rows.append([label(control["label"]), _CONTROLS[control["kind"]], control["expected"], found, holds])
    return [table(head, rows), _comparisons([row for row in results["comparisons"] if row["control"] is not None])]


def _curves(variants: Sequence[Mapping[str, Any]]) -> list[Markup]:
    charts = []
    # More than four lines in one chart cannot be told apart; a chart of one would not say whose it is.
    total, number = len(variants), math.ceil(len(variants) / 4)
    for place in range(number):
        chosen = variants[place * total // number : (place + 1) * total // number]
        series = [Series(variant["label"], _mean_curve(variant["curves"])) for variant in chosen]
        charts.append(line_chart("Decoder's loss per token, averaged over seeds", series, may_be_log=True))
    drawn = [chart for chart in charts if chart]
    return [tag("div", *drawn, class_="charts")] if drawn else []


def _mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Over the steps that all seeds reached."""
    losses: list[dict[float, float]] = [dict(curve) for curve in curves]
    steps = [step for step in losses[0] if all(step in other for other in losses)]
    return [(step, sum(one[step] for one in losses) / len(losses)) for step in steps]


def _provenance(results: Mapping[str, Any]) -> list[Markup]:
    features = "computed once, shared by all variants" if results["cached"] else "computed at every step"
    rule = results["normalizer"]
    rows = {
        "command": results["command"],
        "date": results["date"],
        "recipe": results["recipe_path"],
        "seeds": " ".join(map(str, results["seeds"])),
        "frames of the encoder": features,
        "normalizer": f"{rule['name']} ({rule['version']})",
        "device": f"{results['device']}, {results['threads']} threads, {results['machine']}",
        **results["versions"],
        "training data": results["inputs"]["train"],
        "weights to start from": results["inputs"]["init_from"] or DASH,
    }
    text = dump_yaml({**results["recipe"]})
    return [
        table(("What", "Value"), [(key, tag("code", value)) for key, value in rows.items()]),
        tag("details", tag("summary", "The resolved recipe, with the first variant"), tag("pre", tag("code", text))),
    ]
