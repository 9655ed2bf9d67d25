"""Show progress on a terminal: partial texts, or a bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from tiny_audio.commands.transcribe._inputs import Recording


class Screen:
    """Shows the partial text of the earliest chunk of a batch, while the batch is decoded."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self._recordings = recordings
        self._earliest: tuple[int, float] | None = None
        self._live: Any = None

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *error: object) -> None:
        self.batch_done(0.0)

    def text(self, index: int, start_s: float, text: str) -> None:
        """Show the partial text of a chunk, unless an earlier chunk is shown."""
        if not text or (self._earliest is not None and (index, start_s) > self._earliest):
            return
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._earliest = index, start_s
        if self._live is None:
            self._live = Live(console=Console(), transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(Text(line(self._recordings[index], start_s, text)), refresh=True)

    def batch_done(self, seconds: float) -> None:
        """Remove the partial text from the terminal. The caller then prints the final texts of the batch.

        ``seconds`` is ignored; all progress callbacks have this argument.
        """
        if self._live is not None:
            self._live.stop()
        self._live = self._earliest = None


def line(recording: Recording, start_s: float, text: str) -> str:
    """Return the name of the recording, the start time and the text, separated by tabs."""
    return f"{recording.title}\t{_clock(start_s)}\t{text}"


def _clock(seconds: float) -> str:
    whole, tenths = divmod(round(10 * seconds), 10)  # round first: 59.96 s is 0:01:00.0, not 0:00:60.0
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}.{tenths}"


def progress(stack: ExitStack, durations_s: Callable[[], Sequence[float]]) -> Callable[[float], None]:
    """Return a callback that advances a progress bar. If standard error is not a terminal, the callback does nothing.

    Args:
        durations_s: returns the duration of each recording, or 0 if the duration is not known.
    """
    if not sys.stderr.isatty():
        return lambda done: None
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("transcribing"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    bar = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
    seconds = durations_s()
    task = bar.add_task("", total=sum(seconds) if all(seconds) else None)
    return lambda done: bar.advance(task, done)
