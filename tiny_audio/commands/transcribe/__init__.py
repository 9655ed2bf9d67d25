"""``tiny-audio transcribe``: transcribe audio files, folders and standard input to text, tables or subtitles.

If a launcher started several processes, each process transcribes a share of the recordings, and writes the files of
its share. The main process writes standard output, progress and the summary.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tiny_audio.commands._processes import joined_for_inference
from tiny_audio.commands.transcribe._inputs import STDIN, Inputs, Recording, read_inputs
from tiny_audio.commands.transcribe._job import Job, Result
from tiny_audio.commands.transcribe._options import Options
from tiny_audio.commands.transcribe._outputs import OutputFolder
from tiny_audio.config import UserError
from tiny_audio.export.load import model_folder
from tiny_audio.runtime.streams import stdout_is_closed
from tiny_audio.runtime.world import World

__all__ = ["Options", "Outcome", "transcribe", "transcribe_and_print"]


@dataclass
class Outcome:
    """The results for all recordings of a command."""

    done: int = 0
    """Number of recordings that were transcribed."""
    skipped: int = 0
    """Number of recordings whose output already existed."""
    truncated: list[str] = field(default_factory=list)
    """Recordings whose text was truncated at ``max_new_tokens``."""
    empty: list[str] = field(default_factory=list)
    """For each recording without any text, a message with the reason."""
    suppressed: list[str] = field(default_factory=list)
    """For each recording that has parts without text, a message with the durations of these parts by reason."""
    unusual: list[str] = field(default_factory=list)
    """For each recording that is far shorter than the training clips of the model, a warning."""
    left_out: list[str] = field(default_factory=list)
    """A message for each folder with files that are not audio."""
    errors: list[str] = field(default_factory=list)
    """One message for each recording that could not be read, or whose transcript could not be written."""

    def add(self, recording: Recording, result: Result) -> None:
        """Add the result of one recording."""
        if result.error is not None:
            self.errors.append(result.error)
            return
        self.done += 1
        if result.truncated:
            self.truncated.append(recording.title)
        if result.warning is not None:
            self.unusual.append(f"{recording.title}: {result.warning}")
        if result.why_empty is not None:
            self.empty.append(f"{recording.title}: no text: {result.why_empty}")
        if result.suppressed is not None:
            self.suppressed.append(f"{recording.title}: parts without text: {result.suppressed}")


def transcribe_and_print(model: Path, inputs: Sequence[Path], options: Options) -> None:
    """Transcribe to standard output or to files, and report what was skipped, truncated or unreadable.

    Raises:
        UserError: see :func:`transcribe`. Recordings that cannot be read and transcripts that cannot be written are
            reported after all other recordings are transcribed.
    """
    with joined_for_inference() as world:
        outcome = transcribe(model, inputs, options, lambda text: print(text, end="", flush=True), world)
        if world.is_main:
            _print_summary(outcome, options)
        if outcome.errors:
            raise world.printed_by_main(UserError("\n".join(outcome.errors)))


def _print_summary(outcome: Outcome, options: Options) -> None:
    if options.output_dir is not None:
        already = f", {outcome.skipped} already there" if outcome.skipped else ""
        print(f"{outcome.done} written to {options.output_dir}{already}")
    for message in outcome.left_out:
        print(message, file=sys.stderr)
    for name in outcome.truncated:
        print(f"{name}: a text was truncated at max_new_tokens; words may be missing", file=sys.stderr)
    for warning in outcome.unusual:
        print(warning, file=sys.stderr)
    hint = "; check the audio, or add --no-filters" if options.filter_hallucinations else "; check the audio"
    for why in (*outcome.empty, *outcome.suppressed):
        print(why + hint, file=sys.stderr)


def transcribe(
    model: Path,
    inputs: Sequence[Path],
    options: Options,
    write: Callable[[str], None],
    world: World = World(),  # noqa: B008  # frozen
) -> Outcome:
    """Transcribe all recordings. If a recording cannot be read, the outcome has an error for it.

    Args:
        model: folder of a run or of an exported model.
        inputs: audio files, folders with audio files at any depth, pipes, or ``-`` for standard input.
        write: receives the text for standard output in parts, in the order of the recordings. It is called only in the
            main process.
        world: the processes that share the recordings. Every process must call this function.

    Raises:
        UserError: the model cannot be loaded or does not support the options, or there is nothing to transcribe.
    """
    with ExitStack() as stack:
        found = world.broadcast_from_main(lambda: _find(model, inputs, options, world, stack))
        recordings, folder, output = found.recordings, options.output_dir, None
        done, results = set[int](), dict[int, Result]()
        if folder is not None:
            output = world.collective(
                lambda: OutputFolder(folder, model_folder(model), recordings, options, world.rank)
            )
            # Ask all processes, because without a shared disk, each machine has different files in this folder.
            own = {index for index, one in enumerate(recordings) if output.is_done(one)}
            done = set.union(*world.gather(own))
        waiting = [index for index in range(len(recordings)) if index not in done]
        if waiting:
            job = Job(recordings, waiting, options, output, write, world)
            world.collective(lambda: job.run(model, stack), job.receive)
            results = {index: one for part in world.gather(job.results) for index, one in part.items()}
    outcome = Outcome(skipped=len(done), left_out=found.left_out)
    for index in sorted(results):
        outcome.add(recordings[index], results[index])
    return outcome


def _find(model: Path, inputs: Sequence[Path], options: Options, world: World, stack: ExitStack) -> Inputs:
    """Check the model's folder and the options, and find the recordings."""
    model_folder(model)
    if options.output_dir is None and stdout_is_closed():
        raise UserError("standard output is closed, so the transcripts would be lost; open it, or add --output-dir")
    streams = [str(one) for one in inputs if world.size > 1 and (str(one) == STDIN or one.is_fifo())]
    if streams:
        raise UserError(
            f"{streams[0]} is a stream, which {world.size} processes cannot share; save it as a file, or start without "
            "torchrun"
        )
    found = read_inputs(inputs, stack, options.output_dir)
    if options.format in ("srt", "vtt") and options.output_dir is None and len(found.recordings) > 1:
        raise UserError(
            f"one .{options.format} file cannot contain {len(found.recordings)} recordings; add --output-dir to get a "
            "file for each"
        )
    return found
