"""``tiny-audio sweep``: start an ordinary run for each combination in a grid of overrides, then compare the runs.

The sweep's folder contains the run folders, ``comparison.json``, ``comparison.html`` and ``sweep.json`` (the grid, and
the folder and status of each run).
"""

from __future__ import annotations

import gc
import json
import shlex
import textwrap
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_audio.analysis.compare import FinishedRun, Variant, compare_variants
from tiny_audio.analysis.report import render_comparison
from tiny_audio.analysis.report.audio import audio_reader
from tiny_audio.analysis.scoring.metrics import metric_of
from tiny_audio.analysis.tables import comparison_table
from tiny_audio.commands.console import ConsoleCallback
from tiny_audio.commands.sweep._grid import Combination, combinations, parse_grid
from tiny_audio.config import RunFailed, Stopped, UserError
from tiny_audio.recipe import content_hash
from tiny_audio.runtime.columns import in_columns
from tiny_audio.runtime.device import empty_cache
from tiny_audio.runtime.files import write_atomically
from tiny_audio.runtime.launch import check_alone
from tiny_audio.training.signals import StopSignal

__all__ = ["Sweep", "combinations"]


@dataclass(frozen=True)
class _Failure:
    """The error of a failed run. The exception is not stored, because it would keep the run's model in memory."""

    message: str
    is_user_error: bool


