"""Evaluate targets on data sets. Hypotheses, scores, times and costs are written to a folder for each target and set.

``<output>/<target>/<set>/hypotheses.jsonl`` has a row for each clip, with the field names of the Open ASR Leaderboard's
manifests. Rows are appended one by one, so an interrupted evaluation can continue. It then transcribes only the missing
and failed clips. ``scores.json`` is computed from these rows.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_audio.analysis import rescore
from tiny_audio.analysis.comparison import SetComparison, compare_sets
from tiny_audio.analysis.scoring import Normalizer, score_set
from tiny_audio.analysis.tables import scores_table, verdicts, warning_lines
from tiny_audio.analysis.warnings import Comparison, state_overlap
from tiny_audio.config import RunFailed, UserError
from tiny_audio.data.clips import Clip
from tiny_audio.data.evaluation_clips import check_group_by
from tiny_audio.evaluation.data import DataSet
from tiny_audio.evaluation.hypotheses import Hypothesis, hypothesis, to_lines, with_outcome, write_rows
from tiny_audio.evaluation.targets import Target
from tiny_audio.runtime.columns import on_one_line
from tiny_audio.runtime.files import write_atomically
from tiny_audio.runtime.spec import folder_name

_SHOWN_FAILURES = 3
HYPOTHESES, SCORES, IDENTITY = "hypotheses.jsonl", "scores.json", "target.json"

Scores = dict[str, dict[str, Any]]
"""Scores by name of the set."""
Compared = Mapping[str, Comparison | None]
"""Comparison of each set with a target's training data, by name of the set. None if the training data cannot be read.
The mapping is empty if the training data is not known."""


@dataclass(frozen=True)
class Evaluated:
    """Results of several targets on several sets.

    Args:
        scores: scores by label of the target and name of the set.
        comparisons: comparisons of the targets by name of the set (see :mod:`tiny_audio.analysis.comparison`), if
            there are clips that all targets transcribed. The first target is the baseline.
    """

    scores: dict[str, Scores]
    comparisons: dict[str, SetComparison]

    @property
    def baseline(self) -> str:
        """Label of the target that all other targets are compared with."""
        return next(iter(self.scores))

    def to_json(self) -> dict[str, Any]:
        """Return the scores. ``comparison`` is the difference from the baseline, for all other targets."""
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
    num_bootstrap: int = 1000,
    compare: Callable[[Target], Compared] = lambda target: {},
    note: Callable[[str], None],
    failed: Callable[[str, Exception], None],
) -> Evaluated:
    """Evaluate each target on each set.

    Args:
        group_by: as in :func:`tiny_audio.evaluation.evaluate_clips`.
        compare: callback that compares a target's training data with the sets.
        note: callback for progress messages.
        failed: callback for a target that could not be evaluated, with its label and the error. It is used if there
            are several targets, and the evaluation continues with the next target.

    Returns:
        The scores, with the keys of :func:`tiny_audio.analysis.scoring.score_set`, and ``target``, ``set``,
        ``num_clips``, ``num_failed``, ``failure_rate``, ``failures`` (the first messages), ``truncated_hypotheses``,
        ``audio_s``, ``time_s``, ``rtfx``, ``load_s`` (None if no clip was missing), ``cost_usd``, ``price`` and
        ``dropped``.

    Raises:
        UserError: a folder has results of another target or other data, nothing can be scored, a key or package is
            missing, or the only target cannot be loaded.
        RunFailed: there is only one target, and it transcribed no clip.
    """
    for data in sets:
        check_group_by(data.clips, group_by)
    works = [(target, [_Work(target, data, output_dir) for data in sets]) for target in targets]
    for target, items in works:
        if any(work.missing for work in items):
            target.check()
    results: dict[str, Scores] = {}
    done: dict[str, list[_Work]] = {}
    for target, items in works:
        try:
            load_s = _complete(target, items, note)
        except (UserError, RunFailed) as error:
            if len(works) == 1:
                raise
            failed(target.label, error)
        else:
            done[target.label] = items
            compared = compare(target)
            results[target.label] = {
                work.data.name: work.score(normalizer, group_by, num_bootstrap, load_s, compared) for work in items
            }
    return Evaluated(results, _compare(done, normalizer, group_by))


def _compare(done: dict[str, list[_Work]], normalizer: Normalizer, group_by: str | None) -> dict[str, SetComparison]:
    sets = {}
    for items in zip(*done.values(), strict=True):
        targets = [
            rescore.Target(label, work.folder / HYPOTHESES, work.scored)
            for label, work in zip(done, items, strict=True)
        ]
        if len(targets) > 1 and set.intersection(*(set(target.rows) for target in targets)):
            sets[items[0].data.name], _ = rescore.align_targets(targets, normalizer, group_by=group_by)
    return compare_sets(sets)


def _complete(target: Target, items: Sequence[_Work], note: Callable[[str], None]) -> float | None:
    """Transcribe all missing clips, and return the loading time in seconds, or None if no clip was missing."""
    if not any(work.missing for work in items):
        return None
    began = time.perf_counter()
    target.load()
    load_s = time.perf_counter() - began
    note(f"{target.label}: ready after {load_s:.1f} s")
    try:
        for work in items:
            work.complete(note)
    finally:
        target.close()
    return load_s


class _Work:
    """The evaluation of one target on one set, with its folder."""

    def __init__(self, target: Target, data: DataSet, output_dir: Path) -> None:
        self.target, self.data = target, data
        self.folder = output_dir / folder_name(target.label) / data.name
        self._errors_of_audio = 0
        self.failures: list[Hypothesis] = []
        identity = {"target": target.identity, "data": data.fingerprint}
        self._check_identity(json.loads(json.dumps(identity)))
        known = {row["id"]: row for row in _read(self.folder / HYPOTHESES)}
        self.rows: dict[str, Hypothesis] = {
            clip.id: known[clip.id] for clip in data.clips if clip.id in known and known[clip.id]["error"] is None
        }
        self._others = [row for name, row in known.items() if name not in self.rows and row["error"] is None]
        """Hypotheses of clips that are not in this set, for example after an evaluation with more samples."""

    @property
    def missing(self) -> list[Clip]:
        """Clips that have not been transcribed, or failed."""
        return [clip for clip in self.data.clips if clip.id not in self.rows]

    def complete(self, note: Callable[[str], None]) -> None:
        """Transcribe the missing clips, and write their rows."""
        missing = self.missing
        if not missing:
            return
        path = self.folder / HYPOTHESES
        if self.rows:
            note(f"{self.target.label} on {self.data.name}: {len(self.rows)} of {len(self.data.clips)} are done")
        # Rewrite the file without failures and without the incomplete last line of a killed process.
        write_rows(path, [*self.rows.values(), *self._others])
        failed: dict[str, Hypothesis] = {}
        with path.open("a", encoding="utf-8") as file:
            for done, outcome in enumerate(self.target.transcribe(missing), start=1):
                row = with_outcome(hypothesis(outcome.clip, outcome.transcript), outcome.time_s, outcome.error)
                (self.rows if outcome.error is None else failed)[row["id"]] = row
                self._errors_of_audio += outcome.is_audio
                file.write(to_lines([row]))
                file.flush()
                if done % 100 == 0:
                    note(f"{self.target.label} on {self.data.name}: {done} of {len(missing)}, {len(failed)} failed")
        everything = self.rows | failed
        rows = [everything[clip.id] for clip in self.data.clips]
        write_rows(path, [*rows, *self._others])
        self.failures = [row for row in rows if row["error"] is not None]
        if not self.rows:
            first = f"the first: {self.failures[0]['id']}: {self.failures[0]['error']}"
            message = f"{self.target.label} on {self.data.name}: none of {len(rows)} clips was transcribed; {first}"
            raise UserError(message) if self._errors_of_audio == len(rows) else RunFailed(message)

    @property
    def scored(self) -> dict[str, Hypothesis]:
        """Hypotheses to score, by id: the transcribed clips, or the recordings whose chunks were all transcribed."""
        rows = self.rows | {row["id"]: row for row in self.failures}
        ordered = {clip.id: rows[clip.id] for clip in self.data.clips if clip.id in rows}
        joined = rescore.join_chunks(ordered, str(self.folder / HYPOTHESES))
        return {name: row for name, row in joined.items() if row["error"] is None}

    def score(
        self,
        normalizer: Normalizer,
        group_by: str | None,
        num_bootstrap: int,
        load_s: float | None,
        compared: Compared,
    ) -> dict[str, Any]:
        """Score the transcribed clips, and write ``scores.json``."""
        rows = list(self.scored.values())
        has_ctc = all(row["ctc_text"] is not None for row in rows)
        scores = score_set(
            [row["text"] for row in rows],
            [row["pred_text"] for row in rows],
            normalizer,
            ctc_hypotheses=[row["ctc_text"] for row in rows] if has_ctc else None,
            num_bootstrap=num_bootstrap,
            groups=None if group_by is None else [row["metadata"].get(group_by) for row in rows],
            durations_s=[row["duration"] for row in rows],
        )
        audio_s, time_s = (sum(row[key] for row in self.rows.values()) for key in ("duration", "time"))
        price = self.target.price()
        scores |= {
            "target": self.target.label,
            "set": self.data.name,
            "num_clips": len(self.data.clips),
            "num_failed": len(self.failures),
            "failure_rate": len(self.failures) / len(self.data.clips),
            "failures": [{"id": row["id"], "error": row["error"]} for row in self.failures[:20]],
            "truncated_hypotheses": sum(row["truncated"] for row in rows),
            "audio_s": audio_s,
            "time_s": time_s,
            "rtfx": audio_s / time_s if time_s else None,
            "load_s": load_s,
            "cost_usd": None if price is None else audio_s / 3600 * price.usd_per_hour,
            "price": None if price is None else {"usd_per_hour": price.usd_per_hour, "source": price.source},
            "dropped": [{"id": drop.id, "reason": drop.reason, "detail": drop.detail} for drop in self.data.dropped],
        }
        if self.data.name in compared:
            state_overlap(scores, compared[self.data.name])
        write_atomically(self.folder / SCORES, json.dumps(scores, indent=1, ensure_ascii=False) + "\n")
        return scores

    def _check_identity(self, identity: dict[str, Any]) -> None:
        path = self.folder / IDENTITY
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if (self.folder / HYPOTHESES).exists():
                raise UserError(
                    f"{self.folder} has hypotheses of unknown origin (it has no {IDENTITY}); give another --output-dir"
                )
            write_atomically(path, json.dumps(identity, indent=1, ensure_ascii=False) + "\n")
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        old = before if isinstance(before, dict) else {}
        changed = [what for what in ("target", "data") if _given(old.get(what)) != _given(identity[what])]
        if changed:
            raise UserError(
                f"{self.folder} has results of another {' and other '.join(changed)}; give another --output-dir, or "
                "remove that folder"
            )


def _given(value: Any) -> Any:
    """Return the options that are not None, because an older version may not have had the other options."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def _read(path: Path) -> Iterator[Hypothesis]:
    """Yield the complete rows of a file. An incomplete last line is skipped.

    Raises:
        UserError: a line before the last line is not a hypothesis.
    """
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    for line_number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            complete = isinstance(row, dict) and row.keys() >= {"id", "error", "pred_text", "duration", "time", "text"}
        except ValueError:
            complete = False
        if complete:
            yield row
        elif line_number < len(lines):  # an incomplete last line of a killed process has no newline
            raise UserError(f"{path}, line {line_number}: not a hypothesis of an evaluation; give another --output-dir")


