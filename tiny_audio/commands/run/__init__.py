"""``tiny-audio run``: prepare, train, export, evaluate and report. A run is idempotent and resumable.

Each stage has its own module. ``state.json`` in the run folder records the finished stages, and the settings and data
that affect their results. If the command is started again:

- Unfinished work is continued. Finished training is not repeated.
- A stage after training is repeated if its settings or data have changed, such as the clips of an evaluation set.
- If the recipe has changed in a way that affects the weights, the command fails.
- If training is unfinished and one of its inputs has changed, training cannot continue from a checkpoint, and the
  command fails. Examples of inputs are the training clips and the pretrained checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_audio.analysis.scoring import normalizer
from tiny_audio.commands.run.context import RunContext, Stage
from tiny_audio.commands.run.encoder_systems import EncoderSystemsStage
from tiny_audio.commands.run.evaluate import EvaluateStage, EvaluationModel
from tiny_audio.commands.run.export import ExportStage
from tiny_audio.commands.run.prepare import open_folder
from tiny_audio.commands.run.report import ReportStage
from tiny_audio.commands.run.train import TrainStage
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.world import joined
from tiny_audio.training.real_checkpoints import check_recipe, exported_limits
from tiny_audio.training.signals import StopSignal
from tiny_audio.training.trainer import Callback


class Run:
    """One execution of a recipe in its own folder.

    Args:
        name: the name in the report, such as the recipe file's stem.
        folder: the run folder. It is created if it does not exist.
    """

    def __init__(self, recipe: Recipe, name: str, folder: Path, callback: Callback) -> None:
        self.recipe, self.name, self.folder, self.callback = recipe, name, folder, callback

    def complete(self) -> dict[str, Any] | None:
        """Run all stages that are not done yet. All processes train. Only the main process runs the other stages.

        Returns:
            the report, as in ``report.json``. None in all processes except the main process.

        Raises:
            UserError: the folder, a checkpoint or the data cannot be used. Or a GPU ran out of memory, and all earlier
                steps are saved.
            Stopped: a signal arrived. Finished work is saved.
            RunFailed: training diverged. Or a GPU ran out of memory, and the last steps could not be saved.
        """
        device = device_of(self.recipe.execution.device)
        with joined(device, self.callback.note) as world, StopSignal() as stop, ExitStack() as held:
            callback = self.callback if world.is_main else _SilentCallback()
            state = world.broadcast_from_main(lambda: open_folder(self.recipe, self.folder, held))
            run = RunContext(self.recipe, self.name, self.folder, callback, state)
            training = TrainStage(run, stop, world)
            is_trained = world.broadcast_from_main(training.is_done)
            world.broadcast_from_main(training.write_recipe)
            # The maximum duration of clips depends on the model. After training, read it from the export, because the
            # pretrained checkpoints may no longer exist.
            limits = world.main_first(
                lambda: exported_limits(self.recipe, run.model_folder) if is_trained else check_recipe(self.recipe)
            )
            run = replace(run, recipe=limits.recipe, longest_evaluation_s=limits.longest_evaluation_s)
            if not is_trained:
                # The main process looks up the commits of data sets, and all processes use the same commits.
                state.datasets.update(world.broadcast_from_main(lambda: self._index_evaluation(run)))
                TrainStage(run, stop, world).run()
            if not world.is_main:
                return None
            for stage in self._stages_after_training(run):
                if not stage.is_done():
                    stage.run()
            return ReportStage(run).read()

    def _index_evaluation(self, run: RunContext) -> dict[str, str]:
        is_synthetic = any(source.name == "synthetic" for source in self.recipe.data.evaluation.values())
        hint = "; synthetic speech is synthesized now if it is not in the cache" if is_synthetic else ""
        run.callback.note(f"reading the evaluation data{hint}")
        normalizer(self.recipe.evaluation.normalizer)  # if its package is missing, fail now and not after training
        run.clips.index_evaluation()
        return run.state.datasets

    def _stages_after_training(self, run: RunContext) -> Iterator[Stage]:
        yield ExportStage(run)
        model = EvaluationModel(run)
        for name in self.recipe.data.evaluation:
            yield EvaluateStage(run, name, model)
            yield EncoderSystemsStage(run, name, model)
        yield ReportStage(run)


class _SilentCallback:
    """A callback that discards progress. All processes except the main process use it."""

    def step(self, step: int, values: dict[str, Any]) -> None:
        """Ignore the step."""

    def note(self, message: str) -> None:
        """Ignore the message."""
