"""``tiny-audio doctor``: check this machine, and the data and checkpoints of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tiny_audio.commands.doctor.finding import Finding
from tiny_audio.commands.doctor.machine import examine_machine
from tiny_audio.config import UserError
from tiny_audio.recipe import load_recipe
from tiny_audio.runtime.requirements import audio_pair_problem


def doctor(path: Path | None, overrides: Sequence[str]) -> None:
    """Print each finding as soon as it is known.

    Raises:
        UserError: the recipe is not valid, or a problem was found.
    """
    recipe = load_recipe(path, overrides) if path else None
    healthy = _print(examine_machine())
    # The checks of recipes import torchaudio. If torchaudio does not work, `examine_machine` has reported the reason.
    if recipe is not None and not audio_pair_problem():
        from tiny_audio.commands.doctor.recipe import examine

        healthy = _print(examine(recipe)) and healthy
    if not healthy:
        raise UserError("correct the problems that are marked ✗ before you run a recipe on this machine")


def _print(findings: Iterator[Finding]) -> bool:
    """Print the findings. Return True if no finding is a problem."""
    healthy = True
    for finding in findings:
        print(finding, flush=True)
        healthy = healthy and not finding.is_problem
    return healthy
