"""The export stage: write the trained model to the Hugging Face folder ``model/``."""

from __future__ import annotations

from typing import Any

from tiny_audio.commands.run.context import RunContext
from tiny_audio.commands.run.state import ExportState
from tiny_audio.export.formats.huggingface import export_model
from tiny_audio.export.load import load_model
from tiny_audio.model.model import TinyAudioModel
from tiny_audio.training.ledger import Overhead


class ExportStage:
    """Exports the model. The generation settings are part of the export, so the stage is repeated if they change."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    def identity(self) -> dict[str, Any]:
        """Return the generation settings."""
        return self._run.recipe.generation.model_dump(mode="json")

    def is_done(self) -> bool:
        """Return whether the export has the current generation settings."""
        export = self._run.state.export
        return export is not None and export.generation == self.identity()

    def run(self) -> None:
        """Write the export again with the current generation settings."""
        overhead = self._run.overhead()
        self.export(*load_model(self._run.model_folder, types_as_saved=True), overhead)

    def export(self, model: TinyAudioModel, tokenizer: Any, overhead: Overhead) -> None:
        """Export a loaded model, and record the export in the state."""
        model.config.generation = self.identity()
        export_model(model, tokenizer, self._run.model_folder)
        self._run.state.export = ExportState(self.identity(), overhead.usage())
        self._run.save()
