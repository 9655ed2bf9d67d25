"""Evaluate targets (models and providers) on sets of clips.

``<output>/<target>/<set>/hypotheses.jsonl`` has a row for each clip, with the field names of the Open ASR Leaderboard's
manifests. ``scores.json`` is computed from these rows. If an earlier evaluation had more clips, the rows of its
additional clips are in ``other_hypotheses.jsonl``. If the evaluation is started again, it transcribes only the missing
and failed clips.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tiny_audio.analysis import rescore
from tiny_audio.analysis.comparison import SetComparison, compare_sets
from tiny_audio.analysis.scoring import Normalizer
from tiny_audio.analysis.tables import scores_table, verdicts, warning_lines
from tiny_audio.config import RunFailed, UserError
from tiny_audio.data.evaluation_clips import check_group_by
from tiny_audio.evaluation.data import DataSet
from tiny_audio.evaluation.target_on_set import HYPOTHESES, Compared, TargetOnSet
from tiny_audio.evaluation.targets import Target
from tiny_audio.runtime.columns import on_one_line
from tiny_audio.runtime.spec import folder_name
from tiny_audio.runtime.world import World

_SHOWN_FAILURES = 3

Scores = dict[str, dict[str, Any]]
"""Scores by name of the set."""


@dataclass(frozen=True)
class Evaluated:
    """Results of several targets on several sets.

    Args:
        scores: scores by label of the target and name of the set.
        comparisons: comparisons of the targets by name of the set (see :mod:`tiny_audio.analysis.comparison`). The
            first target is the baseline. A set is missing if there is no clip that all targets transcribed, or if there
            is only one target.
    """

    scores: dict[str, Scores]
    comparisons: dict[str, SetComparison]

    @property
    def baseline(self) -> str:
        """Label of the target that all other targets are compared with."""
        return next(iter(self.scores))

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON.

        The scores of each target except the first have the key ``comparison``, with the difference from the first
        target.
        """
        found: dict[str, Any] = {target: dict(sets) for target, sets in self.scores.items()}
        for name, compared in self.comparisons.items():
            for entry in compared.differences:
                found[entry.name][name] = found[entry.name][name] | {
                    "comparison": {"baseline": self.baseline, **entry.to_json()}
                }
        return found


def evaluate_targets(
    targets: Sequence[Target],
    sets: Sequence[DataSet],
    output_dir: Path,
    normalizer: Normalizer,
    *,
    group_by: str | None,
    compare: Callable[[Target], Compared] = lambda target: {},
    note: Callable[[str], None],
    failed: Callable[[str, Exception], None],
    world: World = World(),  # noqa: B008  # frozen
) -> Evaluated:
    """Evaluate each target on each set.

    Args:
        group_by: as in :func:`tiny_audio.evaluation.evaluate_clips`.
        compare: callback that compares a target's training data with the sets. By default, they are not compared.
        failed: callback that gets the label and the error of a target that could not be evaluated. The evaluation
            continues with the next target. If there is only one target, its error is raised instead.
        world: the processes that share the clips. All of them call this function, with the same targets and sets.

    Returns:
        The scores and comparisons. The scores of a target on a set are the result of :meth:`TargetOnSet.score`.

    Raises:
        UserError: a folder has results of another target or other data; nothing can be scored; an API key or a package
            is missing; or the only target cannot be loaded.
        RunFailed: the only target transcribed no clip, or did not transcribe any recording completely.
    """
    for data in sets:
        check_group_by(data.clips, group_by, "--group-by")
    works = [(target, [TargetOnSet(target, data, output_dir) for data in sets]) for target in targets]
    every = [work for _, items in works for work in items]
    missing = world.broadcast_from_main(lambda: [work.open() for work in every])
    for work, ids in zip(every, missing, strict=True):
        work.expect(ids)
    for target, items in works:
        if any(work.missing for work in items):
            world.collective(partial(_check, target, sets))
    results: dict[str, Scores] = {}
    done: dict[str, list[TargetOnSet]] = {}
    for target, items in works:
        try:
            load_s = _complete(target, items, note, world)

            def score(
                target: Target = target, items: list[TargetOnSet] = items, load_s: float | None = load_s
            ) -> Scores:
                compared = compare(target)
                return {work.data.name: work.score(normalizer, group_by, load_s, compared) for work in items}

            results[target.label] = world.broadcast_from_main(score)
            done[target.label] = items
        except (UserError, RunFailed) as error:
            if len(works) == 1:
                raise
            failed(target.label, error)
    return Evaluated(results, world.broadcast_from_main(lambda: _compare(done, normalizer, group_by)))


