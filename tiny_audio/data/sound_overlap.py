"""Find evaluation clips that sound like training clips, by their audio fingerprints.

A fingerprint consists of landmarks, which are pairs of spectral peaks (see :mod:`tiny_audio.audio.fingerprint`). The
sorted landmarks of the evaluation clips stay in memory (1.5 kB per second of audio). Training clips are compared one by
one, so memory does not grow with the training data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.fingerprint import Landmarks, landmarks
from tiny_audio.data.clips import Clip

_MIN_SHARED, _CHANCE, _MIN_SHARE = 8, 4, 0.05
"""Thresholds for copies. The offset of a shared landmark is the difference between its times in the two clips. Two
clips are copies if they share enough landmarks at the same offset, with a tolerance of one hop. Enough means at least
``_MIN_SHARED``, and at least ``_CHANCE + _MIN_SHARE * n``. Here, n is the smaller of the two clips' landmark counts.
``benchmarks/overlap.py`` measures this rule on AN4 and LibriSpeech."""
_LONGEST_S = 86_400.0
"""Maximum duration of a clip to compare: a day."""
_OFFSETS = 1 << 24
"""Upper bound on the number of different offsets. Offsets can be negative, so this is more than twice the number of
16 ms hops in the longest clip."""


class SoundIndex:
    """The fingerprints of evaluation clips."""

    def __init__(self, fingerprints: Sequence[Landmarks]) -> None:
        self._sizes = np.array([len(each) for each in fingerprints], dtype=np.int64)
        hashes = np.concatenate([np.empty(0, np.uint32), *(each.hashes for each in fingerprints)])
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._frames = np.concatenate([np.empty(0, np.int32), *(each.frames for each in fingerprints)])[order]
        self._clips = np.repeat(np.arange(len(fingerprints), dtype=np.int32), self._sizes)[order]

    def copies(self, found: Landmarks) -> list[int]:
        """Return the indices of the evaluation clips that contain audio of a clip with these landmarks."""
        starts = np.searchsorted(self._hashes, found.hashes, "left")
        counts = np.searchsorted(self._hashes, found.hashes, "right") - starts
        if not counts.any():
            return []
        # Rows of the index with the same hash as landmark i of ``found``: starts[i] to starts[i] + counts[i] - 1.
        ends = np.cumsum(counts)
        rows = np.repeat(starts - ends + counts, counts) + np.arange(ends[-1])
        offsets = self._frames[rows].astype(np.int64) - np.repeat(found.frames, counts) + _OFFSETS // 2
        keys, shared = np.unique(self._clips[rows].astype(np.int64) * _OFFSETS + offsets, return_counts=True)
        # The true offset is rarely a whole number of hops, so the counts of two adjacent offsets are added.
        shared[:-1] += np.where(np.diff(keys) == 1, shared[1:], 0)
        clips = keys // _OFFSETS
        enough = np.maximum(_MIN_SHARED, _CHANCE + _MIN_SHARE * np.minimum(self._sizes[clips], len(found)))
        copies: list[int] = np.unique(clips[shared >= enough]).tolist()
        return copies


class EvaluationSounds:
    """The audio fingerprints of evaluation sets. The clips are decoded once, before the first comparison."""

    def __init__(self, sets: Mapping[str, Sequence[Clip]]) -> None:
        self.sets = sets

    @cached_property
    def _index(self) -> SoundIndex:
        return SoundIndex([found for clips in self.sets.values() for _, found in _fingerprints(clips)])

    def copies_of(self, training: Sequence[Clip]) -> dict[str, dict[int, str]]:
        """Return the evaluation clips that sound like training clips.

        Clips that cannot be decoded are skipped, as in training and scoring. Clips with fewer than eight landmarks,
        such as many clips of 0.1 s, are never found to be copies.

        Returns:
            for each evaluation set, index of the clip in the set -> name of the training set.
        """
        places = [(name, row) for name, clips in self.sets.items() for row in range(len(clips))]
        copies: dict[str, dict[int, str]] = {name: {} for name in self.sets}
        for training_set, found in _fingerprints(training):
            for copy in self._index.copies(found):
                name, row = places[copy]
                copies[name].setdefault(row, training_set)
        return copies


def _fingerprints(clips: Sequence[Clip]) -> Iterator[tuple[str, Landmarks]]:
    """Yield the name of the set and the landmarks of every clip. A clip that cannot be decoded has no landmarks."""
    for clip in clips:
        name = clip.id.partition("/")[0]
        try:
            yield name, landmarks(clip.load(_LONGEST_S))
        except AudioError:
            yield name, Landmarks(np.empty(0, np.uint32), np.empty(0, np.int32))
