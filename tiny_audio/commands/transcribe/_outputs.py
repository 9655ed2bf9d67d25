"""The output folder: the existing transcripts, and the model, options and recordings that produced them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_audio.commands.transcribe._formats import rendered
from tiny_audio.commands.transcribe._inputs import Recording
from tiny_audio.commands.transcribe._options import SUFFIXES, Options
from tiny_audio.config import UserError
from tiny_audio.inference.segments import Transcription
from tiny_audio.runtime.files import write_atomically

LOG = ".tiny-audio.jsonl"
"""Name of the file that records the model and options for each format, and the recording of each transcript. No format
uses its suffix."""
_MAX_NAME_BYTES = 255
"""Maximum length of a file name on most file systems."""


class OutputFolder:
    """The output folder, with one file per recording. Files are written atomically.

    Args:
        folder: the output folder. It is created when the first transcript is written.
        model: folder of the model.
        recordings: all recordings that will be written.

    Raises:
        UserError: two recordings would have the same file, or an existing file was written by another model or with
            other options.
    """

    def __init__(self, folder: Path, model: Path, recordings: Sequence[Recording], options: Options) -> None:
        self.folder, self._options = folder, options
        _check_distinct(recordings)
        weights = sorted([*model.glob("*.safetensors"), *model.glob("*.json")])
        files = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in weights}
        self._identity = {"model": files, "options": options.identity()}
        self._before, self._made = self._read_log()
        self._facts = {one.stem: _facts(one) for one in recordings}
        if not options.overwrite:
            self._check_identity(recordings)

    def is_done(self, recording: Recording) -> bool:
        """Whether the transcript exists and the recording has not changed since."""
        if self._options.overwrite or recording.is_stream:
            return False
        facts, path = self._facts[recording.stem], self._path(recording)
        return facts is not None and self._made.get(self._key(path)) == facts and path.exists()

    def begin(self) -> None:
        """Record the model and options before any transcript is written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._before != self._identity:
            self._log({"format": self._options.format, "identity": self._identity})

    def write(self, recording: Recording, transcription: Transcription) -> None:
        """Write the file of one recording.

        Raises:
            OSError: the file cannot be written.
        """
        path = self._path(recording)
        if path.exists() and path.samefile(recording.path):
            raise FileExistsError(errno.EEXIST, "the transcript would replace the recording", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, rendered(recording.name, transcription, self._options))
        self._log({"format": self._options.format, "file": self._key(path), "recording": self._facts[recording.stem]})

    def _path(self, recording: Recording) -> Path:
        path = self.folder / recording.stem
        return path.with_name(_fitting(path.name, SUFFIXES[self._options.format]))

    def _key(self, path: Path) -> str:
        return os.fsencode(path.relative_to(self.folder)).decode("utf-8", "backslashreplace")

    def _read_log(self) -> tuple[dict[str, Any] | None, dict[str, list[int]]]:
        """Return the identity of the model and options that produced the transcripts of this format.

        Also return, for each transcript, the size and modification time of its recording.
        """
        identity, made = None, dict[str, list[int]]()
        try:
            lines = (self.folder / LOG).read_bytes().splitlines()
        except OSError:
            return None, {}
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["format"] == self._options.format and "identity" in entry:
                    identity, made = entry["identity"], {}
                elif entry["format"] == self._options.format:
                    made[entry["file"]] = entry["recording"]
            except (ValueError, KeyError, TypeError):
                continue  # the process was killed while it wrote this line
        return identity, made

    def _log(self, entry: dict[str, Any]) -> None:
        with (self.folder / LOG).open("ab") as file:
            # Start a new line, because a killed process may have left an incomplete line.
            file.write(b"\n" + json.dumps(entry).encode())

    def _check_identity(self, recordings: Sequence[Recording]) -> None:
        if self._before == self._identity:
            return
        there = next((path for one in recordings if (path := self._path(one)).exists()), None)
        if there is None:
            return
        maker = "not by tiny-audio transcribe" if self._before is None else "by another model or with other options"
        raise UserError(f"{there} already exists and was written {maker}; give another --output-dir, or --overwrite")


def _facts(recording: Recording) -> list[int] | None:
    """Return the size and modification time of a recording. They differ if the recording was replaced."""
    try:
        status = recording.path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _fitting(stem: str, suffix: str) -> str:
    """Return a file name. If it would be too long, a hash of the stem replaces the end of the stem."""
    encoded = os.fsencode(stem)
    if len(encoded) + len(suffix) <= _MAX_NAME_BYTES:
        return stem + suffix
    ending = f"~{hashlib.sha256(encoded).hexdigest()[:8]}{suffix}"
    return encoded[: _MAX_NAME_BYTES - len(ending)].decode("utf-8", "ignore") + ending


def _check_distinct(recordings: Sequence[Recording]) -> None:
    taken: dict[str, str] = {}
    for one in recordings:
        if one.stem in taken:
            raise UserError(
                f"{taken[one.stem]} and {one.title} would have the same file in --output-dir; transcribe one at a time"
            )
        taken[one.stem] = one.title
