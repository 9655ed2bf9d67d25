"""Collect possible reasons for a difference in WER: model sizes, training, and the fields in which recipes differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiny_audio.analysis.compare._runs import Variant

_NOT_COMPARED = ("command", "started", "finished", "seed", "evaluation_data")
"""Fields of ``provenance`` in ``report.json`` that are not listed as differences. Some differ between any two runs,
such as ``started``. Others are compared elsewhere, such as ``seed``."""


@dataclass(frozen=True)
class RunFacts:
    """One run of a variant."""

    name: str
    folder: str
    run_id: str
    seed: int


@dataclass(frozen=True)
class VariantFacts:
    """Size and training of a variant.

    ``wall_s``, the training time in seconds, is the mean over the variant's runs. Other values are from its first run.
    """

    name: str
    runs: list[RunFacts]
    parameters: dict[str, int]
    """Numbers of parameters, with the keys ``total`` and ``trainable``."""
    steps: int
    audio_hours: float
    wall_s: float
    device: str


@dataclass(frozen=True)
class RecipeField:
    """A field whose values differ between variants."""

    field: str
    values: dict[str, str | None]
    """The field's value in each variant, by the variant's name. None if the variant's recipe has no such field."""


def describe(variant: Variant) -> VariantFacts:
    """Collect the facts of a variant from the reports of its runs."""
    first = variant.runs[0].report
    training = [run.report["training"] for run in variant.runs]
    return VariantFacts(
        variant.name,
        [
            RunFacts(run.name, str(run.folder), run.report["run_id"], run.report["recipe"]["training"]["seed"])
            for run in variant.runs
        ],
        {key: sum(part[key] for part in first["parameters"].values()) for key in ("total", "trainable")},
        training[0]["steps"],
        training[0]["audio_hours"],
        sum(entry["wall_s"] for entry in training) / len(training),
        first["provenance"]["device"],
    )


def recipe_differences(variants: Sequence[Variant]) -> Iterator[RecipeField]:
    """Yield the fields of recipes and provenance that differ between variants.

    If the runs of a variant have different values in a field, such as their seeds, the values are joined by commas.
    """
    described = [[dict(_flat(_settings(run.report))) for run in variant.runs] for variant in variants]
    everywhere = dict.fromkeys(key for runs in described for fields in runs for key in fields)
    for field in everywhere:
        values = {
            variant.name: ", ".join(dict.fromkeys(fields.get(field) or "" for fields in runs)) or None
            for variant, runs in zip(variants, described, strict=True)
        }
        if len(set(values.values())) > 1:
            yield RecipeField(field, values)


def _settings(report: Mapping[str, Any]) -> dict[str, Any]:
    provenance = {key: value for key, value in report["provenance"].items() if key not in _NOT_COMPARED}
    return {**report["recipe"], "provenance": provenance}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name of each field, and its value as JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
