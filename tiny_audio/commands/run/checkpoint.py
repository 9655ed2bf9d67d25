"""Load the model of a saved step of a run. The run need not be finished."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_audio.commands.run.state import RunState, TrainingState
from tiny_audio.commands.run.train import pinned
from tiny_audio.config import UserError
from tiny_audio.data.dropped import count_reasons
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.model.parts_table import describe_parts
from tiny_audio.pretrained.identity import checkpoint_identity
from tiny_audio.recipe import Recipe, load_recipe
from tiny_audio.runtime.checkpoint_folders import steps_in
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.world import World
from tiny_audio.training.assembly import assemble
from tiny_audio.training.checkpoint import check_whole, read_progress, read_weights, set_weights
from tiny_audio.training.initialize import StartingPoint
from tiny_audio.training.metrics import read_metrics
from tiny_audio.training.precision import set_types
from tiny_audio.training.progress import summary

_FOLDER = "checkpoints"


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint in a run folder."""

    run: Path
    step: int
    folder: Path
    """Folder of the checkpoint."""

    @classmethod
    def find(cls, source: Path, step: int | None) -> SavedStep | None:
        """Find a checkpoint by its folder, or by its run folder and step.

        Args:
            source: folder of a checkpoint, of a run or of an exported model.
            step: step of the checkpoint. It is not needed if ``source`` is the folder of a checkpoint.

        Returns:
            the checkpoint. None if no step is given and ``source`` is not the folder of a checkpoint.

        Raises:
            UserError: ``source`` has no checkpoint of the given step.
        """
        folder = Path(os.path.abspath(source))  # a relative path, such as `.`, does not show its parent folders
        if folder.parent.name == _FOLDER and (folder / "progress.json").is_file():
            run, given = folder.parent.parent, read_progress(folder).step
            if step not in (None, given):
                raise UserError(f"--step {step}: {source} is the checkpoint of step {given}; leave --step out")
            return cls(run, given, folder)
        if step is None:
            return None
        steps = steps_in(source / _FOLDER)
        if not (source / "state.json").is_file():
            raise UserError(
                f"--step {step}: {source} is not the folder of a run; give the folder of a run, or leave --step out"
            )
        if step not in steps:
            raise UserError(f"--step {step}: {source} has no checkpoint of that step; {available(source)}")
        return cls(source, step, steps[step])

    def load(self) -> tuple[TinyAudioModel, Any, dict[str, Any]]:
        """Build the model, and load the checkpoint's weights.

        Returns:
            the model, its tokenizer, and a report as in ``report.json``. The report has scores only if the run's final
            weights are those of this step.

        Raises:
            UserError: the checkpoint is damaged, or a pretrained checkpoint of the run is missing or has changed.
        """
        state = RunState.read(self.run)
        if state is None or state.training is None or state.training.spelling is None:
            raise UserError(
                f"{self.run} has no state.json, or its training has not started; give the folder of a run whose "
                "training has started"
            )
        check_whole(self.folder)
        recipe, training, learned = load_recipe(self.run / "recipe.yaml"), state.training, state.training.spelling
        start = StartingPoint.of(recipe)
        self._check_inputs(recipe, start, training)
        recipe = pinned(recipe, training.inputs)
        model, tokenizer, _ = assemble(recipe, None, start, learned.vocabulary)
        model.config.clip_durations = training.config_durations
        try:
            device = device_of(recipe.execution.device)
        except UserError:  # this machine does not have the recipe's device
            device = device_of("cpu")
        set_types(model, recipe.training.precision, device)
        set_weights(model, lambda: read_weights(self.folder.parent, [self.step], model), World())
        report = self._report(recipe, model, training)
        return model.eval().requires_grad_(False), tokenizer, report

    def _check_inputs(self, recipe: Recipe, start: StartingPoint | None, training: TrainingState) -> None:
        """Raise a UserError if the run's pretrained weights have changed.

        A run's checkpoint does not contain frozen weights, so they are read again from the pretrained checkpoints.
        """
        recorded = training.inputs
        recipe = pinned(recipe, recorded)
        for name, before, found in (
            ("encoder checkpoint", recorded.encoder, checkpoint_identity(recipe.encoder)),
            ("decoder checkpoint", recorded.decoder, checkpoint_identity(recipe.decoder)),
            ("init_from", recorded.init_from, start.fingerprint() if start else None),
        ):
            if found != before:
                raise UserError(
                    f"{self.run} was trained with a different {name} (hash {before}); restore the earlier {name}"
                )

    def _report(self, recipe: Recipe, model: TinyAudioModel, training: TrainingState) -> dict[str, Any]:
        written = self.run / "report.json"
        scored = training.summary.get("final_weights", {}).get("steps", [training.summary.get("steps")])
        if training.finished and [self.step] == scored and written.is_file():
            try:
                report: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(
                    f"{written} is damaged: {error}; to write it again, run the same command that started the run"
                ) from error
            return report | {"step": self.step}
        rows = read_metrics(self.run / "metrics.jsonl")
        monitored = [row for row in rows if row.get("kind") == "evaluation" and row.get("step") == self.step]
        return {
            "run_id": recipe.run_id(),
            "name": self.run.resolve().name,
            "step": self.step,
            "monitored": monitored,
            "parts": describe_parts(model),
            "training": summary(read_progress(self.folder)) | {"clip_durations": training.config_durations},
            "evaluation": {},
            "ledger": None,
            "dropped": count_reasons(self.run / "dropped.jsonl", recipe.data.train | recipe.data.evaluation),
            "provenance": {},
            "recipe": recipe.model_dump(mode="json"),
        }


def available(run: Path) -> str:
    """Return a hint that lists the saved steps of a run."""
    steps = steps_in(run / _FOLDER)
    return f"saved steps: {', '.join(map(str, steps))}" if steps else "no step is saved"
