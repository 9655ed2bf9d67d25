"""The HTML page of a benchmark that trains models: verdicts, and the quality and cost of each variant."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tiny_audio.analysis.comparison import Difference
from tiny_audio.analysis.report._html import (
    DASH,
    Markup,
    compact,
    count,
    duration,
    label,
    page,
    sections,
    table,
    tag,
)
from tiny_audio.analysis.report._scatter import Point, scatter_plot
from tiny_audio.analysis.report._svg import IntervalRow, Series, line_chart
from tiny_audio.analysis.report._systems import rate_plots, scores_table, verdicts, warning_notes
from tiny_audio.analysis.tables import SEEDS_INCLUDED, units_text
from tiny_audio.runtime.yaml_file import dump_yaml

_CONTROLS = {
    "again": "the baseline, trained again with other seeds",
    "degraded": "a variant that is degraded on purpose",
}


def render_benchmark(results: Mapping[str, Any]) -> str:
    """Render the page. ``results`` is the content of the benchmark's ``results.json``."""
    variants: Sequence[Mapping[str, Any]] = results["variants"]
    title = f"Projectors: {sum(variant['control'] is None for variant in variants)} variants"
    budget = results["budget"]
    spent = (
        f"{count(budget['steps'])} steps" if budget["seconds"] is None else f"{duration(budget['seconds'])} of steps"
    )
    facts = f"{spent} each, {len(results['seeds'])} seeds, baseline "
    return page(
        title,
        tag("h1", title),
        tag("p", facts, tag("b", results["baseline"]), f"; {results['date'][:10]}", class_="muted"),
        *sections(
            [
                ("Verdicts", _verdicts(results, controls=False)),
                *((f"Quality and cost: {name}", _plots(name, results)) for name in variants[0]["sets"]),
                ("Variants", [_variants(variants)]),
                ("Controls", _controls(results)),
                ("Training loss", _curves(variants)),
                ("How it was measured", _provenance(results)),
            ]
        ),
    )


def _verdicts(results: Mapping[str, Any], *, controls: bool) -> list[Markup]:
    rows = [row for row in results["comparisons"] if (row["control"] is not None) is controls]
    units = units_text(row["group_by"] for row in rows)
    differences = [(row["set"], Difference.of_benchmark(row)) for row in rows]
    return verdicts(differences, f"{units}, and {SEEDS_INCLUDED} (t distribution of Welch's test)")


def _plots(name: str, results: Mapping[str, Any]) -> list[Markup]:
    variants = results["variants"]
    first = variants[0]["sets"][name]
    facts = f"{count(first['num_utterances'])} utterances, {count(first['num_reference_words'])} reference words"
    costs = [
        ("Parameters of the projector", "parameters", compact),
        ("Training time", "train_s", duration),
        ("Embeddings per second of audio", "embeddings_per_s", compact),
    ]
    plots = (
        []
        if first["wer"] is None
        else [
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
    )
    rows = [row for row in results["comparisons"] if row["set"] == name]
    return [
        tag("p", facts, "; lower is better", class_="muted"),
        *warning_notes({name: results["sets"][name]}),
        rate_plots(
            "Word error rate, averaged over seeds",
            [
                IntervalRow(variant["label"], found["wer"], tuple(found["interval"]))
                for variant in variants
                for found in [variant["sets"][name]]
                if found["wer"] is not None
            ],
            results["baseline"],
            [Difference.of_benchmark(row) for row in rows],
        ),
        tag("div", *plots, class_="charts"),
        _scores(variants, name),
    ]


def _scores(variants: Sequence[Mapping[str, Any]], name: str) -> Markup:
    """Create a table of scores. Rates are means over seeds, and counts are totals."""
    rows = []
    for variant in variants:
        found = variant["sets"][name]
        rows.append(((label(variant["label"]),), found | {"wer_interval": found["interval"]}))
    by_seed = [", ".join(f"{100 * rate:.2f}" for rate in variant["sets"][name]["by_seed"]) for variant in variants]
    return scores_table(["Variant"], rows, after=[("WER of each seed, %", by_seed)])


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
    head = ["Control", "Description", "Expected verdict", "Verdict", "As expected"]
    rows = []
    for control in results["controls"]:
        found = "; ".join(f"{name}: {verdict}" for name, verdict in control["found"].items())
        held = "yes" if control["held"] else tag("b", "no")
        rows.append([label(control["label"]), _CONTROLS[control["kind"]], control["expected"], found, held])
    return [table(head, rows), *_verdicts(results, controls=True)]


def _curves(variants: Sequence[Mapping[str, Any]]) -> list[Markup]:
    charts = []
    # More than about four lines in a chart are hard to distinguish. Variants are spread evenly over the charts.
    # Otherwise, the last chart could have a single line, and charts with a single line have no legend.
    total, num_charts = len(variants), math.ceil(len(variants) / 4)
    for index in range(num_charts):
        chosen = variants[index * total // num_charts : (index + 1) * total // num_charts]
        series = [Series(variant["label"], _mean_curve(variant["curves"])) for variant in chosen]
        charts.append(line_chart("Loss per token, averaged over seeds", series, may_be_log=True))
    drawn = [chart for chart in charts if chart]
    return [tag("div", *drawn, class_="charts")] if drawn else []


def _mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Average the curves of all seeds, at the steps that all seeds reached."""
    losses: list[dict[float, float]] = [dict(curve) for curve in curves]
    steps = [step for step in losses[0] if all(step in other for other in losses)]
    return [(step, sum(one[step] for one in losses) / len(losses)) for step in steps]


def _provenance(results: Mapping[str, Any]) -> list[Markup]:
    features = "computed once and shared by all variants" if results["cached"] else "computed at every step"
    normalizer = results["normalizer"]
    rows = {
        "command": results["command"],
        "date": results["date"],
        "recipe": results["recipe_path"],
        "seeds": " ".join(map(str, results["seeds"])),
        "encoder frames": features,
        "normalizer": f"{normalizer['name']} ({normalizer['version']})",
        "device": f"{results['device']}, {results['threads']} threads, {results['machine']}",
        **results["versions"],
        "training data": results["inputs"]["train"],
        "initial weights": results["inputs"]["init_from"] or DASH,
    }
    text = dump_yaml({**results["recipe"]})
    return [
        table(("Setting", "Value"), [(key, tag("code", value)) for key, value in rows.items()]),
        tag("details", tag("summary", "The resolved recipe of the first variant"), tag("pre", tag("code", text))),
    ]
