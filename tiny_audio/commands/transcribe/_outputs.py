"""A folder of transcripts: what is in it already, and whose it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_audio.commands.transcribe._formats import rendered
from tiny_audio.commands.transcribe._inputs import STDIN, Recording
from tiny_audio.commands.transcribe._options import SUFFIXES, Options
from tiny_audio.config import UserError
from tiny_audio.inference.transcriber import Transcription
from tiny_audio.runtime.files import write_atomically

IDENTITY = "transcribe.json"
"""Says, for each format, what the transcripts beside it were made with."""


class OutputFolder:
    """A file for each recording, which appears only when it is whole.

    Args:
        folder: made where it is missing, once there is something to write.
        model: the folder of the model, whose transcripts these are.
        recordings: all that are to be written.

    Raises:
        UserError: two recordings would have the same file, or there are files of somebody else's in their places.
    """

    def __init__(self, folder: Path, model: Path, recordings: Sequence[Recording], options: Options) -> None:
        self.folder, self._options = folder, options
        _check_distinct(recordings)
        weights = sorted([*model.glob("*.safetensors"), *model.glob("*.json")])
        files = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in weights}
        self._identity = {"model": files, "words": options.words, "guards": options.guard}
        if not options.overwrite:
            self._check_mine(recordings)

    def is_done(self, recording: Recording) -> bool:
        """Whether its file is there, and is younger than the recording."""
        if self._options.overwrite or recording.name == STDIN:
            return False
        try:
            return self._path(recording).stat().st_mtime >= recording.path.stat().st_mtime
        except OSError:
            return False

    def begin(self) -> None:
        """Say whose the files are, before there are any."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = self._known() | {self._options.format: self._identity}
        write_atomically(self.folder / IDENTITY, json.dumps(known, indent=1) + "\n")

    def write(self, recording: Recording, heard: Transcription) -> None:
        """One file."""
        path = self._path(recording)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, rendered(recording.name, heard, self._options))

    def _path(self, recording: Recording) -> Path:
        return self.folder / f"{recording.stem}{SUFFIXES[self._options.format]}"

    def _known(self) -> dict[str, Any]:
        try:
            known = json.loads((self.folder / IDENTITY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _check_mine(self, recordings: Sequence[Recording]) -> None:
        before = self._known().get(self._options.format)
        if before == self._identity:
            return
        there = next((path for one in recordings if (path := self._path(one)).exists()), None)
        if there is None:
            return
        whose = "is not of tiny-audio transcribe" if before is None else "is of another model, or of other options"
        raise UserError(f"{there} is there already, and {whose}; give another --output-dir, or --overwrite")


def _check_distinct(recordings: Sequence[Recording]) -> None:
    taken: dict[str, str] = {}
    for one in recordings:
        if one.stem in taken:
            raise UserError(
                f"{taken[one.stem]} and {one.name} would have the same file in --output-dir; transcribe one at a time"
            )
        taken[one.stem] = one.name
