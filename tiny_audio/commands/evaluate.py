"""``tiny-audio evaluate``: score models and providers (the targets) on the same clips."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from tiny_audio.analysis.scoring import normalizer as normalizer_called
from tiny_audio.commands._output import print_json
from tiny_audio.commands._processes import joined_for_inference
from tiny_audio.commands.run.context import RunClips
from tiny_audio.config import RegistryError, RunFailed, UserError
from tiny_audio.data.evaluation_clips import UNBOUNDED_DURATION_S
from tiny_audio.data.sound_overlap import EvaluationSounds
from tiny_audio.evaluation.data import DataSet, read_data
from tiny_audio.evaluation.harness import Evaluated, comparison_commands, evaluate_targets, evaluation_table
from tiny_audio.evaluation.leaderboard import write_results
from tiny_audio.evaluation.resolve import resolve_targets
from tiny_audio.evaluation.target_on_set import Compared
from tiny_audio.evaluation.targets import Target
from tiny_audio.recipe import load_recipe
from tiny_audio.runtime.spec import folder_name
from tiny_audio.runtime.world import World


def evaluate(
    targets: Sequence[str],
    data: Sequence[str],
    max_samples: int | None,
    output_dir: Path,
    *,
    normalizer: str,
    group_by: str | None,
    as_json: bool,
) -> None:
    """Evaluate each target on each set, and print the scores.

    If a target fails, the other targets are still evaluated. At the end, one error is raised, with the messages of all
    failed targets.

    Raises:
        UserError: the data or a target cannot be used.
        RunFailed: a target failed with another error; for example, it transcribed no clip.
    """
    with joined_for_inference() as world:
        rule = world.collective(lambda: normalizer_called(normalizer))
        found = world.main_first(lambda: resolve_targets(targets))
        sets = world.main_first(lambda: read_data(data, max_samples))
        _check_same(sets, world)
        errors: dict[str, Exception] = {}
        evaluated = evaluate_targets(
            found,
            sets,
            output_dir,
            rule,
            group_by=group_by,
            compare=_SharedWithTraining(sets).of,
            note=_note if world.is_main else lambda text: None,
            failed=lambda label, error: errors.update({label: error}),
            world=world,
        )
        if world.is_main:
            if max_samples is None:
                _write_results(evaluated, output_dir)
            if as_json:
                print_json(evaluated.to_json())
            elif evaluated.scores:
                print(evaluation_table(evaluated))
            for command in comparison_commands(evaluated, output_dir, rule, group_by):
                _note(f"to write an HTML page of this comparison: {command}")
        if errors:
            kind = UserError if all(isinstance(error, UserError) for error in errors.values()) else RunFailed
            raise world.printed_by_main(kind("\n".join(str(error) for error in errors.values())))


def _check_same(sets: Sequence[DataSet], world: World) -> None:
    """Raise a UserError if a set has other clips in this process than in the main process."""
    fingerprints = world.broadcast_from_main(lambda: {data.name: data.fingerprint for data in sets})

    def check() -> None:
        other = [data.name for data in sets if data.fingerprint != fingerprints.get(data.name)]
        if other:
            raise UserError(
                f"{world.name} has different clips in {other[0]} than the main process; give all machines the same "
                "files"
            )

    world.collective(check)


def _write_results(evaluated: Evaluated, output_dir: Path) -> None:
    for target, scores in evaluated.scores.items():
        results = write_results(scores, output_dir / folder_name(target), date.today().isoformat())
        if results is not None:
            _note(f"leaderboard results, as a file for the model's repository on the hub: {results}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _SharedWithTraining:
    """Finds evaluation clips that are also in the training data of a run. Data that several runs share is read once."""

    def __init__(self, sets: Sequence[DataSet]) -> None:
        self._evaluation = EvaluationSounds({data.name: data.clips for data in sets})
        self._known: dict[str, Compared] = {}

    def of(self, target: Target) -> Compared:
        """Return the overlap of each evaluation set with the training data of ``target``.

        The result is empty if the target is not a run. A value is None if the training data cannot be read.
        """
        path = _recipe_of(target)
        if path is None:
            return {}
        try:
            recipe = load_recipe(path)
            data = recipe.data.model_dump_json(exclude={"evaluation"})
            key = f"{data} {recipe.evaluation.max_compared_h}"
            if key not in self._known:
                _note(f"comparing with the training data of {target.label}")
                found = RunClips(recipe, {}, UNBOUNDED_DURATION_S).compare(self._evaluation)
                self._known[key] = {name: shared.comparison for name, shared in found.items()}
        except (UserError, RegistryError):  # the training data, or the plugin that reads it, no longer exists
            return dict.fromkeys(self._evaluation.sets)
        return self._known[key]


def _recipe_of(target: Target) -> Path | None:
    """Return the path of the run's recipe, or None if the target is not a run."""
    if "path" not in target.identity:
        return None
    recipe = Path(target.identity["path"]).parent / "recipe.yaml"
    return recipe if recipe.is_file() else None
