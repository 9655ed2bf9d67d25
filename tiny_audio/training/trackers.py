"""Send a run's numbers to TensorBoard, and to Weights & Biases if the recipe names a project."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tiny_audio.config import TinyAudioError, UserError, first_line
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.files import write_atomically

_TIMEOUT_S = 30.0
"""Seconds to wait for Weights & Biases at the start and at the end of a run."""


class Tracker(Protocol):
    """Shows the numbers of a run as curves over its steps."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve of each name."""

    def close(self) -> None:
        """Flush and close."""


class TensorBoard:
    """Writes event files for TensorBoard.

    Args:
        run_dir: the files are in its subfolder ``tensorboard/``.
        step: the step that training continues from. Points of later steps are hidden, because these steps run again.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write the points."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class WeightsAndBiases:
    """Sends points to Weights & Biases.

    If the service cannot be used at the start, the points are written to the run's subfolder ``wandb/``, from which
    ``wandb sync`` can send them. If the service fails during the run, no more points are sent. A continued run adds
    points to the same curves.

    Args:
        config: the recipe.
        note: receives messages for the user.

    Raises:
        UserError: the package is missing.
    """

    def __init__(self, project: str, run_dir: Path, config: dict[str, Any], note: Callable[[str], None]) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise UserError(
                "execution.wandb_project needs the package wandb; pip install 'tiny-audio[wandb]', or set "
                "execution.wandb_project: null"
            )
        self._note = note
        self._run: Any = None
        try:
            self._run = self._open(project, run_dir, config)
        except TinyAudioError:  # raised by the handler of a signal
            raise
        except Exception as error:  # the network, the account, or the service's process may fail
            self._give_up(error)

    def _open(self, project: str, run_dir: Path, config: dict[str, Any]) -> Any:
        import wandb

        folder = run_dir / "wandb"
        folder.mkdir(exist_ok=True)
        id_file = folder / "run_id.txt"
        if not id_file.exists():
            write_atomically(id_file, secrets.token_hex(4))
        settings = wandb.Settings(
            console="off",
            silent=True,
            save_code=False,
            init_timeout=_TIMEOUT_S,
            login_timeout=_TIMEOUT_S,
            finish_timeout=_TIMEOUT_S,
            finish_timeout_raises=True,
        )
        options: dict[str, Any] = {
            "project": project,
            "id": id_file.read_text(encoding="utf-8"),
            "name": run_dir.resolve().name,
            "dir": str(run_dir),
            "config": config,
            "resume": "allow",
            "settings": settings,
        }
        try:
            run = wandb.init(**options)
        except wandb.errors.Error as error:
            self._note(
                f"Weights & Biases cannot be used now ({first_line(error)}); the metrics are written to {folder}, and "
                "`wandb sync` can send them later"
            )
            wandb.teardown()  # ends the failed attempt, so that its run id can be used again
            run = wandb.init(**options, mode="offline")
        # After the process was killed, training repeats steps that already have points. Weights & Biases ignores points
        # for earlier values of its own step counter, but accepts earlier values of a custom step metric.
        run.define_metric("*", step_metric="step")
        return run

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Send the points."""
        self._call(lambda: self._run.log({"step": step, **values}))

    def close(self) -> None:
        """Send the remaining points, and end the service's process."""
        self._call(lambda: self._run.finish())

    def _call(self, work: Callable[[], object]) -> None:
        if self._run is None:
            return
        try:
            work()
        except TinyAudioError:  # raised by the handler of a signal
            raise
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._note(
            f"Weights & Biases failed ({first_line(error)}); the run continues without it. `wandb sync` may be "
            "able to send the metrics that the service did not receive."
        )


def open_trackers(recipe: Recipe, run_dir: Path, step: int, note: Callable[[str], None]) -> list[Tracker]:
    """Open the trackers of a run.

    Raises:
        UserError: the package of a tracker is missing.
    """
    trackers: list[Tracker] = [TensorBoard(run_dir, step)]
    project = recipe.execution.wandb_project
    if project is not None:
        trackers.append(WeightsAndBiases(project, run_dir, recipe.model_dump(mode="json"), note))
    return trackers
