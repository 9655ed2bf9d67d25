"""What a terminal shows of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiny_audio.commands.bench.timing import PASSES
from tiny_audio.runtime.columns import in_columns


def timings_table(measured: Mapping[str, Any]) -> str:
    """A row for each variant, clip length and batch size, of
    :func:`tiny_audio.commands.bench.timing.time_projectors`."""
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
    near = measured["neighbors"]
    return (
        f"{in_columns(rows, num_texts=1)}\n{near['in_dim']} → {near['out_dim']} channels at {near['frame_rate']:g} "
        f"frames/s, {near['precision']}, {measured['device']}, {measured['threads']} threads; medians; memory beyond "
        "weights and frames"
    )


def results_table(results: Mapping[str, Any]) -> str:
    """Rates and verdicts of every variant, then of the controls, of a trained benchmark."""
    names = list(results["variants"][0]["sets"])
    compared = {(row["label"], row["set"]): row for row in results["comparisons"]}
    blocks = []
    for name in names:
        rows = [[name, "parameters", "emb/s", "training", "WER", "95 % interval", "difference", "95 % interval", "p"]]
        rows[0].append("verdict")
        for variant in results["variants"]:
            found = variant["sets"][name]
            cells = [variant["label"], f"{variant['parameters']:,}", f"{variant['embeddings_per_s']:.2f}"]
            cells += [f"{variant['train_s']:.0f} s", f"{found['wer']:.1%}", _interval(found["interval"])]
            row = compared.get((variant["label"], name))
            if row is None:
                cells += ["", "", "", "baseline"]
            else:
                cells += [f"{100 * row['difference']:+.1f}", _interval(row["interval"], "+")]
                cells += [f"{row['p_holm']:.4f}", row["verdict"]]
            rows.append(cells)
        # The last column is words: set to the left by hand, since numbers before it are not.
        width = max(len(row[-1]) for row in rows)
        blocks.append(in_columns([[*row[:-1], row[-1].ljust(width)] for row in rows], num_texts=1))
    budget = results["budget"]
    spent = f"{budget['steps']} steps" if budget["seconds"] is None else f"{budget['seconds']:g} s"
    blocks.append(
        f"{spent} each, seeds {', '.join(map(str, results['seeds']))}; differences from {results['baseline']} in "
        "percentage points, below 0 is better; p after Holm's correction"
    )
    for control in results["controls"]:
        said = "; ".join(f"{name}: {verdict}" for name, verdict in control["found"].items())
        state = "holds" if control["held"] else "FAILS"
        blocks.append(f"control {state}: {control['label']} must be called {control['expected']!r} ({said})")
    return "\n\n".join(blocks)


def _interval(ends: tuple[float, float], sign: str = "") -> str:
    return f"[{100 * ends[0]:{sign}.1f}, {100 * ends[1]:{sign}.1f}]"
