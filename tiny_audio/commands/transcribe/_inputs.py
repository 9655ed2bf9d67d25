"""Read the inputs of ``tiny-audio transcribe``: files, folders and standard input."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from tiny_audio.audio.errors import AudioError, FileError
from tiny_audio.audio.formats import is_audio_name
from tiny_audio.audio.load import audio_duration
from tiny_audio.commands.transcribe._options import SUFFIXES
from tiny_audio.config import UserError
from tiny_audio.runtime.columns import on_one_line
from tiny_audio.runtime.files import FileNames, files_below

STDIN = "-"
_ADDRESS = re.compile("(?:https?|ftp|s3|gs|hf):/")
"""Matches the start of a web address. The pattern has only one slash, because ``Path`` shortens ``https://`` to
``https:/``."""
_NUM_SHOWN = 5
"""Maximum number of file names in a message about files that are not audio."""


@dataclass(frozen=True)
class Recording:
    """One recording to transcribe."""

    path: Path
    """The file to read."""
    name: str
    """Name of the recording in outputs and messages."""
    stem: str
    """Path of the transcript below ``--output-dir``, without the format's suffix."""
    is_stream: bool = False
    """Whether the recording comes from standard input or a pipe. A stream may have other content the next
    time that the command runs, so it is always transcribed again."""

    @property
    def title(self) -> str:
        """The name of the recording, on one line."""
        return on_one_line(self.name)


@dataclass(frozen=True)
class Inputs:
    """The recordings that were given as arguments, and messages about files that are left out."""

    recordings: list[Recording]
    left_out: list[str]
    """A message for each folder with files that are not audio."""


def read_inputs(inputs: Sequence[Path], stack: ExitStack, output_dir: Path | None = None) -> Inputs:
    """Find the recordings that were given: files, the audio files in folders, pipes, and standard input.

    Args:
        inputs: the paths that were given.
        stack: deletes the temporary files when it closes.
        output_dir: the folder of the transcripts, which may be below an input folder.

    Raises:
        UserError: standard input is closed or given twice, an argument is a web address, or a folder has no audio file.
    """
    found: list[Recording] = []
    left_out: list[str] = []
    names = FileNames()
    for index, argument in enumerate(inputs):
        given = argument if os.path.exists(argument) else names.on_disk(argument)
        if str(given) == STDIN:
            if any(recording.name == STDIN for recording in found):
                raise UserError("- is given twice, but standard input can be read only once; remove one")
            if sys.stdin is None:
                raise UserError("- is standard input, which is closed; give a file, or connect standard input")
            found.append(Recording(_spooled(sys.stdin.buffer, index, stack), STDIN, "stdin", is_stream=True))
        elif _ADDRESS.match(str(given)) and not os.path.exists(given):
            raise UserError(f"{given} is an address on the web; download the file and give its path")
        elif os.path.isdir(given):
            audio, others = _contents(given, output_dir)
            if not audio:
                raise UserError(
                    f"{given} and its subfolders contain no audio file{others}; give a folder with audio files"
                )
            found += (Recording(given / name, str(given / name), name) for name in audio)
            if others:
                left_out.append(f"{given}{others}")
        elif os.path.exists(given) and given.is_fifo():
            with given.open("rb") as pipe:
                found.append(Recording(_spooled(pipe, index, stack), str(given), given.name, is_stream=True))
        else:
            found.append(Recording(given, str(given), given.name))
    # If a file name is not valid UTF-8, ``name`` gets a printable form of it, and ``path`` keeps the original bytes.
    found = [replace(one, name=os.fsencode(one.name).decode("utf-8", "replace")) for one in found]
    # The transcript of clip.mp4 is clip.srt. If two transcripts would get the same name, both keep the suffix of their
    # recording, as in clip.mp4.srt.
    stems = [_without_suffix(one.stem) for one in found]
    # Ignore case and the Unicode normalization form of names, because some file systems ignore them, too.
    keys = [unicodedata.normalize("NFC", stem).casefold() for stem in stems]
    times = Counter(keys)
    recordings = [
        replace(one, stem=stem) if times[key] == 1 else one for one, stem, key in zip(found, stems, keys, strict=True)
    ]
    return Inputs(recordings, left_out)


def _without_suffix(name: str) -> str:
    path = Path(name)
    # The name `..wav` keeps its suffix, because its stem is a dot, which is the name of the current folder.
    return str(path.with_suffix("")) if path.stem.strip(".") else name


def _contents(folder: Path, output_dir: Path | None) -> tuple[list[str], str]:
    """Return the audio files below a folder, and a message about its other files ("" if there are none).

    The message leaves out the transcripts below ``output_dir``.
    """
    everything = files_below(folder, lambda name: True)
    audio = [name for name in everything if is_audio_name(name)]
    others = [
        on_one_line(name)
        for name in everything
        if not is_audio_name(name) and not _is_transcript(folder / name, output_dir)
    ]
    if not others:
        return audio, ""
    shown = ", ".join(others[:_NUM_SHOWN]) + (
        f" and {len(others) - _NUM_SHOWN} more" if len(others) > _NUM_SHOWN else ""
    )
    return audio, f": {len(others)} other files do not have the suffix of an audio file: {shown}"


def _is_transcript(path: Path, output_dir: Path | None) -> bool:
    if output_dir is None or path.suffix not in SUFFIXES.values():
        return False
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(output_dir))


def _spooled(stream: IO[bytes], index: int, stack: ExitStack) -> Path:
    """Copy a stream to a temporary file, because reading an audio file requires seeking."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiny-audio-")))
    path = folder / f"stream-{index}"
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file)
    return path


def duration(recording: Recording) -> float:
    """Return the duration in seconds, or 0 if it cannot be read from the header."""
    try:
        return audio_duration(recording.path, name=recording.title)
    except (AudioError, FileError):
        return 0.0