class Sweep:
    """All runs of a grid, executed in sequence. A sweep is idempotent and resumable, like a run.

    Args:
        path: the recipe.
        overrides: an override with one value, such as ``training.steps=100``, applies to all runs. Overrides with
            several values, such as ``projector=swiglu,conv``, form the grid. Each combination of their values is a run.
        folder: the sweep's folder. If None, it is ``sweeps/<recipe>-<hash of the runs>``.

    Raises:
        UserError: a combination is not valid, or the runs cannot be compared.
    """

    def __init__(self, path: Path, overrides: Sequence[str], folder: Path | None = None) -> None:
        self.path, self.overrides = path, list(overrides)
        self.combinations = combinations(path, overrides)
        contents = [[run.folder, run.recipe.evaluation_identity()] for run in self.combinations]
        self.folder = folder or Path("sweeps") / f"{path.stem}-{content_hash(contents)[:8]}"
        self._status: dict[str, dict[str, Any]] = {}

    def listing(self) -> str:
        """Return a table of the runs: run id, status, name and folder."""
        rows = [["run id", "status", "run", "folder"]]
        for run in self.combinations:
            folder = self.folder / run.folder
            rows.append([run.recipe.run_id(), _status_of(folder), run.name, str(folder)])
        return in_columns(rows, num_texts=4)

    def complete(self) -> dict[str, Any]:
        """Complete all unfinished runs, then compare the finished ones. A failed run does not stop the sweep.

        Returns:
            the comparison, as in ``comparison.json``.

        Raises:
            UserError: the sweep was started in several processes, the folder belongs to a run, or some runs failed and
                every error was a UserError.
            RunFailed: some runs failed, and at least one error was not a UserError.
            Stopped: a signal arrived. Finished work is saved.
        """
        check_alone("sweep")
        if (self.folder / "state.json").exists():
            raise UserError(f"{self.folder} is the folder of a run; give another --output-dir")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._status = {run.folder: {"status": "waiting", "error": None} for run in self.combinations}
        failures: dict[str, _Failure] = {}
        with StopSignal():
            for index, run in enumerate(self.combinations, 1):
                failure = self._run(index, run)
                if failure is not None:
                    failures[run.name] = failure
            finished = [run for run in self.combinations if self._status[run.folder]["status"] == "finished"]
            comparison = self._compare(finished) if finished else {}
        if failures:
            self._fail(failures, compared=bool(comparison))
        return comparison

    def _run(self, index: int, run: Combination) -> _Failure | None:
        """Complete one run. Return its failure, or None if it succeeded."""
        from tiny_audio.commands.run import Run  # imports transformers, which `sweep --dry-run` does not need

        folder = self.folder / run.folder
        self._record(run, "running")
        with ConsoleCallback(run.recipe.training.steps) as callback:
            callback.note(f"[{index}/{len(self.combinations)}] {run.name}: {folder}")
            try:
                report = Run(run.recipe, run.name, folder, callback).complete()
            except Stopped:
                self._record(run, "stopped")
                raise Stopped(self._stopped(index, run)) from None
            except Exception as error:
                # The error may concern only this run, so the sweep continues. For example, a batch of this run may not
                # fit into memory, or a part that only this run uses may have a bug.
                message = str(error) or type(error).__name__
                callback.note(f"failed: {message}")
                # Our own errors have complete messages. For other errors, record the traceback.
                known = isinstance(error, RunFailed | UserError)
                self._record(run, "failed", message if known else traceback.format_exc())
                return _Failure(message, isinstance(error, UserError))
            finally:
                gc.collect()
                empty_cache()
            assert report is not None, "the main process gets the report, and a sweep has only this process"
            wer = metric_of("wer")
            # A set whose references are all empty has no word error rate.
            rates = (f"{name} {wer.text(scores['wer']) or '–'}" for name, scores in report["evaluation"].items())
            callback.note(f"[{index}/{len(self.combinations)}] {run.name}: WER {', '.join(rates)}\n")
        self._record(run, "finished")
        return None

    def _stopped(self, index: int, run: Combination) -> str:
        command = ["tiny-audio", "sweep", str(self.path), *self.overrides, "--output-dir", str(self.folder)]
        return (
            f"stopped by a signal in run {index} of {len(self.combinations)} ({run.name}); all work so far is saved. "
            f"To continue:\n  {shlex.join(command)}"
        )

    def _compare(self, finished: Sequence[Combination]) -> dict[str, Any]:
        runs: dict[str, list[FinishedRun]] = {}
        for run in finished:
            runs.setdefault(run.variant, []).append(FinishedRun.read(self.folder / run.folder, run.name))
        variants = [Variant(name, tuple(of_name)) for name, of_name in runs.items()]
        # If the sweep changes limits on durations, the runs may score different clips. Compare only the common clips.
        compared = compare_variants(variants, common=True)
        comparison = compared.to_json()
        write_atomically(self.folder / "comparison.json", json.dumps(comparison, indent=1, ensure_ascii=False))
        write_atomically(self.folder / "comparison.html", render_comparison(compared, audio_reader(compared.files)))
        print(f"{comparison_table(compared)}\n\ncomparison: {self.folder / 'comparison.html'}")
        return comparison

    def _fail(self, failures: dict[str, _Failure], *, compared: bool) -> None:
        lines = [f"{len(failures)} of {len(self.combinations)} runs failed:"]
        for name, failure in failures.items():
            lines += textwrap.indent(f"{name}: {failure.message}", "  ").splitlines()
        if compared:
            lines.append(f"the others are compared in {self.folder / 'comparison.html'}")
        lines.append("the same command repeats the failed runs")
        user_errors = all(failure.is_user_error for failure in failures.values())
        raise (UserError if user_errors else RunFailed)("\n".join(lines))

    def _record(self, run: Combination, status: str, error: str | None = None) -> None:
        self._status[run.folder] = {"status": status, "error": error}
        fixed, grid = parse_grid(self.overrides)
        runs = [
            {"name": c.name, "values": c.values, "folder": c.folder, "run_id": c.recipe.run_id()}
            | self._status[c.folder]
            for c in self.combinations
        ]
        content = {"recipe": str(self.path), "overrides": fixed, "grid": grid, "runs": runs}
        write_atomically(self.folder / "sweep.json", json.dumps(content, indent=1, ensure_ascii=False))


def _status_of(folder: Path) -> str:
    """Return the status of a run according to its folder: ``new``, ``begun`` or ``finished``."""
    if not (folder / "state.json").exists():
        return "new"
    return "finished" if (folder / "report.json").exists() else "begun"
