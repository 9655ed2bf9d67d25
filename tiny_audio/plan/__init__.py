"""Estimate the costs of a recipe before it runs: memory, FLOPs, time and money.

The model is built on the meta device, without weights. A **dry run** (``_dry_run``) executes one training step on the
largest batch (``_step``), and counts the bytes of all live tensors and the FLOPs of each part. **Autocast emulation**
(``_autocast``) applies the data types and kernels of the real device. **Allowances** (``_hardware``) cover memory
outside of tensors: fragmentation, and the CUDA context or the Python process. The time is
``FLOPs / (peak speed · utilization · (1 - padding share))``. These FLOPs do not include padding, and ``_order``
estimates the padding share. If the recipe does not fit, ``_changes`` tries changes, each in a separate dry run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tiny_audio.config import UserError
from tiny_audio.plan import _step
from tiny_audio.plan._changes import Change, changes_that_fit, room_for_clips
from tiny_audio.plan._hardware import (
    CONTEXT_BYTES,
    FRAGMENTATION,
    GPUS,
    PRICES,
    PROCESS_BYTES,
    Machine,
    gpu_reported_as,
    machine,
    this_cpu,
)
from tiny_audio.plan._order import SPREAD, planned_batches
from tiny_audio.plan._step import DryRunResult, Shape, dry_run, dry_run_worst, mean_context_tokens
from tiny_audio.plan._step import prompt_tokens_of as prompt_tokens_of
from tiny_audio.plan._step import text_tokens_of as text_tokens_of
from tiny_audio.recipe import Recipe

__all__ = ["UTILIZATION", "Plan", "Row", "gpu_reported_as", "plan_recipe", "this_cpu"]

UTILIZATION = 0.4
"""Assumed model FLOPs utilization (MFU) of training that does not wait for data. Lower numbers such as 0.2 are also
common, but 0.5 is rarely reached."""


@dataclass(frozen=True)
class Plan:
    """The costs of a recipe, on one machine or on every known GPU."""

    run_id: str
    worst: DryRunResult
    """The dry run of the batch that needs the most memory."""
    mean: DryRunResult
    """The dry run of a clip of mean length. Its FLOPs determine the time."""
    training_audio_hours: float
    """Hours of audio in all steps, including repetitions, without padding."""
    padding_share: float
    """``padding / (audio + padding)``, in seconds over all batches."""
    utilization: float
    """Share of the peak speed that training reaches."""
    rows: tuple[Row, ...]

    def flops_per_audio_s(self) -> dict[str, dict[str, float]]:
        """Return FLOPs per second of audio by part and direction (forward, backward), for a clip of mean length."""
        audio_s = self.mean.shape.padded_s
        return {
            part: {direction: count / audio_s for direction, count in counts.items()}
            for part, counts in self.mean.flops.items()
        }

    def total_parameters(self) -> dict[str, int]:
        """Return the numbers of parameters of all parts together: ``total`` and ``trainable``."""
        return {key: sum(part[key] for part in self.worst.parameters.values()) for key in ("total", "trainable")}

    def as_json(self) -> dict[str, Any]:
        """Return the plan for JSON, in bytes, FLOPs, hours and US dollars."""
        flops = self.flops_per_audio_s()
        return {
            "run_id": self.run_id,
            "parts": self.worst.parts,
            "parameters": self.worst.parameters | {"total": self.total_parameters()},
            "approximate": self.worst.approximate,
            "batch": asdict(self.worst.shape)
            | {"text_tokens": self.worst.num_tokens, "prompt_tokens": self.worst.prompt_tokens},
            "memory_bytes": self.worst.memory | {"peak": self.worst.peak_bytes},
            "flops_per_audio_s": flops | {"total": sum(sum(counts.values()) for counts in flops.values())},
            "training_audio_hours": self.training_audio_hours,
            "padding_share": self.padding_share,
            "assumptions": {
                "utilization": self.utilization,
                "mean_clip_s": self.mean.shape.duration_s,
                "durations": f"log-normal with sigma {SPREAD}, cut at the recipe's bounds",
                "characters_per_s": _step.CHARACTERS_PER_S,
                "fragmentation": FRAGMENTATION,
                "context_bytes": CONTEXT_BYTES,
                "process_bytes": PROCESS_BYTES,
                "prices": PRICES,
            },
            "machines": [row.as_json() for row in self.rows],
        }


@dataclass(frozen=True)
class Row:
    """The costs of a recipe on one machine."""

    machine: Machine
    needed_bytes: int
    """Bytes that the worst batch needs, including the allowances."""
    room_for_clips: int
    """Estimated number of clips in the largest batch that fits. Assumes that each clip needs as much memory as the
    average clip of the worst batch."""
    audio_hours_per_hour: float
    """Hours of audio per hour of training, without padding."""
    wall_hours: float
    """Hours of training for all steps."""
    price_per_hour: float | None
    """US dollars. None if the price is unknown."""
    changes: tuple[Change, ...] | None
    """Changes that make the recipe fit. Empty if none was found. None if the recipe fits, or if several machines are
    compared."""

    @property
    def fits(self) -> bool:
        """Whether the worst batch fits."""
        return self.needed_bytes <= self.machine.memory_bytes

    @property
    def cost(self) -> float | None:
        """US dollars for all steps."""
        return None if self.price_per_hour is None else self.price_per_hour * self.wall_hours

    def as_json(self) -> dict[str, Any]:
        """Return the row for JSON, in bytes, hours and US dollars."""
        return {
            "name": self.machine.name,
            "memory_bytes": self.machine.memory_bytes,
            "needed_bytes": self.needed_bytes,
            "fits": self.fits,
            "room_for_clips": self.room_for_clips,
            "audio_hours_per_hour": self.audio_hours_per_hour,
            "wall_hours": self.wall_hours,
            "price_per_hour": self.price_per_hour,
            "cost": self.cost,
            "changes": None
            if self.changes is None
            else [{"overrides": change.overrides, "needed_bytes": change.needed_bytes} for change in self.changes],
        }


def plan_recipe(
    recipe: Recipe,
    *,
    gpu: str | None = None,
    price_per_hour: float | None = None,
    utilization: float = UTILIZATION,
    mean_clip_s: float | None = None,
) -> Plan:
    """Estimate costs from a dry run of the recipe's largest batch and a dry run of a clip of mean length.

    Args:
        gpu: a name in the table of GPUs, or ``cpu`` for this machine. If None, all GPUs are compared.
        price_per_hour: US dollars. If None, the price in the table of GPUs is used.
        utilization: share of the peak speed that training reaches.
        mean_clip_s: mean duration of the clips. If None, it is half of the maximum duration, but at least the minimum
            duration.

    Raises:
        UserError: an argument is out of range, or a part cannot be built; see
            :func:`tiny_audio.plan.meta.build_on_meta`.
    """
    data = recipe.data
    mean_s = max(data.max_duration_s / 2, data.min_duration_s) if mean_clip_s is None else mean_clip_s
    if not 0 < utilization <= 1:
        raise UserError(
            f"--utilization {utilization:g} is not a share of the peak speed; give a number above 0 and at most 1"
        )
    if price_per_hour is not None and not 0 <= price_per_hour < float("inf"):
        raise UserError(f"--price-per-hour {price_per_hour:g} is not a price; give US dollars per hour, 0 or more")
    if not data.min_duration_s <= mean_s <= data.max_duration_s:
        raise UserError(
            f"--mean-clip-s {mean_s:g} is not between data.min_duration_s {data.min_duration_s:g} and "
            f"data.max_duration_s {data.max_duration_s:g}; give a duration between them"
        )
    machines = list(GPUS.values()) if gpu is None else [machine(gpu)]
    device = machines[0].device
    for part in ("encoder", "decoder"):
        if device == "cpu" and getattr(recipe, part).attention == "flash_attention_2":
            raise UserError(f"--gpu cpu: flash_attention_2 runs on a GPU only; append {part}.attention=sdpa")
    worst = dry_run_worst(recipe, device)
    mean = dry_run(recipe, Shape(1, mean_s), device, context_tokens=mean_context_tokens(recipe))
    batches = planned_batches(recipe, mean_s)
    audio_h = recipe.training.steps * recipe.training.accumulation * batches.audio_s / 3600
    flops_per_s = sum(sum(counts.values()) for counts in mean.flops.values()) / mean_s
    rows = []
    for one in machines:
        rate = utilization * one.peak_flops(recipe.training) / flops_per_s * (1 - batches.padding_share)
        needed = one.needed_bytes(worst.peak_bytes)
        wanted = gpu is not None and needed > one.memory_bytes
        price = one.price_per_hour if price_per_hour is None else price_per_hour
        changes = tuple(changes_that_fit(recipe, worst, one)) if wanted else None
        rows.append(Row(one, needed, room_for_clips(worst, one), rate, audio_h / rate, price, changes))
    return Plan(recipe.run_id(), worst, mean, audio_h, batches.padding_share, utilization, tuple(rows))


def predict_bytes(recipe: Recipe, num_clips: int, duration_s: float, device: Literal["cuda", "cpu"]) -> int:
    """Predict the bytes that a training step on one batch needs, including allowances as in a plan.

    Raises:
        UserError: a part cannot be built; see :func:`tiny_audio.plan.meta.build_on_meta`.
    """
    allowances = machine("cpu") if device == "cpu" else next(iter(GPUS.values()))
    return allowances.needed_bytes(dry_run(recipe, Shape(num_clips, duration_s), device).peak_bytes)
