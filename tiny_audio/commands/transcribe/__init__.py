"""``tiny-audio transcribe``: transcribe audio files, folders and standard input to texts, tables and subtitles."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from tiny_audio.audio.errors import AudioError, FileError
from tiny_audio.audio.recording import recording_blocks
from tiny_audio.commands.transcribe._formats import TSV_HEAD, JsonArray, rendered, row
from tiny_audio.commands.transcribe._inputs import Recording, read_inputs
from tiny_audio.commands.transcribe._options import Options
from tiny_audio.commands.transcribe._outputs import OutputFolder
from tiny_audio.commands.transcribe._screen import Screen, line, progress
from tiny_audio.config import UserError
from tiny_audio.export.load import load_model, model_folder
from tiny_audio.inference.segments import Segment, Transcription
from tiny_audio.inference.transcriber import Transcriber
from tiny_audio.runtime.device import device_of
from tiny_audio.runtime.streams import stdout_is_closed

__all__ = ["Options", "Outcome", "transcribe", "transcribe_and_print"]


@dataclass
class Outcome:
    """The outcome of all recordings."""

    done: int = 0
    skipped: int = 0
    """Recordings whose output already existed."""
    truncated: list[str] = field(default_factory=list)
    """Recordings with a text that was truncated at ``max_new_tokens``."""
    empty: list[str] = field(default_factory=list)
    """A message with the reason for each recording without any text."""
    left_out: list[str] = field(default_factory=list)
    """A message for each folder with files that are not audio."""
    errors: list[str] = field(default_factory=list)
    """One message for each recording that could not be read, or whose transcript could not be written."""


def transcribe_and_print(model: Path, inputs: Sequence[Path], options: Options) -> None:
    """Transcribe to standard output or to files, and report what was skipped, truncated or unreadable.

    Raises:
        UserError: see :func:`transcribe`, or some recordings could not be read.
    """
    if options.output_dir is None and stdout_is_closed():
        raise UserError("standard output is closed, so the transcripts would be lost; open it, or add --output-dir")
    outcome = transcribe(model, inputs, options, lambda text: print(text, end="", flush=True))
    if options.output_dir is not None:
        already = f", {outcome.skipped} already there" if outcome.skipped else ""
        print(f"{outcome.done} written to {options.output_dir}{already}")
    for message in outcome.left_out:
        print(message, file=sys.stderr)
    for name in outcome.truncated:
        print(f"{name}: a text was truncated at max_new_tokens; words may be missing", file=sys.stderr)
    for why in outcome.empty:
        print(f"{why}; check the audio, or add --no-filters", file=sys.stderr)
    if outcome.errors:
        raise UserError("\n".join(outcome.errors))


def transcribe(model: Path, inputs: Sequence[Path], options: Options, write: Callable[[str], None]) -> Outcome:
    """Transcribe all recordings in order. If a recording cannot be read, the outcome has an error for it.

    Args:
        model: folder of a run or of an exported model.
        inputs: audio files, folders with audio files at any depth, pipes, or ``-`` for standard input.
        options: how to transcribe and write.
        write: receives the text for standard output in parts.

    Raises:
        UserError: the model cannot be loaded or does not support the options, or there is nothing to transcribe.
    """
    with ExitStack() as stack:
        found = read_inputs(inputs, stack)
        recordings = found.recordings
        if options.format in ("srt", "vtt") and options.output_dir is None and len(recordings) > 1:
            raise UserError(
                f"one .{options.format} file cannot contain {len(recordings)} recordings; add --output-dir to get a "
                "file for each"
            )
        outcome, output = Outcome(left_out=found.left_out), None
        if options.output_dir is not None:
            output = OutputFolder(options.output_dir, model_folder(model), recordings, options)
        waiting = [one for one in recordings if output is None or not output.is_done(one)]
        outcome.skipped = len(recordings) - len(waiting)
        if waiting:
            loaded, tokenizer = load_model(model)
            if output is not None:
                output.begin()
            transcriber = Transcriber(
                loaded.to(device_of("auto")), tokenizer, filter_hallucinations=options.filter_hallucinations
            )
            _Job(transcriber, waiting, options, output, write, outcome).run(stack)
    return outcome


class _Job:
    """Passes all recordings through one transcriber."""

    def __init__(
        self,
        transcriber: Transcriber,
        recordings: Sequence[Recording],
        options: Options,
        output: OutputFolder | None,
        write: Callable[[str], None],
        outcome: Outcome,
    ) -> None:
        self._transcriber, self._recordings, self._options = transcriber, recordings, options
        self._output = output
        self._write, self._outcome = write, outcome
        self._errors: dict[int, str] = {}
        self._rows = JsonArray(write)

    def run(self, stack: ExitStack) -> None:
        options = self._options
        to_stdout = self._output is None
        live = to_stdout and options.format == "text" and sys.stdout.isatty()
        screen = stack.enter_context(Screen(self._recordings)) if live else None
        report = screen.batch_done if screen else progress(stack, self._recordings)
        timed = options.words or (options.format in ("srt", "vtt") and self._transcriber.can_time_words)
        if to_stdout and options.format == "tsv":
            self._write(TSV_HEAD)
        if to_stdout and options.format == "json":
            stack.callback(self._rows.close)  # also closes the array after an interruption
        blocks = (self._blocks(index) for index in range(len(self._recordings)))
        events = self._transcriber.stream(
            blocks, word_timestamps=timed, on_progress=report, on_text=screen.text if screen else None
        )
        for index, event in events:
            recording = self._recordings[index]
            if isinstance(event, Segment):
                if screen and event.text:
                    self._write(line(recording, event.start_s, event.text) + "\n")
                continue
            error = self._errors.get(index)
            if self._output is not None and error is None:
                try:
                    self._output.write(recording, event)
                except OSError as problem:
                    error = (
                        f"{recording.title}: its transcript cannot be written: {problem.strerror}: {problem.filename}"
                    )
            elif to_stdout:
                self._print(recording, event, error, live)
            if error is not None:
                self._outcome.errors.append(error)
                continue
            self._outcome.done += 1
            if event.truncated:
                self._outcome.truncated.append(recording.title)
            if event.why_empty is not None:
                self._outcome.empty.append(f"{recording.title}: no text: {event.why_empty}")

    def _blocks(self, index: int) -> Iterator[Tensor]:
        """Decode a recording as far as possible, and store the error if there is one."""
        recording = self._recordings[index]
        try:
            yield from recording_blocks(
                recording.path, recording.title, track=self._options.track, channel=self._options.channel
            )
        except (AudioError, FileError) as error:
            self._errors[index] = str(error)

    def _print(self, recording: Recording, transcription: Transcription, error: str | None, live: bool) -> None:
        """Write a recording to standard output, unless its segments were already written."""
        options = self._options
        if options.format == "json":
            self._rows.add(row(recording.name, transcription, error))
        elif error is None and not live:
            if options.format == "text":
                self._write(f"{recording.title}\t{' '.join(transcription.text.split())}\n")
            else:
                self._write(rendered(recording.name, transcription, options).removeprefix(TSV_HEAD))
