"""Benchmark results as text tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tiny_audio.analysis.comparison import Difference
from tiny_audio.analysis.tables import SEEDS_INCLUDED, differences_table, scores_table, units_text, warning_lines
from tiny_audio.commands.bench.timing import PASSES
from tiny_audio.runtime.columns import in_columns


def timings_table(measured: Mapping[str, Any]) -> str:
    """Format a table with a row for each variant, clip duration and batch size.

    Args:
        measured: the result of :func:`tiny_audio.commands.bench.timing.time_projectors`.
    """
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for case in measured["cases"]:
        found.setdefault((case["label"], case["duration_s"], case["batch_size"]), {})[case["which"]] = case
    head = ["projector", "parameters", "emb/s", "clip", "batch", "forward", "+ backward", "GFLOPs", "+ backward"]
    rows = [[*head, "peak memory", "+ backward"]]
    for (label, duration_s, batch_size), case in found.items():
        forward, both = (case[which] for which in PASSES)
        cells = [label, f"{forward['parameters']:,}", f"{forward['embeddings_per_s']:.2f}"]
        cells += [f"{duration_s:g} s", str(batch_size)]
        cells += [f"{1000 * row['median_s']:,.2f} ms" for row in (forward, both)]
        cells += [f"{row['flops'] / 1e9:.3g}" for row in (forward, both)]
        rows.append(cells + [f"{row['peak_bytes'] / 2**20:,.1f} MiB" for row in (forward, both)])
    shape = measured["shape"]
    return (
        f"{in_columns(rows, num_texts=1)}\n{shape['in_dim']} → {shape['out_dim']} channels at {shape['frame_rate']:g} "
        f"frames/s, {shape['precision']}, {measured['device']}, {measured['threads']} threads; times are medians; "
        "memory excludes weights and frames"
    )


def results_table(results: Mapping[str, Any]) -> str:
    """Format the rates and verdicts of a trained benchmark, and the results of its controls."""
    return "\n\n".join(_blocks(results))


def _blocks(results: Mapping[str, Any]) -> Iterator[str]:
    for name in results["variants"][0]["sets"]:
        rows = []
        for variant in results["variants"]:
            cells = (variant["label"], f"{variant['parameters']:,}", f"{variant['embeddings_per_s']:.2f}")
            scores = variant["sets"][name]
            rows.append(((*cells, f"{variant['train_s']:.0f} s"), scores | {"wer_interval": scores["interval"]}))
        yield scores_table([name, "parameters", "emb/s", "training"], rows)
    if warnings := list(warning_lines(((name,), entry) for name, entry in results["sets"].items())):
        yield "\n".join(warnings)
    for controls in (False, True):
        found = [row for row in results["comparisons"] if (row["control"] is not None) is controls]
        if found:
            units = units_text(row["group_by"] for row in found)
            pairs = [(row["set"], Difference.of_benchmark(row)) for row in found]
            yield differences_table(results["baseline"], pairs, f"{units}, and {SEEDS_INCLUDED}")
    budget = results["budget"]
    spent = f"{budget['steps']} steps" if budget["seconds"] is None else f"{budget['seconds']:g} s"
    yield f"{spent} each, seeds {', '.join(map(str, results['seeds']))}; rates are means over seeds, counts are totals"
    for control in results["controls"]:
        shown = [f"{name}: {verdict}" for name, verdict in control["found"].items()]
        verdicts = "; ".join(shown) or "no comparison, because no reference has a word"
        state = "holds" if control["held"] else "FAILS"
        yield f"control {state}: the verdict on {control['label']} should be {control['expected']!r} ({verdicts})"
