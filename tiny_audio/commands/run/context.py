"""Context shared by all stages of a run: recipe, folder, state and clips."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from tiny_audio.analysis.warnings import By, Comparison
from tiny_audio.commands.run.state import RunState
from tiny_audio.config import UserError
from tiny_audio.data.clips import ClipSet
from tiny_audio.data.evaluation_clips import UNBOUNDED_DURATION_S, check_group_by, evaluation_clips
from tiny_audio.data.overlap import Shared, find_overlaps
from tiny_audio.data.sound_overlap import EvaluationSounds
from tiny_audio.recipe import Recipe
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.files import cache_dir
from tiny_audio.sources import SOURCES, Dropped, SourceContext
from tiny_audio.training.host import Host
from tiny_audio.training.ledger import Overhead
from tiny_audio.training.trainer import Callback


class Stage(Protocol):
    """One stage of a run, such as training or the export."""

    def is_done(self) -> bool:
        """Return whether the run folder has the stage's result for the current settings and data."""

    def run(self) -> None:
        """Run the stage and record its result in the state."""


@dataclass(frozen=True)
class RunContext:
    """One execution of a recipe in its folder."""

    recipe: Recipe
    name: str
    """The name in the report, such as the recipe file's stem."""
    folder: Path
    callback: Callback
    state: RunState
    longest_evaluation_s: float = UNBOUNDED_DURATION_S
    """Maximum duration of a clip that is scored."""

    @cached_property
    def clips(self) -> RunClips:
        """The clips of the recipe's sources."""
        return RunClips(self.recipe, self.state.datasets, self.longest_evaluation_s)

    @property
    def model_folder(self) -> Path:
        """Folder of the export."""
        return self.folder / "model"

    def save(self) -> None:
        """Write the state to the folder."""
        self.state.write(self.folder)

    def overhead(self) -> Overhead:
        """Return a measurement of the resources that are used from now on."""
        execution = self.recipe.execution
        return Overhead(Host.of(device_of(execution.device), execution, self.recipe.training))


class RunClips:
    """The clips of a recipe's sources. Each set is indexed once.

    Args:
        commits: commit of each dataset split on the hub, as in :class:`SourceContext`. When a split that is not listed
            is read, its commit is added.
        longest_evaluation_s: maximum duration of a clip that is scored.
    """

    def __init__(self, recipe: Recipe, commits: dict[str, str], longest_evaluation_s: float) -> None:
        self._recipe, self._longest_evaluation_s = recipe, longest_evaluation_s
        self._context = SourceContext(cache_dir(), commits)
        self._training: ClipSet | None = None
        self._evaluation: dict[str, ClipSet] = {}

    def training(self) -> ClipSet:
        """Return the training clips within the recipe's duration bounds.

        Raises:
            UserError: a source cannot be read, or no clip is usable.
        """
        if self._training is None:
            data = self._recipe.data
            context = replace(self._context, keep_empty=data.keep_empty)
            sources = {name: SOURCES.build(config, context) for name, config in data.train.items()}
            found = ClipSet.gather(
                sources, data.min_duration_s, data.max_duration_s, data.target_text, keep_empty=data.keep_empty
            )
            found.check_any("data.train")
            self._training = found
        return self._training

    @cached_property
    def overlaps(self) -> Mapping[str, Shared]:
        """Overlaps between each evaluation set and the training clips. The audio itself is not compared.

        Raises:
            UserError: a source cannot be read.
        """
        evaluation = {name: self.unchecked_evaluation(name).clips for name in self._recipe.data.evaluation}
        return find_overlaps(self.training().clips, evaluation) if evaluation else {}

    @cached_property
    def _shared(self) -> Mapping[str, Shared]:
        """The result of :meth:`compare` for the recipe's evaluation sets."""
        sets = {name: self.unchecked_evaluation(name).clips for name in self._recipe.data.evaluation}
        return self.compare(EvaluationSounds(sets), self._recipe.evaluation.exclude_shared)

    def compare(self, evaluation: EvaluationSounds, excluded: Collection[By] = ()) -> Mapping[str, Shared]:
        """Find overlaps between each set and the training clips.

        The audio itself is compared only if there are at most ``evaluation.max_compared_h`` hours of training audio.

        Args:
            evaluation: the sets.
            excluded: properties, such as ``speaker``. Clips that share one of them with a training clip are excluded
                from the score.

        Raises:
            UserError: a training source cannot be read.
        """
        training, limit_h = self.training(), self._recipe.evaluation.max_compared_h
        hours = training.duration_s / 3600
        if hours > limit_h:
            reason = f"{hours:,.1f} h of training audio are more than evaluation.max_compared_h ({limit_h:g})"
            reason = reason if limit_h else "evaluation.max_compared_h is 0"
            return find_overlaps(training.clips, evaluation.sets, why_no_sounds=reason, excluded=excluded)
        return find_overlaps(training.clips, evaluation.sets, evaluation.copies_of(training.clips), excluded=excluded)

    def scored(self, name: str) -> tuple[ClipSet, Comparison | None]:
        """Return the clips of one evaluation set that are scored, and the set's comparison with the training data.

        ``evaluation.exclude_shared`` lists properties. A clip is dropped if it shares one of them with a training clip.
        The comparison is None if the training data cannot be read.

        Raises:
            UserError: see :meth:`evaluation`. If ``exclude_shared`` is not empty, another reason is that the training
                data cannot be read or no clip is left.
        """
        found, excluded = self.evaluation(name), self._recipe.evaluation.exclude_shared
        try:
            comparison, shared = self._shared[name].comparison, self._shared[name].excluded
        except UserError as error:
            if excluded:
                raise UserError(
                    f"data.evaluation.{name}: evaluation.exclude_shared needs the training data: {error}"
                ) from error
            return found, None
        kept = [row for row in range(len(found.clips)) if row not in shared]
        if not kept:
            raise UserError(
                f"data.evaluation.{name}: evaluation.exclude_shared excludes all {len(found.clips)} clips, because all "
                "overlap with the training data; use another evaluation set, or list fewer properties"
            )
        dropped = (
            Dropped(found.clips[row].id, "shared_with_training", "see evaluation.exclude_shared")
            for row in sorted(shared)
        )
        clips = found.clips.take(np.array(kept))
        return replace(found, clips=clips, dropped=(*found.dropped, *dropped)), comparison

    def evaluation(self, name: str) -> ClipSet:
        """Return the clips of one evaluation set, without the clips that are too long for the model.

        Raises:
            UserError: the set has no usable clip, or no clip has the column of ``evaluation.group_by``.
        """
        found = self.unchecked_evaluation(name)
        found.check_any(f"data.evaluation.{name}")
        check_group_by(found.clips, self._recipe.evaluation.group_by)
        return found

    def unchecked_evaluation(self, name: str) -> ClipSet:
        """Return the clips like :meth:`evaluation`, but do not check that the set can be scored.

        Raises:
            UserError: the source cannot be read.
        """
        if name not in self._evaluation:
            source = SOURCES.build(self._recipe.data.evaluation[name], self._context)
            self._evaluation[name] = evaluation_clips(name, source, self._longest_evaluation_s)
        return self._evaluation[name]

    def index_evaluation(self) -> None:
        """Index and check each evaluation set, so that unusable sets are rejected before training starts."""
        for name in self._recipe.data.evaluation:
            self.evaluation(name)