def _check(target: Target, sets: Sequence[DataSet]) -> None:
    target.check()
    if target.contexts is not None:
        for data in sets:  # check all clips, because the missing clips may all lack a column that other clips have
            target.contexts.check_columns(data.clips)


def _compare(
    done: dict[str, list[TargetOnSet]], normalizer: Normalizer, group_by: str | None
) -> dict[str, SetComparison]:
    sets = {}
    for items in zip(*done.values(), strict=True):
        targets = [
            rescore.Target(label, work.folder / HYPOTHESES, work.scored)
            for label, work in zip(done, items, strict=True)
        ]
        if len(targets) > 1 and set.intersection(*(set(target.rows) for target in targets)):
            sets[items[0].data.name], _ = rescore.align_targets(targets, normalizer, group_by=group_by)
    return compare_sets(sets)


def _complete(target: Target, items: Sequence[TargetOnSet], note: Callable[[str], None], world: World) -> float | None:
    """Transcribe all missing clips, and return the loading time in seconds, or None if no clip was missing."""
    if not any(work.missing for work in items):
        return None

    def load() -> float:
        began = time.perf_counter()
        target.load()
        return time.perf_counter() - began

    load_s = world.main_first(load)  # the first process of a machine downloads the model
    note(f"{target.label}: ready after {load_s:.1f} s")
    for warning in target.warnings:
        note(f"{target.label}: {warning}")
    try:
        for work in items:
            work.complete(note, world)
    finally:
        target.close()
    return load_s


def comparison_commands(
    evaluated: Evaluated, output_dir: Path, normalizer: Normalizer, group_by: str | None
) -> list[str]:
    """Return one command for each set. The command writes a page that shows where the targets' hypotheses differ."""
    options = ["--normalizer", normalizer.name, *([] if group_by is None else ["--group-by", group_by])]
    commands = []
    for name in evaluated.comparisons:
        files = [str(output_dir / folder_name(target) / name / HYPOTHESES) for target in evaluated.scores]
        page = output_dir / f"{name}.html"
        commands.append(shlex.join(["tiny-audio", "rescore", *files, *options, "--html", str(page)]))
    return commands


def evaluation_table(evaluated: Evaluated) -> str:
    """Return the scores by set, the verdicts of the comparisons and the clips that were not scored, as text."""
    results = evaluated.scores
    sets = dict.fromkeys(name for scores in results.values() for name in scores)
    entries = [scores[name] for name in sets for scores in results.values() if name in scores]
    rows = [((entry["set"], entry["target"]), entry) for entry in entries]
    table = scores_table(["set", "target"], rows, after={"num_utterances": "clips", "num_failed": "not transcribed"})
    lines = [table, *warning_lines(rows), f"normalizer: {entries[0]['normalizer']}"]
    lines += verdicts(evaluated.baseline, evaluated.comparisons)
    for entry in entries:
        shown = entry["failures"][:_SHOWN_FAILURES]
        lines += [on_one_line(f"not transcribed by {entry['target']}: {one['id']}: {one['error']}") for one in shown]
        if entry["num_failed"] > len(shown):
            more = entry["num_failed"] - len(shown)
            clips = "clip" if more == 1 else "clips"
            lines.append(f"not transcribed by {entry['target']}: {more} more {clips} of {entry['set']}")
    for name in sets:
        counts = [entry["num_utterances"] for entry in entries if entry["set"] == name]
        compared = evaluated.comparisons.get(name)
        num_common = 0 if compared is None else len(compared.aligned.rows)
        if len(counts) > 1 and max(counts) > num_common:
            lines.append(
                f"{name}: the targets transcribed different clips, so their rates cannot be compared; verdicts use "
                "only the clips that all of them transcribed"
            )
    dropped = {drop["id"]: drop for entry in entries for drop in entry["dropped"]}
    lines += [on_one_line(f"not in the set: {one['id']}: {one['reason']}: {one['detail']}") for one in dropped.values()]
    return "\n".join(lines)
