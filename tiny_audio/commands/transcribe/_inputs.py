"""Read the inputs of ``tiny-audio transcribe`` (files, folders, standard input) as blocks of audio."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from tiny_audio.audio.errors import AudioError, FileError
from tiny_audio.audio.ffmpeg import HINT, ffmpeg_blocks, has_ffmpeg
from tiny_audio.audio.formats import is_audio_name
from tiny_audio.audio.load import audio_blocks, audio_duration, length_is_guessed, load_audio
from tiny_audio.config import UserError
from tiny_audio.runtime.files import files_below

STDIN = "-"


@dataclass(frozen=True)
class Recording:
    """One input."""

    path: Path
    """The file to read."""
    name: str
    """Its name in outputs and messages."""
    stem: str
    """Path of its output below ``--output-dir``, without the format's suffix."""


def recordings_of(inputs: Sequence[Path], stack: ExitStack) -> list[Recording]:
    """The recordings that the arguments name: files, the audio files in folders, and standard input."""
    found: list[Recording] = []
    for given in inputs:
        if str(given) == STDIN:
            if any(recording.name == STDIN for recording in found):
                raise UserError("- is given twice, and standard input can be read only once; remove one")
            found.append(Recording(_spooled(stack), STDIN, "stdin"))
        elif given.is_dir():
            names = files_below(given, is_audio_name)
            if not names:
                raise UserError(f"{given} and its subfolders contain no audio file; give a folder with audio files")
            found += (Recording(given / name, str(given / name), name) for name in names)
        else:
            found.append(Recording(given, str(given), given.name))
    # File names that are not valid text cannot be printed, so messages use a printable form. Paths keep the bytes.
    found = [replace(one, name=os.fsencode(one.name).decode("utf-8", "replace")) for one in found]
    # clip.mp4 becomes clip.srt. If two recordings would get the same name, both keep their suffixes.
    stems = [str(Path(one.stem).with_suffix("")) for one in found]
    times = Counter(stems)
    return [
        Recording(one.path, one.name, stem if times[stem] == 1 else one.stem)
        for one, stem in zip(found, stems, strict=True)
    ]


def _spooled(stack: ExitStack) -> Path:
    """Copy standard input to a file, because decoders need to seek."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiny-audio-")))
    path = folder / "stdin"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def decoded(path: Path, name: str, max_chunk_s: float) -> Iterator[Tensor]:
    """Decode a recording with libsndfile, or with FFmpeg if libsndfile cannot and FFmpeg is installed.

    Raises:
        AudioError: while the blocks are read.
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
    guessed = length_is_guessed(path)
    if guessed and has_ffmpeg():
        yield from ffmpeg_blocks(path, name)
        return
    try:
        if duration_s <= max_chunk_s:
            yield load_audio(path, max_duration_s=max_chunk_s, name=name)
        else:
            yield from audio_blocks(path, name=name)
    except AudioError as error:
        if not guessed:
            raise
        raise AudioError(error.reason, f"{error}; {HINT}") from error


def duration(recording: Recording) -> float:
    """Duration in seconds. 0 if the header does not state it."""
    try:
        return audio_duration(recording.path)
    except (AudioError, FileError):
        return 0.0
