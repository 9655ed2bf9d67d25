"""Transcribe one process's share of the recordings.

The main process writes the transcripts of all processes to standard output, in the order of the recordings.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tiny_audio.audio.errors import AudioError, FileError
from tiny_audio.audio.recording import recording_blocks
from tiny_audio.commands.transcribe._formats import TSV_HEAD, JsonArray, rendered, row
from tiny_audio.commands.transcribe._inputs import Recording, duration
from tiny_audio.commands.transcribe._options import Options
from tiny_audio.commands.transcribe._outputs import OutputFolder
from tiny_audio.commands.transcribe._screen import Screen, line, progress
from tiny_audio.config import UserError
from tiny_audio.export.load import load_model
from tiny_audio.inference.segments import Transcription
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.shares import split_evenly
from tiny_audio.runtime.world import World


@dataclass(frozen=True)
class Result:
    """The result of one recording."""

    truncated: bool = False
    why_empty: str | None = None
    suppressed: str | None = None
    warning: str | None = None
    error: str | None = None

    @classmethod
    def of(cls, transcription: Transcription, error: str | None) -> Result:
        """Return the result of a transcription."""
        return cls(
            transcription.truncated, transcription.why_empty, transcription.suppressed, transcription.warning, error
        )


class Job:
    """Transcribes a process's share of the recordings.

    Args:
        recordings: all recordings.
        waiting: indices of the recordings to transcribe. They are divided among all processes.
        output: the output folder. If None, the transcripts are written to standard output.
        write: receives the text for standard output, in the main process.
        world: the processes that share the recordings.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        waiting: Sequence[int],
        options: Options,
        output: OutputFolder | None,
        write: Callable[[str], None],
        world: World,
    ) -> None:
        self._recordings, self._options, self._world = recordings, options, world
        self._output, self._write = output, write
        self._durations_s: Sequence[float] = []
        self._share: Sequence[int] = waiting
        if world.size > 1:
            self._durations_s = _durations([recordings[index] for index in waiting], world)
            self._share = [waiting[index] for index in split_evenly(self._durations_s, world.size)[world.rank]]
        self._live = output is None and options.format == "text" and world.size == 1 and sys.stdout.isatty()
        self._report: Callable[[float], None] = (lambda done: None) if world.is_main else world.send_to_main
        self._errors: dict[int, str] = {}
        self._rows = JsonArray(write)
        self._unwritten = deque(waiting)
        self._finished: dict[int, tuple[Transcription, str | None]] = {}
        """Finished recordings that are not written to standard output yet, because earlier ones are unfinished."""
        self.results: dict[int, Result] = {}
        """Results of this process's share, by index of the recording."""

    def run(self, model: Path, stack: ExitStack) -> None:
        """Transcribe this process's share."""
        options, to_stdout = self._options, self._output is None
        transcriber = None
        if self._share:
            loaded, tokenizer = load_model(model)
            transcriber = Transcriber(
                loaded.to(device_of("auto")),
                tokenizer,
                filter_hallucinations=options.filter_hallucinations,
                search_cuts=options.search_cuts,
            )
            warnings = transcriber.encode_context(options.context).warnings
            for warning in warnings if self._world.is_main else ():
                print(warning, file=sys.stderr)
            if options.words and not transcriber.can_time_words:  # check this before the output folder is changed
                raise UserError("--words: word timestamps need a CTC head, and this model has none; remove --words")
        if self._output is not None:
            self._output.begin()
        recordings = [self._recordings[index] for index in self._share]
        screen = stack.enter_context(Screen(recordings)) if self._live else None
        if screen:
            self._report = screen.batch_done
        elif self._world.is_main:
            self._report = progress(stack, lambda: self._durations_s or _durations(recordings, self._world))
        if self._world.is_main and to_stdout:
            if options.format == "tsv":
                self._write(TSV_HEAD)
            if options.format == "json":
                stack.callback(self._rows.close)  # also closes the array after an interruption
            stack.callback(self._write_rest)
        if transcriber is None:
            return
        timed = options.words or (options.format in ("srt", "vtt") and transcriber.can_time_words)
        events = transcriber.stream(
            (self._blocks(index) for index in self._share),
            word_timestamps=timed,
            on_progress=self._report,
            on_text=screen.text if screen else None,
            contexts=options.context,
        )
        for position, event in events:
            if isinstance(event, Transcription):
                self._finish(self._share[position], event)
            elif screen and event.text:
                self._write(line(recordings[position], event.start_s, event.text) + "\n")
            self.receive()

    def receive(self) -> None:
        """Handle messages from other processes: seconds of audio that are done, and finished recordings."""
        for value in self._world.received():
            if isinstance(value, float):
                self._report(value)
            else:
                self._write_in_order(*value)

    def _finish(self, index: int, transcription: Transcription) -> None:
        recording, error = self._recordings[index], self._errors.get(index)
        if self._output is not None and error is None:
            try:
                self._output.write(recording, transcription)
            except OSError as problem:
                error = f"{recording.title}: its transcript cannot be written: {problem.strerror}: {problem.filename}"
        elif self._output is None:
            deliver = self._write_in_order if self._world.is_main else self._send
            deliver(index, transcription, error)
        self.results[index] = Result.of(transcription, error)

    def _send(self, index: int, transcription: Transcription, error: str | None) -> None:
        self._world.send_to_main((index, transcription, error))

    def _write_in_order(self, index: int, transcription: Transcription, error: str | None) -> None:
        """Write a finished recording to standard output as soon as all earlier recordings are written."""
        self._finished[index] = transcription, error
        while self._unwritten and self._unwritten[0] in self._finished:
            first = self._unwritten.popleft()
            self._print(first, *self._finished.pop(first))

    def _write_rest(self) -> None:
        """After an interruption, write all finished recordings, even if earlier recordings are not finished."""
        self.receive()
        for index in sorted(self._finished):
            self._print(index, *self._finished.pop(index))

    def _blocks(self, index: int) -> Iterator[Tensor]:
        """Yield the waveform of a recording in blocks, up to its end or an error. An error is stored, not raised."""
        recording = self._recordings[index]
        try:
            yield from recording_blocks(
                recording.path, recording.title, track=self._options.track, channel=self._options.channel
            )
        except (AudioError, FileError) as error:
            self._errors[index] = str(error)

    def _print(self, index: int, transcription: Transcription, error: str | None) -> None:
        """Write a recording's result to standard output. If texts are shown live, the segments are already written."""
        recording, options = self._recordings[index], self._options
        if options.format == "json":
            self._rows.add(row(recording.name, transcription, error))
        elif error is None and not self._live:
            if options.format == "text":
                self._write(f"{recording.title}\t{' '.join(transcription.text.split())}\n")
            else:
                self._write(rendered(recording.name, transcription, options).removeprefix(TSV_HEAD))


def _durations(recordings: Sequence[Recording], world: World) -> list[float]:
    """Return the duration of each recording in seconds, or 0 if it cannot be read from the header.

    All processes must call this function.
    """
    parts = world.gather([duration(one) for one in recordings[world.rank :: world.size]])
    return [parts[index % world.size][index // world.size] for index in range(len(recordings))]
