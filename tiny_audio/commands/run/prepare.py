"""Lock the run folder and open its state before the first stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tiny_audio.commands.run.state import RunState, now
from tiny_audio.config import UserError
from tiny_audio.pretrained.identity import without_path
from tiny_audio.recipe import Recipe

_MAX_DIFFERENCES = 8
_OURS = ("checkpoints", "model", "metrics.jsonl")


def open_folder(recipe: Recipe, folder: Path, held: ExitStack) -> RunState:
    """Lock the folder until ``held`` closes, and read or create its state.

    Raises:
        UserError: the folder is in use, contains a run of another recipe, or contains other files that this run would
            replace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _hold(folder, held)
    state = RunState.read(folder)
    identity = recipe.training_identity()
    if state is None:
        _check_empty(folder)
        state = RunState(identity, now())
    recorded = state.recipe
    for kind in ("encoder", "decoder"):  # remove the paths of local checkpoints, which older versions recorded
        recorded = recorded | {kind: without_path(recorded[kind])}
    differences = sorted(_differences(recorded, identity))
    if differences:
        raise UserError(
            f"{folder} contains a run of another recipe. The differences are:\n  "
            + "\n  ".join(differences[:_MAX_DIFFERENCES])
            + "\nGive another --output-dir, or delete that folder to start over."
        )
    state.write(folder)
    return state


def _hold(folder: Path, held: ExitStack) -> None:
    """Lock the folder. The kernel releases the lock when the process ends, even if it is killed."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{folder} is in use by another run; wait for it, stop it, or give another --output-dir"
        ) from None
    held.callback(lock.release)


def _check_empty(folder: Path) -> None:
    # A run writes state.json first. This folder has no state.json, so files with these names are not from a run.
    foreign = [name for name in _OURS if (folder / name).exists()]
    if foreign:
        raise UserError(
            f"{folder} is not a run folder (it has no state.json). It contains {', '.join(foreign)}, which a run would "
            "replace; give another --output-dir"
        )


def _differences(recorded: Any, wanted: Any, path: str = "") -> Iterator[str]:
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        for key in recorded.keys() | wanted.keys():
            below = f"{path}.{key}" if path else str(key)
            yield from _differences(recorded.get(key), wanted.get(key), below)
    elif recorded != wanted:
        yield f"{path}: {json.dumps(recorded)} in the folder, {json.dumps(wanted)} in this recipe"
