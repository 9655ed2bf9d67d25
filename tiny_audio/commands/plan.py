"""``tiny-audio plan``: estimate the costs of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiny_audio.commands._output import print_json
from tiny_audio.plan import plan_recipe
from tiny_audio.plan.table import print_plan
from tiny_audio.recipe import load_recipe


def plan(
    path: Path,
    overrides: Sequence[str],
    gpu: str | None,
    price_per_hour: float | None,
    utilization: float,
    mean_clip_s: float | None,
    *,
    as_json: bool,
) -> None:
    """Print the estimate; see :func:`tiny_audio.plan.plan_recipe`."""
    planned = plan_recipe(
        load_recipe(path, overrides),
        gpu=gpu,
        price_per_hour=price_per_hour,
        utilization=utilization,
        mean_clip_s=mean_clip_s,
    )
    if as_json:
        print_json(planned.as_json())
    else:
        print_plan(planned)
