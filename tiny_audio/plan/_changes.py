"""Find changes that make a recipe fit into a machine's memory.

A change is suggested only if a dry run shows that the changed recipe fits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tiny_audio.config import UserError
from tiny_audio.plan._hardware import Machine
from tiny_audio.plan._step import DryRunResult, dry_run_worst
from tiny_audio.recipe import Recipe

_MAX_CHANGES = 3
_LOW_RANK = 8
"""The LoRA rank that is suggested if the recipe has a higher rank."""
_PRETRAINED = ("encoder", "decoder")


Fields = dict[str, Any]
"""The new value for each dotted path, as in :meth:`tiny_audio.recipe.Recipe.with_`."""


@dataclass(frozen=True)
class Change:
    """New values of fields that together make the recipe fit."""

    fields: Mapping[str, Any]
    needed_bytes: int

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides for the command line."""
        return tuple(
            f"{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in self.fields.items()
        )


def changes_that_fit(recipe: Recipe, worst: DryRunResult, machine: Machine) -> list[Change]:
    """Return up to three changes, each of which alone makes the recipe fit.

    Changes that affect neither the batch nor the parameters come first. If no single change is enough, return a
    combination of several, or an empty list if none was found.
    """
    found: list[Change] = []
    for fields in _single(recipe, worst, machine):
        if any(change.fields.items() < fields.items() for change in found):
            continue  # a subset of these fields is enough
        found += _try(recipe, fields, machine)
        if len(found) == _MAX_CHANGES:
            break
    return found or _several(recipe, worst, machine)


def room_for_clips(worst: DryRunResult, machine: Machine) -> int:
    """Estimate how many clips fit into one batch, if each needs as much memory as the worst batch's average clip."""
    fixed = sum(worst.memory[kind] for kind in ("weights", "gradients", "optimizer"))
    each = max(1, worst.peak_bytes - fixed) / worst.shape.num_clips
    return max(0, int((machine.peak_that_fits() - fixed) / each))


def _dry_run(recipe: Recipe, fields: Fields, machine: Machine) -> DryRunResult | None:
    """Return the dry run of the changed recipe's worst batch, or None if the changed recipe is not valid."""
    try:
        changed = recipe.with_(fields)
    except UserError:
        return None
    return dry_run_worst(changed, machine.device)


def _try(recipe: Recipe, fields: Fields, machine: Machine) -> list[Change]:
    planned = _dry_run(recipe, fields, machine)
    return [] if planned is None else _if_it_fits(fields, planned, machine)


def _if_it_fits(fields: Fields, planned: DryRunResult, machine: Machine) -> list[Change]:
    needed = machine.needed_bytes(planned.peak_bytes)
    return [Change(fields, needed)] if needed <= machine.memory_bytes else []


def _single(recipe: Recipe, worst: DryRunResult, machine: Machine) -> Iterator[Fields]:
    """Yield the fields of each change to try."""
    savers = _savers(recipe, worst, machine)
    yield from ({path: value} for path, value in savers.items())
    checkpoints = {path: value for path, value in savers.items() if path.endswith("gradient_checkpointing")}
    if len(checkpoints) > 1:
        yield checkpoints
    clips = min(room_for_clips(worst, machine), worst.shape.num_clips - 1)
    if clips > 0:
        yield _fewer_clips(recipe, worst, clips)
    for part in _PRETRAINED:
        lora = getattr(recipe, part).lora
        if lora is None or lora.rank <= _LOW_RANK:
            continue
        # A trainable parameter takes 16 bytes in fp32: its value, its gradient and two moments. Assume 8 more bytes for
        # activations. If this estimate of the saved bytes is too high, the only cost is one more dry run.
        saved = 24 * worst.parameters[part]["trainable"] * (1 - _LOW_RANK / lora.rank)
        if machine.needed_bytes(worst.peak_bytes - int(saved)) <= machine.memory_bytes:
            yield {f"{part}.lora.rank": _LOW_RANK}
    if recipe.decoder.freeze and recipe.decoder.quantization is None:
        yield {"decoder.quantization": "nf4"}


def _savers(recipe: Recipe, worst: DryRunResult, machine: Machine) -> Fields:
    """Return new values of fields that save memory without changing the batch.

    The last fields switch on gradient checkpointing, first for the part with the larger activations.
    """
    savers: Fields = {}
    for part in _PRETRAINED:
        config = getattr(recipe, part)
        if config.attention == "eager" and config.attentions[0] != "eager":
            savers[f"{part}.attention"] = config.attentions[0]
    if machine.device == "cuda" and recipe.training.precision == "fp32":
        savers["training.precision"] = "bf16"
    checkpointed = [part for part in _PRETRAINED if _could_checkpoint(recipe, worst, part)]
    checkpointed.sort(key=lambda part: -worst.memory[f"activations_{part}"])
    return savers | {f"{part}.gradient_checkpointing": True for part in checkpointed}


def _could_checkpoint(recipe: Recipe, worst: DryRunResult, part: str) -> bool:
    return not getattr(recipe, part).gradient_checkpointing and bool(worst.flops[part]["backward"])


def _fewer_clips(recipe: Recipe, worst: DryRunResult, clips: int) -> Fields:
    """Return new values of fields for a batch of ``clips`` clips, and for more batches per step."""
    batching, steps = recipe.batching, recipe.training.accumulation
    fields: Fields
    if batching.max_padded_s is not None and worst.shape.num_clips < batching.max_clips:
        longest_s = recipe.augmentation.longest_s(recipe.data.max_duration_s, recipe.data.max_duration_s)
        fields = {"batching.max_padded_s": math.ceil(10 * clips * longest_s) / 10}
    else:
        fields = {"batching.max_clips": clips}
    accumulation = max(1, round(steps * worst.shape.num_clips / clips))
    return fields if accumulation == steps else fields | {"training.accumulation": accumulation}


def _several(recipe: Recipe, worst: DryRunResult, machine: Machine) -> list[Change]:
    """Return a combination of changes that makes the recipe fit, or an empty list.

    First try all fields of :func:`_savers` together, then also fewer clips per batch. If neither is enough, try both
    again with half of the maximum clip duration, then with a quarter.
    """
    savers, data = _savers(recipe, worst, machine), recipe.data
    halves = (data.max_duration_s / 2, data.max_duration_s / 4)
    shorter = [{"data.max_duration_s": each} for each in halves if each > max(1.0, 2 * data.min_duration_s)]
    for fields in (savers, *(savers | each for each in shorter)):
        lean = _dry_run(recipe, fields, machine)
        if lean is None:
            continue
        found = _if_it_fits(fields, lean, machine)
        if found:
            return found
        clips = min(room_for_clips(lean, machine), lean.shape.num_clips - 1)
        found = _try(recipe, fields | _fewer_clips(recipe.with_(fields), lean, clips), machine) if clips else []
        if found:
            return found
    return []
