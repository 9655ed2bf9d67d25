"""The output folder of ``tiny-audio transcribe``: the transcripts, and a log of their recordings, model and options."""

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
from tiny_audio.runtime.columns import on_one_line
from tiny_audio.runtime.files import write_atomically

_LOG, _LOGS = ".tiny-audio.jsonl", ".tiny-audio*.jsonl"
"""Name of the main process's log, and a pattern for the logs of all processes. For each format, a log stores the model
and the options. Before a transcript is written, the path of its recording is added to the log. After it is written, the
recording's size and modification time are added. Older versions did not store the path. Each process has its own log,
because lines can be lost if several machines append to one file."""
_STREAM = "-"
"""Stands for the path of any pipe and of standard input."""
_MAX_NAME_BYTES = 255
"""Maximum length of a file name on most file systems."""


class OutputFolder:
    """The output folder, with one file per recording. Files are written atomically.

    Args:
        folder: the output folder. It is created before the first transcript is written.
        model: folder of the model.
        recordings: all recordings whose transcripts belong in the folder.
        rank: rank of this process among the processes that write to the folder.

    Raises:
        UserError: two recordings would have the same transcript file. Or, without ``options.overwrite``, a transcript
            file was written by another program, from another recording, with another model or with other options.
    """

    def __init__(
        self, folder: Path, model: Path, recordings: Sequence[Recording], options: Options, rank: int = 0
    ) -> None:
        self.folder, self._options = folder, options
        self._own_log = folder / (f".tiny-audio.{rank}.jsonl" if rank else _LOG)
        _check_distinct(recordings)
        weights = sorted([*model.glob("*.safetensors"), *model.glob("*.json")])
        files = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in weights}
        self._identity = {"model": files, "options": options.identity()}
        logs = {path: self._read_log(path) for path in folder.glob(_LOGS)}
        self._identities = {path: identity for path, (identity, _, _) in logs.items() if identity is not None}
        """For each log, the model and options with which the transcripts in ``options.format`` were made."""
        self._made: dict[str, list[int]] = {}
        """For each transcript that was made with the current model and options, the size and modification time of its
        recording."""
        self._sources: dict[str, set[str | None]] = {}
        """For each transcript, the paths of its recording in the logs. None stands for a log that states no path."""
        for identity, made, sources in logs.values():
            self._made |= made if identity == self._identity else {}
            for file, source in sources.items():
                self._sources.setdefault(file, set()).add(source)
        self._facts = {one.stem: _facts(one) for one in recordings}
        if not options.overwrite:
            self._check_existing(recordings)

    def is_done(self, recording: Recording) -> bool:
        """Return whether the transcript exists, and the recording has not changed since it was transcribed."""
        if self._options.overwrite or recording.is_stream:
            return False
        facts, path = self._facts[recording.stem], self._path(recording)
        return facts is not None and self._made.get(self._key(path)) == facts and path.exists()

    def begin(self) -> None:
        """Record the model and options before any transcript is written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in {self._own_log, *self._identities}:
            if self._identities.get(path) != self._identity:
                self._log({"format": self._options.format, "identity": self._identity}, path)

    def write(self, recording: Recording, transcription: Transcription) -> None:
        """Write the transcript of one recording.

        Raises:
            OSError: the file cannot be written.
        """
        path = self._path(recording)
        if path.exists() and path.samefile(recording.path):
            raise FileExistsError(errno.EEXIST, "the transcript would replace the recording", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"format": self._options.format, "file": self._key(path)}
        self._log(entry | {"path": _source(recording)}, self._own_log)
        write_atomically(path, rendered(recording.name, transcription, self._options))
        self._log(entry | {"recording": self._facts[recording.stem]}, self._own_log)

    def _path(self, recording: Recording) -> Path:
        path = self.folder / recording.stem
        return path.with_name(_fitting(path.name, SUFFIXES[self._options.format]))

    def _key(self, path: Path) -> str:
        return os.fsencode(path.relative_to(self.folder)).decode("utf-8", "backslashreplace")

    def _read_log(self, path: Path) -> tuple[dict[str, Any] | None, dict[str, list[int]], dict[str, str | None]]:
        """Return a log's entries for ``options.format``.

        Returns:
            three values:

            - the last model and options
            - for each transcript made with them, the size and modification time of its recording
            - for each transcript, the path of its recording. None if the log does not state the path.
        """
        identity, made, sources = None, dict[str, list[int]](), dict[str, str | None]()
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                if entry["format"] != self._options.format:
                    continue
                if "path" in entry:
                    sources[entry["file"]] = entry["path"]
                elif "identity" not in entry:
                    made[entry["file"]] = entry["recording"]
                    sources.setdefault(entry["file"], None)
                elif entry["identity"] != identity:  # several processes may record the same identity
                    identity, made = entry["identity"], {}
            except (ValueError, KeyError, TypeError):
                continue  # the process was killed while it wrote this line
        return identity, made, sources

    def _log(self, entry: dict[str, Any], path: Path) -> None:
        with path.open("ab") as file:
            # Start a new line first, because a killed process may have left an incomplete line.
            file.write(b"\n" + json.dumps(entry).encode())

    def _check_existing(self, recordings: Sequence[Recording]) -> None:
        identities = self._identities.values()
        for one in recordings:
            path = self._path(one)
            if not path.exists():
                continue
            sources = self._sources.get(self._key(path))
            if sources is None or not identities:
                origin = "not written by tiny-audio transcribe"
            elif any(identity != self._identity for identity in identities):
                origin = "written by another model or with other options"
            # If a recording was only moved, its size and modification time are unchanged, so `is_done` returns True.
            elif sources.isdisjoint((None, _source(one))) and not self.is_done(one):
                origin = f"made from another recording, {on_one_line(' or '.join(map(str, sources)))}"
            else:
                continue
            raise UserError(f"{path} already exists and was {origin}; give another --output-dir, or add --overwrite")


def _source(recording: Recording) -> str:
    path = _STREAM if recording.is_stream else os.path.abspath(recording.path)
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _facts(recording: Recording) -> list[int] | None:
    """Return the size and modification time of a recording, or None if they cannot be read."""
    try:
        status = recording.path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _fitting(stem: str, suffix: str) -> str:
    """Return a file name. If it would be too long, a hash replaces the end of the stem."""
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
                f"{taken[one.stem]} and {one.title} would have the same transcript file; give each its own --output-dir"
            )
        taken[one.stem] = one.title
