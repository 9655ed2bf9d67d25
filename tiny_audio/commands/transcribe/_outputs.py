"""The output folder: the existing transcripts, and the model and options that produced them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_audio.commands.transcribe._formats import rendered
from tiny_audio.commands.transcribe._inputs import STDIN, Recording
from tiny_audio.commands.transcribe._options import SUFFIXES, Options
from tiny_audio.config import UserError
from tiny_audio.inference.segments import Transcription
from tiny_audio.runtime.files import write_atomically

IDENTITY = "transcribe.json"
"""A file that records the model and options of the transcripts in its folder, for each format."""


class OutputFolder:
    """A file for each recording, written atomically.

    Args:
        folder: the output folder. It is created when the first transcript is written.
        model: folder of the model.
        recordings: all recordings that will be written.

    Raises:
        UserError: two recordings would have the same file, or a file exists that another model or other options
            produced.
    """

    def __init__(self, folder: Path, model: Path, recordings: Sequence[Recording], options: Options) -> None:
        self.folder, self._options = folder, options
        _check_distinct(recordings)
        weights = sorted([*model.glob("*.safetensors"), *model.glob("*.json")])
        files = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in weights}
        self._identity = {"model": files, "words": options.words, "guards": options.filter_hallucinations}
        if not options.overwrite:
            self._check_identity(recordings)

    def is_done(self, recording: Recording) -> bool:
        """Whether its file exists and is newer than the recording."""
        if self._options.overwrite or recording.name == STDIN:
            return False
        try:
            return self._path(recording).stat().st_mtime >= recording.path.stat().st_mtime
        except OSError:
            return False

    def begin(self) -> None:
        """Record the model and options before any transcript is written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = self._known() | {self._options.format: self._identity}
        write_atomically(self.folder / IDENTITY, json.dumps(known, indent=1) + "\n")

    def write(self, recording: Recording, transcription: Transcription) -> None:
        """Write the file of one recording."""
        path = self._path(recording)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, rendered(recording.name, transcription, self._options))

    def _path(self, recording: Recording) -> Path:
        return self.folder / f"{recording.stem}{SUFFIXES[self._options.format]}"

    def _known(self) -> dict[str, Any]:
        try:
            known = json.loads((self.folder / IDENTITY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _check_identity(self, recordings: Sequence[Recording]) -> None:
        before = self._known().get(self._options.format)
        if before == self._identity:
            return
        there = next((path for one in recordings if (path := self._path(one)).exists()), None)
        if there is None:
            return
        maker = "not by tiny-audio transcribe" if before is None else "by another model or with other options"
        raise UserError(f"{there} already exists and was written {maker}; give another --output-dir, or --overwrite")


def _check_distinct(recordings: Sequence[Recording]) -> None:
    taken: dict[str, str] = {}
    for one in recordings:
        if one.stem in taken:
            raise UserError(
                f"{taken[one.stem]} and {one.name} would have the same file in --output-dir; transcribe one at a time"
            )
        taken[one.stem] = one.name
