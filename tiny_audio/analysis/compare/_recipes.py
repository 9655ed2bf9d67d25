"""What made the difference: sizes, training, and the fields in which recipes differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tiny_audio.analysis.compare._runs import Variant

_NOT_COMPARED = ("command", "started", "finished", "seed", "evaluation_data")
"""Of the provenance: they differ between any two runs, or are compared elsewhere."""


def describe(variant: Variant) -> dict[str, Any]:
    """An entry of ``variants`` of a :data:`tiny_audio.analysis.compare.Comparison`."""
    first = variant.runs[0].report
    training = [run.report["training"] for run in variant.runs]
    return {
        "name": variant.name,
        "runs": [
            {
                "name": run.name,
                "folder": str(run.folder),
                "run_id": run.report["run_id"],
                "seed": run.report["recipe"]["training"]["seed"],
            }
            for run in variant.runs
        ],
        "parameters": {key: sum(part[key] for part in first["parameters"].values()) for key in ("total", "trainable")},
        "steps": training[0]["steps"],
        "audio_hours": training[0]["audio_hours"],
        "wall_s": sum(entry["wall_s"] for entry in training) / len(training),
        "device": first["provenance"]["device"],
    }


def recipe_differences(variants: Sequence[Variant]) -> Iterator[dict[str, Any]]:
    """Fields of the recipes, and of the provenance, that are not the same everywhere; ``None`` where a recipe has no
    such field. What differs between the seeds of one variant only is left out."""
    described = [[dict(_flat(_settings(run.report))) for run in variant.runs] for variant in variants]
    everywhere = dict.fromkeys(key for runs in described for fields in runs for key in fields)
    for field in everywhere:
        values = {
            variant.name: ", ".join(dict.fromkeys(map(_written, (fields.get(field) for fields in runs)))) or None
            for variant, runs in zip(variants, described, strict=True)
        }
        if len(set(values.values())) > 1:
            yield {"field": field, "values": values}


def _settings(report: Mapping[str, Any]) -> dict[str, Any]:
    provenance = {key: value for key, value in report["provenance"].items() if key not in _NOT_COMPARED}
    return {**report["recipe"], "provenance": provenance}


def _written(value: str | None) -> str:
    return "" if value is None else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values as JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
