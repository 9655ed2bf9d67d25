"""Progress of a run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tiny_audio.analysis.decoder_gain import gain_lines
from tiny_audio.analysis.ledger import ledger_rows
from tiny_audio.analysis.tables import scores_table, warning_lines
from tiny_audio.recipe import load_recipe
from tiny_audio.runtime.columns import in_columns

_LINE_EVERY = 100
_WIDTH = 80


def run(path: Path, overrides: Sequence[str], folder: Path | None) -> None:
    """Run a recipe, and show the progress on the console.

    Args:
        folder: the run folder. If None, it is ``runs/<recipe>-<run id>``.
    """
    recipe = load_recipe(path, overrides)
    from tiny_audio.commands.run import Run  # a slow import, so the recipe is checked first
    from tiny_audio.runtime.launch import Launch

    folder = folder or Path("runs") / f"{path.stem}-{recipe.run_id()}"
    with ConsoleCallback(recipe.training.steps) as callback:
        if Launch.read().rank == 0:
            callback.note(f"run {recipe.run_id()} in {folder}")
        report = Run(recipe, path.stem, folder, callback).complete()
        if report is not None:
            callback.finish(report, folder)


class ConsoleCallback:
    """A :class:`tiny_audio.training.trainer.Callback` that shows the progress of a run with ``steps`` steps."""

    def __init__(self, steps: int) -> None:
        self.console = Console(emoji=False, highlight=False, soft_wrap=True)
        self._steps = steps
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
        )
        self._task: Any = None
        self._last_line = 0

    def __enter__(self) -> ConsoleCallback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop_bar()

    def _stop_bar(self) -> None:
        if self._task is not None:  # stopping a bar that was not started prints an empty line
            self._bar.stop()

    def note(self, message: str) -> None:
        """Print one line."""
        self.console.print(message, markup=False)

    def step(self, step: int, values: dict[str, Any]) -> None:
        """Update the progress bar. Without a terminal, print a line every 100 steps."""
        decoder_loss = values["decoder_loss"]
        skips_decoder = decoder_loss is None
        losses = f"alignment {values['alignment_loss']:.3f}" if skips_decoder else f"loss {decoder_loss:.3f}"
        if values["ctc_loss"] is not None:
            losses += f", CTC {values['ctc_loss']:.3f}"
        speed = f"{values['audio_hours_per_hour']:.0f} h/h"
        if self.console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task("", total=self._steps)
                self._bar.start()
            self._bar.update(self._task, completed=step, description=f"{losses}, {speed}")
            if step == self._steps:
                self._bar.stop()
        elif step - self._last_line >= _LINE_EVERY or step == self._steps:
            self._last_line = step
            padding = f"padding {values['padding_share']:.0%}"
            self.note(f"step {step}/{self._steps}: {losses}, {speed}, {padding}, {values['wall_s']:.0f} s")

    def finish(self, report: dict[str, Any], folder: Path) -> None:
        """Print the results and the paths of the report and the model."""
        self._stop_bar()
        if report["evaluation"]:
            self.note(sets_table(report["evaluation"]))
        for line in gain_lines(report.get("decoder_gain", [])):
            self.note(line)
        self.note(ledger_table(report["ledger"]))
        self.note(f"report: {folder / 'report.html'}\nmodel:  {folder / 'model'}")


def sets_table(sets: dict[str, dict[str, Any]]) -> str:
    """Format the metrics of each evaluation set, with extra rows for unnormalized text and the CTC head."""
    rows = []
    for name, scores in sets.items():
        rows.append(((name,), scores))
        others = (("  in lower case only", "unnormalized"), ("  CTC head", "ctc"))
        rows += [((label,), scores[key] | {"num_utterances": None}) for label, key in others if key in scores]
    normalizers = ", ".join(sorted({scores["normalizer"] for scores in sets.values()}))
    table = scores_table([""], rows, after={"num_utterances": "clips"})
    warnings = warning_lines([((name,), scores) for name, scores in sets.items()])
    return "\n".join([table, *warnings, f"normalizer: {normalizers}"])


def ledger_table(ledger: dict[str, Any]) -> str:
    """Format the resource usage of a run (its ledger). Each row also says how the value was obtained."""
    known = ledger_rows(ledger)
    room = _WIDTH - sum(max(len(row[column]) for row in known) + 2 for column in (0, 1))
    rows: list[tuple[str, str, str]] = []
    for what, value, how in known:
        first, *others = textwrap.wrap(how, room)
        rows += [(what, value, first), *(("", "", line) for line in others)]
    return in_columns(rows, num_texts=3)
