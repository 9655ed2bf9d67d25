"""The section "What the decoder adds" of a run's page (see :mod:`tiny_audio.analysis.decoder_gain`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiny_audio.analysis.comparison import Difference, Slice
from tiny_audio.analysis.decoder_gain import MODEL
from tiny_audio.analysis.report._html import DASH, Markup, compact, count, interval, percent, table, tag
from tiny_audio.analysis.report._systems import slices_table, verdicts
from tiny_audio.analysis.tables import units_text

_HEAD = (
    "Set",
    "System",
    "Utterances",
    "Normalizer",
    "WER",
    "95 % interval",
    "FLOPs per second of audio",
    "Time per clip",
)


def decoder_gain(entries: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Return the section's content from ``decoder_gain`` in ``report.json``: rates, costs, verdicts and slices."""
    if not entries:
        return []
    differences = [
        (entry["set"], Difference.from_json({**entry["difference"], "name": f"{MODEL}, against {entry['system']}"}))
        for entry in entries
    ]
    note = (
        "The model is compared with its own CTC head, with the encoder's published checkpoint, or with both. This run "
        "has not trained the published checkpoint. Both systems of a comparison have the same clips and the same "
        f"normalizer. {_times(entries)}"
    )
    return [
        table(_HEAD, [row for entry in entries for row in _rows(entry)], numbers=(2, 4, 5, 6, 7)),
        tag("p", note, class_="muted"),
        *verdicts(differences, units_text(entry["group_by"] for entry in entries)),
        *(part for entry in entries for part in _slices(entry)),
    ]


def _rows(entry: Mapping[str, Any]) -> list[list[object]]:
    rows = []
    for name in (entry["system"], MODEL):
        rate, speed = entry["rates"][name], entry["speed"][name] or {}
        first = tag("b", entry["set"]) if name != MODEL else ""
        cells = [first, name, count(entry["num_utterances"]), entry["normalizer"]]
        cells += [tag("b", percent(rate["wer"])), interval(rate["wer_interval"])]
        seconds = speed.get("latency_s")
        cells += [compact(speed.get("flops_per_s")), DASH if seconds is None else f"{1000 * seconds:,.0f} ms"]
        rows.append(cells)
    return rows


def _times(entries: Sequence[Mapping[str, Any]]) -> str:
    timed = [speed["num_clips"] for entry in entries for speed in entry["speed"].values() if speed]
    if not timed:
        return "The time per clip was not measured."
    return (
        "The time per clip is the median over clips that are transcribed one by one "
        f"(at most {max(timed)} clips of each set)."
    )


def _slices(entry: Mapping[str, Any]) -> list[Markup]:
    slices = slices_table([Slice(**part) for part in entry["slices"]], [entry["system"], MODEL])
    return (
        [tag("details", tag("summary", f"{entry['set']}: {entry['system']} and {MODEL} by slice"), *slices)]
        if slices
        else []
    )
