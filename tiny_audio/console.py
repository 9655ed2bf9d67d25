"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_LINE_EVERY = 100


class ConsoleWatcher:
    """Follows a run of ``steps`` steps; a :class:`tiny_audio.training.loop.Watcher`."""

    def __init__(self, steps: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
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

    def __enter__(self) -> ConsoleWatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, message: str) -> None:
        """One line."""
        self.console.print(message, markup=False)

    def step(self, step: int, values: dict[str, Any]) -> None:
        """Move the bar; without a terminal, a line now and then."""
        losses = f"loss {values['decoder_loss']:.3f}"
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
        elif step % _LINE_EVERY == 0 or step == self._steps:
            padding = f"padding {values['padding_share']:.0%}"
            self.note(f"step {step}/{self._steps}: {losses}, {speed}, {padding}, {values['wall_s']:.0f} s")

    def finish(self, report: dict[str, Any], folder: Path) -> None:
        """The result, and where to find everything."""
        self._bar.stop()
        if report["evaluation"]:
            self.console.print(scores_table(report["evaluation"]))
        self.note(f"report: {folder / 'report.html'}\nmodel:  {folder / 'model'}")


def scores_table(sets: dict[str, dict[str, Any]]) -> Table:
    """WER, interval, CER and errors of each set."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("set", "WER", "95 % interval", "CER", "S", "D", "I", "utterances", "normaliser"):
        table.add_column(column, justify="left" if column in ("set", "normaliser") else "right")
    for name, scores in sets.items():
        rows = [(name, scores)]
        if "unnormalized" in scores:
            rows.append((f"{name}, as written", scores["unnormalized"]))
        if "ctc" in scores:
            rows.append((f"{name}, CTC head alone", scores["ctc"]))
        for label, row in rows:
            low, high = row["wer_interval"]
            errors = (row["substitutions"], row["deletions"], row["insertions"], row["num_utterances"])
            table.add_row(
                label,
                f"{row['wer']:.2%}",
                f"{low:.2%}–{high:.2%}",
                f"{row['cer']:.2%}",
                *(str(count) for count in errors),
                row["normalizer"],
            )
    return table
