"""The work of ``tiny-audio transcribe``: audio files, folders and standard input -> texts, tables and subtitles."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from tiny_audio.audio import AudioError, FileError, audio_blocks, audio_duration, is_audio_name, load_audio
from tiny_audio.config import UserError
from tiny_audio.device import device_of
from tiny_audio.export import load_model
from tiny_audio.ffmpeg import HINT, ffmpeg_blocks, has_ffmpeg
from tiny_audio.files import files_below, write_atomically
from tiny_audio.recogniser import Recogniser, Segment, Transcription
from tiny_audio.subtitles import as_srt, as_vtt, cues

Format = Literal["text", "json", "srt", "vtt", "tsv"]
_SUFFIXES: dict[str, str] = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "tsv": ".tsv"}
STDIN = "-"


@dataclass(frozen=True)
class Options:
    """How to write what is heard."""

    format: str = "text"
    output_dir: Path | None = None
    """A file there for each recording; None writes to standard output."""
    words: bool = False
    """Time each word: in JSON beside the segments, elsewhere a row or cue for each."""
    guard: bool = True
    """See :class:`tiny_audio.recogniser.Recogniser`."""
    overwrite: bool = False
    """Transcribe again what has its output in ``output_dir`` already."""

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise UserError(f"--format {self.format!r} is unknown; choose one of {', '.join(get_args(Format))}")
        if self.words and self.format == "text":
            raise UserError("--words has no place in plain text; add --format json, srt, vtt or tsv")
        if self.overwrite and self.output_dir is None:
            raise UserError("--overwrite has no effect without --output-dir; remove it")


@dataclass(frozen=True)
class _Recording:
    path: Path
    """Where its bytes are."""
    name: str
    """What it is called."""
    stem: str
    """Of its output below the folder for outputs."""


@dataclass
class Outcome:
    """What became of all recordings."""

    done: int = 0
    skipped: int = 0
    """Had their output already."""
    errors: list[str] = field(default_factory=list)
    """One message for each that could not be read."""


def transcribe(model: Path, inputs: Sequence[Path], options: Options, write: Callable[[str], None]) -> Outcome:
    """Write what is said in all recordings, in their order; what cannot be read is an error of its own.

    Args:
        model: an exported model's folder, or a run's.
        inputs: audio files, folders with some at any depth, ``-`` for standard input.
        options: how.
        write: takes what goes to standard output, a piece at a time.

    Raises:
        UserError: the model cannot be loaded or cannot do what is asked, or there is nothing to transcribe.
    """
    with ExitStack() as stack:
        recordings = _recordings(inputs, stack)
        if options.format in ("srt", "vtt") and options.output_dir is None and len(recordings) > 1:
            raise UserError(
                f"{len(recordings)} recordings do not fit into one .{options.format}; add --output-dir, and each gets "
                "its own"
            )
        outcome = Outcome()
        waiting = [one for one in recordings if options.overwrite or not _is_done(one, options)]
        outcome.skipped = len(recordings) - len(waiting)
        if waiting:
            loaded, tokenizer = load_model(model)
            recogniser = Recogniser(loaded.to(device_of("auto")), tokenizer, guard=options.guard)
            _Job(recogniser, waiting, options, write, outcome).run(stack)
        elif options.format == "json" and options.output_dir is None:
            write("[]\n")
    return outcome


class _Job:
    """All recordings through one recogniser."""

    def __init__(
        self,
        recogniser: Recogniser,
        recordings: Sequence[_Recording],
        options: Options,
        write: Callable[[str], None],
        outcome: Outcome,
    ) -> None:
        self._recogniser, self._recordings, self._options = recogniser, recordings, options
        self._write, self._outcome = write, outcome
        self._errors: dict[int, str] = {}
        self._rows: list[dict[str, Any]] = []

    def run(self, stack: ExitStack) -> None:
        options = self._options
        to_stdout = options.output_dir is None
        live = to_stdout and options.format == "text" and sys.stdout.isatty()
        screen = stack.enter_context(_Screen(self._recordings)) if live else None
        report = screen.batch_done if screen else _progress(stack, self._recordings)
        timed = options.words or (options.format in ("srt", "vtt") and self._recogniser.times_words)
        if to_stdout and options.format == "tsv":
            self._write(_TSV_HEAD)
        blocks = (self._blocks(number) for number in range(len(self._recordings)))
        events = self._recogniser.stream(
            blocks, word_timestamps=timed, on_progress=report, on_text=screen.text if screen else None
        )
        for number, event in events:
            recording = self._recordings[number]
            if isinstance(event, Segment):
                if screen and event.text:
                    self._write(_line(recording, event.start_s, event.text) + "\n")
                continue
            error = self._errors.get(number)
            if error is not None:
                self._outcome.errors.append(error)
            else:
                self._outcome.done += 1
            self._finish(recording, event, error, live)
        if to_stdout and options.format == "json":
            self._write(json.dumps(self._rows, indent=1, ensure_ascii=False) + "\n")

    def _blocks(self, number: int) -> Iterator[Tensor]:
        """What can be decoded; then, maybe, an error to remember."""
        recording = self._recordings[number]
        try:
            yield from decoded(recording.path, recording.name, self._recogniser.whole_s)
        except (AudioError, FileError) as error:
            self._errors[number] = str(error)

    def _finish(self, recording: _Recording, heard: Transcription, error: str | None, live: bool) -> None:
        options = self._options
        if options.output_dir is not None:
            if error is None:
                path = _output(recording, options)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, rendered(recording.name, heard, options))
        elif options.format == "json":
            self._rows.append(_row(recording.name, heard, error))
        elif error is None and not live:
            if options.format == "text":
                self._write(f"{recording.name}\t{heard.text}\n")
            else:
                self._write(rendered(recording.name, heard, options).removeprefix(_TSV_HEAD))


class _Screen:
    """What a terminal shows while a batch is decoded, and no longer: its earliest piece, as the text grows."""

    def __init__(self, recordings: Sequence[_Recording]) -> None:
        self._recordings = recordings
        self._earliest: tuple[int, float] | None = None
        self._live: Any = None

    def __enter__(self) -> _Screen:
        return self

    def __exit__(self, *error: object) -> None:
        self.batch_done(0.0)

    def text(self, number: int, start_s: float, text: str) -> None:
        """A piece's text up to now."""
        if not text or (self._earliest is not None and (number, start_s) > self._earliest):
            return
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._earliest = number, start_s
        if self._live is None:
            self._live = Live(console=Console(), transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(Text(_line(self._recordings[number], start_s, text)), refresh=True)

    def batch_done(self, seconds: float) -> None:
        """What is certain is written now."""
        if self._live is not None:
            self._live.stop()
        self._live = self._earliest = None


def decoded(path: Path, name: str, whole_s: float) -> Iterator[Tensor]:
    """A recording's blocks: by libsndfile, else by FFmpeg where it is installed.

    Raises:
        AudioError: while they are taken.
    """
    try:
        duration_s = audio_duration(path, name=name)
    except AudioError as error:
        if error.reason != "undecodable":
            raise
        if not has_ffmpeg():
            raise AudioError(error.reason, f"{error}; {HINT}") from error
        try:
            yield from ffmpeg_blocks(path, name)
        except AudioError as other:
            if other.reason != "undecodable":
                raise
            raise AudioError("undecodable", f"{error}; {str(other).removeprefix(f'{name}: ')}") from other
        return
    if duration_s <= whole_s:
        yield load_audio(path, max_duration_s=whole_s, name=name)
    else:
        yield from audio_blocks(path, name=name)


def rendered(name: str, heard: Transcription, options: Options) -> str:
    """The content of one recording's output file."""
    match options.format:
        case "json":
            return json.dumps(_row(name, heard, None), indent=1, ensure_ascii=False) + "\n"
        case "srt":
            return as_srt(cues(heard.segments, each_word=options.words))
        case "vtt":
            return as_vtt(cues(heard.segments, each_word=options.words))
        case "tsv":
            return _TSV_HEAD + "".join(_tsv_lines(name, heard, options.words))
        case _:
            return "".join(f"{segment.text}\n" for segment in heard.segments if segment.text)


_TSV_HEAD = "audio_filepath\tstart_s\tend_s\ttext\n"


def _tsv_lines(name: str, heard: Transcription, words: bool) -> Iterator[str]:
    plain = " ".join(name.split("\t"))
    for segment in heard.segments:
        for part in segment.words or () if words else [segment] if segment.text else []:
            yield f"{plain}\t{part.start_s:.3f}\t{part.end_s:.3f}\t{' '.join(part.text.split())}\n"


def _row(name: str, heard: Transcription, error: str | None) -> dict[str, Any]:
    if error is not None:
        nothing = dict.fromkeys(("duration", "text", "ctc_text", "truncated"))
        return {"audio_filepath": name, **nothing, "error": error, "segments": None}
    return {
        "audio_filepath": name,
        "duration": heard.duration_s,
        "text": heard.text,
        "ctc_text": heard.ctc_text,
        "truncated": heard.truncated,
        "error": None,
        "segments": [_rounded(asdict(segment)) for segment in heard.segments],
    }


def _rounded(value: Any) -> Any:
    """Times and probabilities to four digits."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list | tuple) else value


def _line(recording: _Recording, start_s: float, text: str) -> str:
    return f"{recording.name}\t{_clock(start_s)}\t{text}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{seconds % 60:04.1f}"


def _recordings(inputs: Sequence[Path], stack: ExitStack) -> list[_Recording]:
    """Files as given, folders as the audio files in them, standard input as a file of its own."""
    found: list[_Recording] = []
    for given in inputs:
        if str(given) == STDIN:
            if any(recording.name == STDIN for recording in found):
                raise UserError("- was given twice, and standard input can be read once; remove one")
            found.append(_Recording(_spooled(stack), STDIN, "stdin"))
        elif given.is_dir():
            names = files_below(given, is_audio_name)
            if not names:
                raise UserError(f"no audio file lies in {given}; give a folder with some, at any depth")
            found += (_Recording(given / name, str(given / name), name) for name in names)
        else:
            found.append(_Recording(given, str(given), given.name))
    # clip.mp4 and clip.srt belong together; only where two would get the same name, both keep their suffixes.
    stems = [str(Path(one.stem).with_suffix("")) for one in found]
    named = [
        _Recording(one.path, one.name, stem if stems.count(stem) == 1 else one.stem)
        for one, stem in zip(found, stems, strict=True)
    ]
    taken: dict[str, str] = {}
    for one in named:
        if one.stem in taken:
            raise UserError(f"{taken[one.stem]} and {one.name} would have the same output; transcribe one at a time")
        taken[one.stem] = one.name
    return named


def _spooled(stack: ExitStack) -> Path:
    """Standard input on the disk: decoders go back and forth in a file."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiny-audio-")))
    path = folder / "stdin"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def _output(recording: _Recording, options: Options) -> Path:
    assert options.output_dir is not None
    return options.output_dir / f"{recording.stem}{_SUFFIXES[options.format]}"


def _is_done(recording: _Recording, options: Options) -> bool:
    """Whether an output is there, which appears only when it is whole, and is younger than the recording."""
    if options.output_dir is None or recording.name == STDIN:
        return False
    output = _output(recording, options)
    try:
        return output.stat().st_mtime >= recording.path.stat().st_mtime
    except OSError:
        return False


def _progress(stack: ExitStack, recordings: Sequence[_Recording]) -> Callable[[float], None] | None:
    """A bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("transcribing"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    bar = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
    seconds = [_duration(recording) for recording in recordings]
    task = bar.add_task("", total=sum(seconds) if all(seconds) else None)
    return lambda done: bar.advance(task, done)


def _duration(recording: _Recording) -> float:
    """0 where the header does not tell."""
    try:
        return audio_duration(recording.path)
    except (AudioError, FileError):
        return 0.0
