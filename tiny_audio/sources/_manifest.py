"""Read JSON-lines manifests, for the sources ``manifest`` and ``synthetic``."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import audio_duration
from tiny_audio.config import UserError
from tiny_audio.runtime.files import FileNames
from tiny_audio.sources import AudioAddress, Dropped, Index, Source, Utterance
from tiny_audio.sources._shared import MAX_LINE, read_lines, shown

_MAX_BAD_LINES = 100
"""If a file begins with this many lines that are not JSON objects, the file is rejected."""

_EXPECTED = 'expected one JSON object per line, such as {"audio_filepath": "a.flac", "duration": 1.5, "text": "yes"}'


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a manifest's columns."""

    audio: str = "audio_filepath"
    duration: str = "duration"
    text: str = "text"


@dataclass(frozen=True, slots=True)
class ManifestSource(Source):
    """The utterances of one manifest."""

    path: Path
    columns: Columns

    def index(self) -> Index:
        """See :meth:`Source.index`."""
        return read_manifest(self.path, self.columns)

    def encoded(self, utterance: Utterance) -> Path:
        """Return the clip's file."""
        return utterance.audio_file()


class _BadRowError(Exception):
    """A row that cannot be used."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def read_manifest(path: Path, columns: Columns) -> Index:
    """Return the index of a manifest. Relative audio paths start from the manifest's folder.

    Raises:
        UserError: the manifest cannot be read or has no usable row.
    """
    utterances: list[Utterance] = []
    dropped: list[Dropped] = []
    ids: set[str] = set()
    files = FileNames()
    objects = 0
    for line_number, line in read_lines(path, f"the manifest {path}", _EXPECTED):
        where = f"{path.name}:{line_number}"
        try:
            row = _object(line)
            objects += 1
            utterance = _utterance(row, columns, path.parent, files)
        except _BadRowError as bad:
            dropped.append(Dropped(where, bad.reason, f"{path}, line {line_number}: {bad.detail}"))
            if objects == 0 and len(dropped) >= _MAX_BAD_LINES:
                raise UserError(
                    f"{path} is not a manifest: none of its first {len(dropped)} lines is a JSON object; {_EXPECTED}"
                ) from None
            continue
        if utterance.id in ids:
            utterance = _renamed(utterance, line_number, ids)
        ids.add(utterance.id)
        utterances.append(utterance)
    if not utterances and not dropped:
        raise UserError(f"the manifest {path} is empty; {_EXPECTED}")
    if not utterances:
        first = dropped[0]
        raise UserError(
            f"no row of the manifest {path} can be used ({len(dropped)} read); the first problem: {first.reason}, "
            f"{first.detail}; {_EXPECTED}"
        )
    return Index(tuple(utterances), tuple(dropped), fingerprint(utterances))


def fingerprint(utterances: Iterable[Utterance]) -> str:
    """Return the SHA-256 of ids, durations and transcripts.

    The hash depends on the order of the utterances, because the plan of an epoch refers to utterances by index.
    """
    digest = hashlib.sha256()
    for utterance in utterances:
        row = json.dumps([utterance.id, utterance.duration_s, utterance.text])
        digest.update(row.encode() + b"\n")
    return digest.hexdigest()


def _object(line: str) -> Mapping[str, object]:
    if len(line) >= MAX_LINE:
        raise _BadRowError("not_json", f"a line of {MAX_LINE:,} characters or more")
    try:
        line.encode()  # fails if the line has bytes that are not UTF-8
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadRowError(
            "not_json", f"not JSON ({error}): {shown(line.encode('utf-8', 'replace').decode())}"
        ) from error
    if not isinstance(row, dict):
        raise _BadRowError("not_an_object", f"not a JSON object: {shown(row)}")
    try:
        # All columns must be valid Unicode, because they are written to reports as UTF-8.
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _BadRowError("bad_unicode", f"contains an incomplete character: {error}") from error
    return row


def _utterance(row: Mapping[str, object], columns: Columns, folder: Path, files: FileNames) -> Utterance:
    text = row.get(columns.text)
    if columns.text not in row:
        raise _BadRowError("text_missing", f"no {columns.text!r}; the row has {', '.join(map(repr, row)) or 'nothing'}")
    if not isinstance(text, str):
        raise _BadRowError("text_missing", f"{columns.text!r} must be a string, not {shown(text)}")
    name = row.get(columns.audio)
    if not isinstance(name, str) or not name:
        raise _BadRowError("audio_missing", f"{columns.audio!r} must be the path of an audio file, not {shown(name)}")
    offset = row.get("offset")
    if offset:
        # With an offset, the text is the transcript of only a part of the file.
        raise _BadRowError(
            "offset", f"parts of files are not supported (offset {shown(offset)}): cut the audio into files"
        )
    wanted = folder / os.path.expanduser(name)
    try:
        audio = files.find(wanted)
    except OSError as error:
        raise UserError(f"the folder {wanted.parent} cannot be read: {error.strerror}; check the disk") from error
    if audio is None:
        raise _BadRowError("audio_missing", f"there is no file {wanted}")
    return Utterance(
        id=name,
        duration_s=_duration(row.get(columns.duration), columns.duration, audio),
        text=text.strip(),
        audio=AudioAddress(audio),
        metadata={
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in row.items()
            if value is not None and key not in {columns.audio, columns.duration, columns.text, "offset"}
        },
    )


def _duration(given: object, column: str, audio: Path) -> float:
    if given is None:
        try:
            return audio_duration(audio)
        except AudioError as error:
            raise _BadRowError(error.reason, str(error)) from error
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise _BadRowError("bad_duration", f"{column!r} must be seconds, not {shown(given)}")
    try:
        seconds = float(given)
    except OverflowError:
        seconds = math.inf
    if not (math.isfinite(seconds) and seconds > 0):
        raise _BadRowError("bad_duration", f"{column!r} must be a finite number of seconds above 0, not {shown(given)}")
    return seconds


def _renamed(utterance: Utterance, line_number: int, ids: set[str]) -> Utterance:
    """Return the utterance with the line number appended to its id, because an earlier line has the same file."""
    name = f"{utterance.id}:{line_number}"
    while name in ids:
        name += "'"
    return Utterance(name, utterance.duration_s, utterance.text, utterance.audio, utterance.metadata)
