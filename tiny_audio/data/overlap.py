"""Find overlaps of evaluation sets and training data: the same clip, recording, speaker, text or sound.

This module reads only the indexes of the sources. :mod:`tiny_audio.data.sound_overlap` compares the audio. Clips are
compared by the address of their audio, and speakers and recordings by name. Transcripts are compared without regard to
case and spacing. If a speaker has two different names, the overlap is not found. Two speakers with the same name count
as one.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from tiny_audio.analysis.warnings import By, Comparison, Overlap
from tiny_audio.data.clips import Clip, Clips
from tiny_audio.sources import AudioAddress, HubFile, Origin, origins_of, runs, texts_of

COLUMNS: Mapping[By, Sequence[str]] = {
    "recording": ("recording", "recording_id", "audio_id", "chapter_id", "session", "session_id", "video_id"),
    "speaker": ("speaker", "speaker_id", "spk_id", "client_id"),
}
"""Metadata columns that name a recording or a speaker, in the sources of this package and in common manifests."""
_NUM_EXAMPLES = 3
_EXCLUSIVE: tuple[By, ...] = ("clip", "sound", "recording", "speaker")
"""Kinds of overlap in order of priority. A clip is counted only under the first of these kinds that applies. Kinds that
exclude clips from the score are tried first. The kind ``text`` is counted in addition, but not for clips that are
excluded, or that are counted under ``clip`` or ``sound``."""


@dataclass(frozen=True)
class Shared:
    """Overlaps of an evaluation set with the training data."""

    comparison: Comparison
    excluded: frozenset[int]
    """The indices of the clips to leave out of the score."""


@dataclass
class _Found:
    """Values, such as a speaker's name or a clip's address, that training data and evaluation sets have in common."""

    wanted: dict[By, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Values that occur in the evaluation sets."""
    training_sets: dict[tuple[By, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """For each shared value, the training sets that have it."""
    known: set[By] = field(default_factory=set)
    """Kinds of values that occur in the training clips."""


def find_overlaps(
    training: Clips,
    evaluation: Mapping[str, Sequence[Clip]],
    sounds: Mapping[str, Mapping[int, str]] | None = None,
    why_no_sounds: str | None = None,
    excluded: Collection[By] = (),
) -> dict[str, Shared]:
    """Return the overlaps of each evaluation set with the training clips.

    Only the values of the evaluation sets are kept in memory.

    Args:
        sounds: for each evaluation set, the clips that sound like a training clip. The index of each such clip is
            mapped to the name of the training set. None if sound was not compared.
        why_no_sounds: the reason why sound was not compared. If None, reports do not state a reason.
        excluded: kinds of overlap, such as ``speaker``. Clips with such an overlap are excluded from the score.
    """
    found = _Found()
    keys = {name: [keys for _, keys in _keys(clips)] for name, clips in evaluation.items()}
    for name, rows in keys.items():
        for index, training_set in (sounds or {}).get(name, {}).items():
            rows[index]["sound"] = f"{name} {index}"
            found.training_sets["sound", rows[index]["sound"]].add(training_set)
        for row in rows:
            for by, value in row.items():
                found.wanted[by].add(value)
    for name, row in _keys(training):
        found.known.update(row)
        for by, value in row.items():
            if value in found.wanted[by]:
                found.training_sets[by, value].add(name)
    if sounds is not None:
        found.known.add("sound")
    return {name: _shared(evaluation[name], rows, found, why_no_sounds, excluded) for name, rows in keys.items()}


def _shared(
    clips: Sequence[Clip],
    rows: Sequence[Mapping[By, str]],
    found: _Found,
    why_no_sounds: str | None,
    excluded: Collection[By],
) -> Shared:
    order = sorted(_EXCLUSIVE, key=lambda by: by not in excluded)
    counted: dict[By, list[int]] = {by: [] for by in (*_EXCLUSIVE, "text")}
    present: set[By] = {"sound"}
    for index, row in enumerate(rows):
        present.update(row)
        by = next((by for by in order if by in row and (by, row[by]) in found.training_sets), None)
        if by is not None:
            counted[by].append(index)
        if by not in ("clip", "sound", *excluded) and ("text", row.get("text")) in found.training_sets:
            counted["text"].append(index)
    overlaps = tuple(
        replace(_overlap(by, clips, rows, indices, found), excluded=by in excluded)
        for by, indices in counted.items()
        if indices
    )
    compared = tuple(by for by in counted if by in present & found.known)
    left_out = frozenset(index for by in excluded for index in counted[by])
    return Shared(Comparison(overlaps, compared, why_no_sounds), left_out)


def _overlap(
    by: By, clips: Sequence[Clip], rows: Sequence[Mapping[By, str]], indices: Sequence[int], found: _Found
) -> Overlap:
    values = dict.fromkeys(rows[index][by] for index in indices)
    names = list(values) if by in COLUMNS else [clips[index].id for index in indices[:_NUM_EXAMPLES]]
    sets = sorted(set().union(*(found.training_sets[by, value] for value in values)))
    return Overlap(by, len(indices), len(clips), tuple(sets), tuple(names[:_NUM_EXAMPLES]))


def _keys(clips: Sequence[Clip]) -> Iterator[tuple[str, dict[By, str]]]:
    """Yield the name of the set and the values to compare for every clip."""
    if not isinstance(clips, Clips):
        for clip in clips:
            utterance = clip.utterance
            yield clip.id.partition("/")[0], _keys_of(Origin(utterance.audio, utterance.metadata), utterance.text)
        return
    # Read only the needed columns.
    for run in runs(clips.members):
        name, _, utterances = clips.sets[clips.members[run.start]]
        rows: np.ndarray = clips.rows[run]
        for origin, text in zip(origins_of(utterances, rows), texts_of(utterances, rows), strict=True):
            yield name, _keys_of(origin, text)


def _keys_of(origin: Origin, text: str) -> dict[By, str]:
    words = " ".join(text.casefold().split())
    keys: dict[By, str] = {"text": words} if words else {}  # the empty text of clips without speech is no overlap
    if origin.audio is not None:
        keys["clip"] = _place(origin.audio)
    for by, columns in COLUMNS.items():
        value = next((origin.metadata[column] for column in columns if origin.metadata.get(column)), None)
        if value is not None:
            keys[by] = value
    return keys


def _place(audio: AudioAddress) -> str:
    """Return an address as text. Symbolic links in the folder's path are resolved. A hub commit is left out."""
    if isinstance(audio.file, HubFile):
        return f"{audio.file.repo}/{audio.file.path}#{audio.cell}"
    return f"{_real(audio.file.parent)}/{audio.file.name}#{audio.cell}"


@lru_cache(maxsize=4096)
def _real(folder: Path) -> str:
    return os.path.realpath(folder)
