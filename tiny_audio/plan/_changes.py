"""What to change in a recipe that does not fit; each change is rehearsed before it is named."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tiny_audio.plan._hardware import Machine
from tiny_audio.plan._step import DryRunResult, dry_run_worst
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.yaml_file import apply_overrides

_MOST = 3
"""Changes that are named."""
_LOW_RANK = 8
_WRAPPED = ("encoder", "decoder")


@dataclass(frozen=True)
class Change:
    """Overrides to append to the command, with which the recipe fits."""

    overrides: tuple[str, ...]
    needed_bytes: int


def changes_that_fit(recipe: Recipe, worst: DryRunResult, machine: Machine) -> list[Change]:
    """Single changes, those first that leave what is learned as it is; where none is enough, several at once."""
    found: list[Change] = []
    for overrides in _single(recipe, worst, machine):
        if any(set(change.overrides) < set(overrides) for change in found):
            continue  # a part of it is enough
        found += _try(recipe, overrides, machine)
        if len(found) == _MOST:
            break
    return found or _several(recipe, worst, machine)


def room_for_clips(worst: DryRunResult, machine: Machine) -> int:
    """About how many clips like those of the worst batch fit, by proportion."""
    fixed = sum(worst.memory[kind] for kind in ("weights", "gradients", "optimizer"))
    each = max(1, worst.peak_bytes - fixed) / worst.shape.num_clips
    return max(0, int((machine.peak_that_fits() - fixed) / each))


def changed(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with ``key=value`` overrides, as the command line would have it."""
    return Recipe.model_validate_json(json.dumps(apply_overrides(recipe.model_dump(mode="json"), overrides)))


def _try(recipe: Recipe, overrides: Sequence[str], machine: Machine) -> list[Change]:
    needed = machine.needed_bytes(dry_run_worst(changed(recipe, overrides), machine.device).peak_bytes)
    return [Change(tuple(overrides), needed)] if needed <= machine.memory_bytes else []


def _single(recipe: Recipe, worst: DryRunResult, machine: Machine) -> Iterator[list[str]]:
    savers = _savers(recipe, worst, machine)
    yield from ([override] for override in savers)
    checkpoints = [override for override in savers if "gradient_checkpointing" in override]
    if len(checkpoints) > 1:
        yield checkpoints
    clips = min(room_for_clips(worst, machine), worst.shape.num_clips - 1)
    if clips > 0:
        yield _fewer_clips(recipe, worst, clips)
    for part in _WRAPPED:
        lora = getattr(recipe, part).lora
        if lora is None or lora.rank <= _LOW_RANK:
            continue
        # 16 bytes a parameter are itself, its gradient and two moments; more are activations of its width. A guess in
        # its favor costs a rehearsal, which then decides.
        spared = 24 * worst.parameters[part]["trainable"] * (1 - _LOW_RANK / lora.rank)
        if machine.needed_bytes(worst.peak_bytes - int(spared)) <= machine.memory_bytes:
            yield [f"{part}.lora.rank={_LOW_RANK}"]


def _savers(recipe: Recipe, worst: DryRunResult, machine: Machine) -> list[str]:
    """What spares memory and keeps the batch: checkpoints of the larger part first."""
    savers = [
        f"{part}.attention={getattr(recipe, part).attentions[0]}"
        for part in _WRAPPED
        if getattr(recipe, part).attention == "eager" and getattr(recipe, part).attentions[0] != "eager"
    ]
    if machine.device == "cuda" and recipe.training.precision == "fp32":
        savers.append("training.precision=bf16")
    checkpointed = [part for part in _WRAPPED if _could_checkpoint(recipe, worst, part)]
    checkpointed.sort(key=lambda part: -worst.memory[f"activations_{part}"])
    return savers + [f"{part}.gradient_checkpointing=true" for part in checkpointed]


def _could_checkpoint(recipe: Recipe, worst: DryRunResult, part: str) -> bool:
    return not getattr(recipe, part).gradient_checkpointing and bool(worst.flops[part]["backward"])


def _fewer_clips(recipe: Recipe, worst: DryRunResult, clips: int) -> list[str]:
    """A smaller batch, and as many more of them to a step."""
    batching, steps = recipe.batching, recipe.training.accumulation
    if batching.max_padded_s is not None and worst.shape.num_clips < batching.max_clips:
        overrides = [f"batching.max_padded_s={clips * recipe.data.max_duration_s:.1f}"]
    else:
        overrides = [f"batching.max_clips={clips}"]
    accumulation = max(1, round(steps * worst.shape.num_clips / clips))
    return overrides + [f"training.accumulation={accumulation}"] * (accumulation != steps)


def _several(recipe: Recipe, worst: DryRunResult, machine: Machine) -> list[Change]:
    """All that spares memory, then fewer clips, then shorter ones."""
    savers = _savers(recipe, worst, machine)
    data = recipe.data
    for duration in (data.max_duration_s, data.max_duration_s / 2, data.max_duration_s / 4):
        overrides = savers if duration == data.max_duration_s else [*savers, f"data.max_duration_s={duration}"]
        if duration <= max(1.0, 2 * data.min_duration_s):
            break
        lean = dry_run_worst(changed(recipe, overrides), machine.device)
        if machine.needed_bytes(lean.peak_bytes) <= machine.memory_bytes:
            return [Change(tuple(overrides), machine.needed_bytes(lean.peak_bytes))]
        clips = min(room_for_clips(lean, machine), lean.shape.num_clips - 1)
        found = _try(recipe, [*overrides, *_fewer_clips(recipe, lean, clips)], machine) if clips else []
        if found:
            return found
    return []
