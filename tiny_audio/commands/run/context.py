"""What all stages of a run share: the recipe, the folder, the state and the clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from tiny_audio.commands.run.state import RunState
from tiny_audio.data.clips import ClipSet
from tiny_audio.data.evaluation_clips import check_group_by, unchecked_evaluation_clips
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.files import cache_dir
from tiny_audio.sources import SOURCES, Source, SourceConfig, SourceContext
from tiny_audio.training.host import Host
from tiny_audio.training.ledger import Overhead
from tiny_audio.training.trainer import Callback


class Stage(Protocol):
    """One step of a run, with its own identity."""

    def is_done(self) -> bool:
        """Whether the folder holds its result under its present identity."""

    def run(self) -> None:
        """Do it, and record it in the state."""


@dataclass(frozen=True)
class RunContext:
    """One execution of a recipe in its folder."""

    recipe: Recipe
    name: str
    """The name in the report, such as the recipe file's stem."""
    folder: Path
    callback: Callback
    state: RunState

    @cached_property
    def clips(self) -> RunClips:
        """The clips of the recipe's sources."""
        return RunClips(self.recipe, self.state.datasets)

    @property
    def model_folder(self) -> Path:
        """Where the export goes."""
        return self.folder / "model"

    def save(self) -> None:
        """Write the state to the folder."""
        self.state.write(self.folder)

    def overhead(self) -> Overhead:
        """Start to measure what a stage uses."""
        execution = self.recipe.execution
        return Overhead(Host.of(device_of(execution.device), execution, self.recipe.training))


class RunClips:
    """The clips of a recipe's sources; each set is indexed once.

    Args:
        recipe: names the sources.
        commits: of data sets on the hub. Known ones are kept, and new ones added.
    """

    def __init__(self, recipe: Recipe, commits: dict[str, str]) -> None:
        self._recipe = recipe
        self._context = SourceContext(cache_dir(), commits)
        self._evaluation: dict[str, ClipSet] = {}

    def training(self) -> ClipSet:
        """The training clips within the recipe's bounds."""
        data = self._recipe.data
        return ClipSet.gather(self._build(data.train), data.min_duration_s, data.max_duration_s, data.target_text)

    def evaluation(self, name: str) -> ClipSet:
        """One whole evaluation set, as far as the encoder can read it.

        Raises:
            UserError: it has no usable clip, or no clip has the column of ``evaluation.group_by``.
        """
        found = self.unchecked_evaluation(name)
        found.check_any(f"data.evaluation.{name}")
        check_group_by(found.clips, self._recipe.evaluation.group_by)
        return found

    def unchecked_evaluation(self, name: str) -> ClipSet:
        """As :meth:`evaluation`, where it is allowed that no clip can be scored.

        Raises:
            UserError: the source cannot be read.
        """
        if name not in self._evaluation:
            source = SOURCES.build(self._recipe.data.evaluation[name], self._context)
            self._evaluation[name] = unchecked_evaluation_clips(name, source, self._recipe.encoder)
        return self._evaluation[name]

    def index_evaluation(self) -> None:
        """Index all evaluation sets, so that a set that could not be scored is rejected before training.

        Raises:
            UserError: see :meth:`evaluation`.
        """
        for name in self._recipe.data.evaluation:
            self.evaluation(name)

    def _build(self, sources: Mapping[str, SourceConfig]) -> dict[str, Source]:
        return {name: SOURCES.build(config, self._context) for name, config in sources.items()}
