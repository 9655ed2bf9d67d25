"""``tiny-audio show`` prints a recipe and its parts. ``tiny-audio list`` prints all registered parts."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tiny_audio.commands._output import print_json
from tiny_audio.config import UserError
from tiny_audio.decoders import DECODERS
from tiny_audio.encoders import ENCODERS
from tiny_audio.export import EXPORTS
from tiny_audio.projectors import PROJECTORS
from tiny_audio.providers import PROVIDERS
from tiny_audio.recipe import Recipe, load_recipe
from tiny_audio.registry import Registry, did_you_mean
from tiny_audio.runtime.columns import in_columns
from tiny_audio.runtime.yaml_file import dump_yaml
from tiny_audio.sources import SOURCES

REGISTRIES: dict[str, Registry[Any, Any]] = {
    "encoders": ENCODERS,
    "projectors": PROJECTORS,
    "decoders": DECODERS,
    "sources": SOURCES,
    "providers": PROVIDERS,
    "exports": EXPORTS,
}


def show(path: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    """Print a recipe with all defaults, and the parts that it builds."""
    description = describe_recipe(load_recipe(path, overrides))
    if as_json:
        print_json(description)
    else:
        print_description(description)


def list_parts(kind: str | None, *, as_json: bool) -> None:
    """Print the registered parts of one kind, or of all kinds."""
    registered = list_registered(kind)
    if as_json:
        print_json(registered)
    else:
        print_registered(registered)


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe with all defaults, its run id, and a table row for each part.

    Models are built on the meta device, so no weights are read.

    Raises:
        UserError: a part cannot be built, or its checkpoint's config cannot be read.
    """
    from tiny_audio.model.parts_table import describe_parts
    from tiny_audio.plan.meta import build_on_meta

    built = build_on_meta(recipe)
    rows = describe_parts(built.model)
    return {
        "run_id": recipe.run_id(),
        "recipe": recipe.model_dump(mode="json"),
        "parts": rows,
        "parameters": {row["part"]: {"total": row["total"], "trainable": row["trainable"]} for row in rows}
        | {"total": {key: sum(row[key] for row in rows) for key in ("total", "trainable")}},
        "approximate": built.approximate,
    }


def print_description(description: dict[str, Any]) -> None:
    """Print the recipe as YAML, then the table of parts."""
    print(dump_yaml(description["recipe"]), end="")
    rows = [["part", "name", "class", "parameters", "trainable", "dim", "Hz"]]
    for row in description["parts"]:
        rate = "" if row["frame_rate_hz"] is None else f"{row['frame_rate_hz']:g}"
        counts = (f"{row['total']:,}", f"{row['trainable']:,}", str(row["dim"]), rate)
        rows.append([row["part"], row["name"] or "", row["class"], *counts])
    total = description["parameters"]["total"]
    rows.append(["total", "", "", f"{total['total']:,}", f"{total['trainable']:,}", "", ""])
    print(f"\n{in_columns(rows, num_texts=3)}")
    if description["approximate"]:
        print("Transcripts were not read, so counts that depend on a vocabulary are estimates.")
    print(f"run id {description['run_id']}")


def check_kind(kind: str, known: Iterable[str]) -> None:
    """Raise a UserError if the kind of part does not exist."""
    if kind not in known:
        raise UserError(f"unknown kind {kind!r}; {did_you_mean(kind, known)}")


def list_registered(kind: str | None) -> dict[str, list[dict[str, str]]]:
    """Return the names, summaries and modules of the registered parts, by kind.

    Raises:
        UserError: the kind does not exist.
    """
    if kind is not None:
        check_kind(kind, REGISTRIES)
    return {
        name: [{"name": entry.name, "summary": entry.summary, "module": entry.module} for entry in registry.entries()]
        for name, registry in REGISTRIES.items()
        if kind in (None, name)
    }


def print_registered(registered: dict[str, list[dict[str, str]]]) -> None:
    """Print a table for each kind."""
    indent = 4 + max(len(part["name"]) for parts in registered.values() for part in parts)
    width = shutil.get_terminal_size().columns
    for kind, parts in registered.items():
        print(kind)
        for part in parts:
            line = f"  {part['name']}".ljust(indent) + part["summary"]
            print(textwrap.fill(line, width, subsequent_indent=" " * indent))
