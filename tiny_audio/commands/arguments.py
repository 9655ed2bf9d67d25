"""Arguments and options that several commands share. Imports nothing heavy: ``--help`` reads this file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

NORMALIZERS = "none, lower, basic, whisper_english or open_asr_leaderboard."
RecipePath = Annotated[Path, Argument(metavar="RECIPE", help="A recipe file, such as recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    Argument(
        metavar="KEY=VALUE",
        help="Changes to the recipe: training.steps=100 sets a field, projector=swiglu replaces a section.",
    ),
]
Model = Annotated[Path, Argument(metavar="MODEL", help="A run's folder, or an exported model's.")]
PartKind = Annotated[
    str | None,
    Argument(metavar="KIND", help="encoders, projectors, decoders, sources or providers. Default: all."),
]
GroupBy = Annotated[
    str | None,
    Option(
        help="Column, such as speaker, that groups clips. Intervals and tests resample whole groups. Default: the "
        "recipe's evaluation.group_by, or speaker if every clip has one, or no groups."
    ),
]
GroupByOfHypotheses = Annotated[
    str | None,
    Option(
        help="Column, such as speaker, that groups clips. Intervals and tests resample whole groups. Default of "
        "comparisons: speaker, if every clip has one, or no groups."
    ),
]
HtmlPage = Annotated[Path | None, Option(help="Also write an HTML page to this file.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON, for scripts.")]
