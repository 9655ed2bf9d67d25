"""Find clips, recordings and speakers that evaluation sets share with the training data.

Only the indexes are read, not the audio. Columns are compared by their values. A speaker with two names is not found,
and two speakers with the same name count as one.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from tiny_audio.analysis.warnings import Overlap
from tiny_audio.data.clips import Clips
from tiny_audio.sources import AudioAddress, HubFile, Origin, origins_of, runs

By = Literal["clip", "recording", "speaker"]
COLUMNS: Mapping[By, Sequence[str]] = {
    "recording": ("recording", "recording_id", "audio_id", "chapter_id", "session", "session_id", "video_id"),
    "speaker": ("speaker", "speaker_id", "spk_id", "client_id"),
}
"""Metadata columns that name a recording or a speaker, in the sources of this package and in common manifests."""
_NUM_EXAMPLES = 3


@dataclass
class _Found:
    """Values that the training data has in common with evaluation sets."""

    wanted: dict[By, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Values of the evaluation sets."""
    training_sets: dict[tuple[By, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """For each shared value, the training sets that have it."""


def find_overlaps(training: Clips, evaluation: Mapping[str, Clips]) -> dict[str, list[Overlap]]:
    """Find the overlaps of each evaluation set with the training clips. Sets without overlaps are omitted.

    Each index is read once. Only the columns of the evaluation sets are in memory.
    """
    found = _Found()
    keys = {name: [keys for _, keys in _keys(clips)] for name, clips in evaluation.items()}
    for rows in keys.values():
        for row in rows:
            for by, value in row.items():
                found.wanted[by].add(value)
    for name, row in _keys(training):
        for by, value in row.items():
            if value in found.wanted[by]:
                found.training_sets[by, value].add(name)
    return {name: list(_overlaps(evaluation[name], rows, found)) for name, rows in keys.items()}


def _overlaps(clips: Clips, rows: Sequence[Mapping[By, str]], found: _Found) -> Iterator[Overlap]:
    shared: dict[By, list[int]] = {"clip": [], "recording": [], "speaker": []}
    for index, row in enumerate(rows):
        by = next((by for by in shared if by in row and (by, row[by]) in found.training_sets), None)
        if by is not None:
            shared[by].append(index)
    for by, indices in shared.items():
        if not indices:
            continue
        values = dict.fromkeys(rows[index][by] for index in indices)
        names = [clips[index].id for index in indices[:_NUM_EXAMPLES]] if by == "clip" else list(values)
        sets = sorted(set().union(*(found.training_sets[by, value] for value in values)))
        yield Overlap(by, len(indices), len(clips), tuple(sets), tuple(names[:_NUM_EXAMPLES]))


def _keys(clips: Clips) -> Iterator[tuple[str, dict[By, str]]]:
    """Name of the set and comparable values of every clip."""
    for run in runs(clips.members):
        name, _, utterances = clips.sets[clips.members[run.start]]
        rows: np.ndarray = clips.rows[run]
        for origin in origins_of(utterances, rows):
            yield name, _keys_of(origin)


def _keys_of(origin: Origin) -> dict[By, str]:
    keys: dict[By, str] = {}
    if origin.audio is not None:
        keys["clip"] = _place(origin.audio)
    for by, columns in COLUMNS.items():
        value = next((origin.metadata[column] for column in columns if origin.metadata.get(column)), None)
        if value is not None:
            keys[by] = value
    return keys


def _place(audio: AudioAddress) -> str:
    """The address without what may vary: other paths to the same folder, and the commit on the hub."""
    if isinstance(audio.file, HubFile):
        return f"{audio.file.repo}/{audio.file.path}#{audio.cell}"
    return f"{_real(audio.file.parent)}/{audio.file.name}#{audio.cell}"


@lru_cache(maxsize=4096)
def _real(folder: Path) -> str:
    return os.path.realpath(folder)
