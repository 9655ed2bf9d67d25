"""Read the environment variables of torchrun and `accelerate launch`, which define the rank of this process.

Notebooks, clusters and earlier commands may leave some of these variables behind. If ``WORLD_SIZE`` is not set or is 1,
this process runs alone, and the other variables are ignored.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from tiny_audio.config import UserError

_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The variables that a launcher sets in addition to ``WORLD_SIZE``."""
_OTHER_LAUNCHERS = {
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
}
"""Launcher -> its variables for the number of processes and for the rank. They are used only for a warning."""


@dataclass(frozen=True)
class Launch:
    """The rank of this process, and the number of processes that a launcher started."""

    rank: int = 0
    local_rank: int = 0
    """Rank among the processes of this machine."""
    size: int = 1
    note: str | None = None
    """A message for the user about ignored variables. None if there is nothing to report."""
    port: int = 0
    """Port of the main process, to which the processes connect. 0 for a single process."""

    @classmethod
    def read(cls) -> Launch:
        """Read the environment. Empty variables count as not set.

        Raises:
            UserError: ``WORLD_SIZE`` is larger than 1, and a variable is missing or has an unusable value.
        """
        size = _number("WORLD_SIZE", 1, None) if _is_set("WORLD_SIZE") else 1
        if size == 1:
            return cls(note=_ignored())
        missing = [name for name in _VARIABLES if not _is_set(name)]
        if missing:
            raise UserError(
                f"WORLD_SIZE is {size}, but {', '.join(missing)} are not set; start with torchrun or accelerate "
                "launch, or unset WORLD_SIZE"
            )
        rank = _number("RANK", 0, size - 1)
        return cls(rank, _number("LOCAL_RANK", 0, size - 1), size, port=_number("MASTER_PORT", 1, 65_535))


def check_alone(command: str) -> None:
    """Check that no launcher started several processes.

    Raises:
        UserError: ``WORLD_SIZE`` is larger than 1.
    """
    size = _number("WORLD_SIZE", 1, None) if _is_set("WORLD_SIZE") else 1
    if size > 1:
        raise UserError(
            f"tiny-audio {command} runs in one process, but WORLD_SIZE is {size}; start it without torchrun or "
            "accelerate launch"
        )


def _is_set(name: str) -> bool:
    return bool(os.environ.get(name))


def _number(name: str, least: int, most: int | None) -> int:
    text = os.environ[name]
    number = int(text) if text.isdecimal() else -1
    if number < least or (most is not None and number > most):
        allowed = f"a whole number from {least} to {most}" if most is not None else "a whole number above 0"
        raise UserError(
            f"the environment variable {name} is {text!r}, but must be {allowed}; start with torchrun or accelerate "
            "launch, or unset WORLD_SIZE"
        )
    return number


def _ignored() -> str | None:
    """Return a message if variables look like a leftover or a failed launch, otherwise None.

    If all variables are set and ``WORLD_SIZE`` is 1, a launcher started one process as intended.
    """
    left = [name for name in ("RANK", "LOCAL_RANK") if _is_set(name)]
    if left and not all(map(_is_set, ("WORLD_SIZE", *_VARIABLES))):
        world = "WORLD_SIZE is 1" if _is_set("WORLD_SIZE") else "WORLD_SIZE is not set"
        return f"{' and '.join(left)} {'is' if len(left) == 1 else 'are'} set, but {world}; running in one process"
    for launcher, (size, rank) in _OTHER_LAUNCHERS.items():
        if os.environ.get(size, "1") != "1" and _is_set(rank) and not _is_set("WORLD_SIZE"):
            return (
                f"{launcher} started {os.environ[size]} processes, but WORLD_SIZE is not set: each process "
                "works by itself. To make the processes work together, start them with torchrun"
            )
    return None
