"""The wording of errors of plan, probe and sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Document
from tests.support.golden import check_golden
from tiny_audio.commands.probe import probe_recipe
from tiny_audio.commands.sweep import combinations
from tiny_audio.config import UserError
from tiny_audio.plan import plan_recipe
from tiny_audio.recipe import load_recipe

PLAN: list[dict[str, Any]] = [
    {"gpu": "h10"},
    {"utilization": 40.0},
    {"price_per_hour": -1.0},
    {"mean_clip_s": 20.0},
    {"overrides": ["batching.max_clips=20000"]},
    {"overrides": ["training.precision=bf16", "execution.device=auto", "encoder.attention=flash_attention_2"],
     "gpu": "cpu"},
]  # fmt: skip
PROBE: list[dict[str, Any]] = [
    {},
    {"memory_gb": 0},
    {"memory_gb": 1, "num_processes": 0},
    {"memory_gb": 1, "margin": 1.0},
    {"memory_gb": 1, "durations_s": [50.0]},
    {"memory_gb": 1, "durations_s": [2.0]},
]
SWEEP: list[list[str]] = [
    ["projector"],
    ["training.seed=0,,1"],
    ["training.seed=0,1,0"],
    ["augmentation.speed=[0.9,1"],
    ["training.seed=0", "training.seed=1"],
    ["training.seed=0"],
    ["training.seed=" + ",".join(map(str, range(1001)))],
    ["training.seed=1,01"],
    ["evaluation.normalizer=lower,basic"],
    ["training.seed=1,2", "data.evaluation={}"],
    ["projector.stack=4,0", "training.seed=0,1"],
]


def message(work: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        work()
    return str(caught.value)


def test_messages(document: Document, write_recipe: Callable[..., Path]) -> None:
    """Compare all messages with ``messages.txt``.

    To regenerate the file, run ``REGENERATE=1 pytest tests/plan/test_messages.py`` and read the difference.
    """
    path = write_recipe(document)
    blocks = []
    for case in PLAN:
        arguments = {key: value for key, value in case.items() if key != "overrides"}
        recipe = load_recipe(path, case.get("overrides", ()))
        blocks.append(f"plan {case}\n" + message(lambda: plan_recipe(recipe, **arguments)))  # noqa: B023
    recipe = load_recipe(path)
    blocks += [f"probe {case}\n" + message(lambda: probe_recipe(recipe, **case)) for case in PROBE]  # noqa: B023
    for grid in SWEEP:
        shown = " ".join(grid)
        shown = shown if len(shown) < 100 else f"{shown[:97]}..."
        blocks.append(f"sweep {shown}\n" + message(lambda: combinations(path, grid)))  # noqa: B023
    check_golden(Path(__file__).with_name("messages.txt"), "\n\n".join(blocks).replace(str(path), "recipe.yaml") + "\n")