def comparison_commands(
    evaluated: Evaluated, output_dir: Path, normalizer: Normalizer, group_by: str | None
) -> list[str]:
    """Return a command for each comparison. The command writes a page of the clips on which the targets differ."""
    options = ["--normalizer", normalizer.name, *([] if group_by is None else ["--group-by", group_by])]
    commands = []
    for name in evaluated.comparisons:
        files = [str(output_dir / folder_name(target) / name / HYPOTHESES) for target in evaluated.scores]
        page = output_dir / f"{name}.html"
        commands.append(shlex.join(["tiny-audio", "rescore", *files, *options, "--html", str(page)]))
    return commands


def evaluation_table(evaluated: Evaluated) -> str:
    """Return the scores by set, the verdicts and the clips that were not scored, as text."""
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
            lines.append(f"... and {entry['num_failed'] - len(shown)} more of {entry['set']}")
    for name in sets:
        if len({entry["num_utterances"] for entry in entries if entry["set"] == name}) > 1:
            lines.append(
                f"{name}: the targets transcribed different clips, so their rates cannot be compared; verdicts use "
                "only the clips that all of them transcribed"
            )
    dropped = {drop["id"]: drop for entry in entries for drop in entry["dropped"]}
    lines += [on_one_line(f"not listed: {one['id']}: {one['reason']}: {one['detail']}") for one in dropped.values()]
    return "\n".join(lines)
