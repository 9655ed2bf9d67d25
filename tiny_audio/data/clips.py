"""The clips of sources. They are filtered by duration and transcript, stored as columns, and loaded one by one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import overload

import numpy as np
from torch import Tensor

from tiny_audio.audio.errors import AudioError
from tiny_audio.audio.load import MIN_DURATION_S, load_audio
from tiny_audio.config import UserError
from tiny_audio.data.augmentation import AugmentationConfig, clip_seed
from tiny_audio.data.order import BatchingConfig, EpochPlan, plan_epoch
from tiny_audio.data.text import TargetText, TargetTextChoice
from tiny_audio.frames import SAMPLE_RATE
from tiny_audio.sources import Dropped, Source, Utterance, ids_of, origins_of, runs, texts_of

BOUNDS = ("too_short", "too_long")
"""Values of ``Dropped.reason`` for clips that are too short or too long. The limits of training clips are
``data.min_duration_s`` and ``data.max_duration_s``."""

_EMPTY = "its transcript is empty; to train on clips in which nobody speaks, set data.keep_empty"


@dataclass(frozen=True, slots=True)
class Clip:
    """An utterance, and the source that reads its audio."""

    source: Source
    utterance: Utterance
    id: str
    """Name of the data set and id of the utterance, as ``set/utterance``. Unique in a recipe."""

    def load(self, max_duration_s: float) -> Tensor:
        """Return the decoded waveform ``[S]``.

        Raises:
            AudioError: the clip is unusable, or its duration is very different from the duration in the index.
        """
        utterance = self.utterance
        audio = self.source.encoded(utterance)
        try:
            waveform = load_audio(audio, max_duration_s=max_duration_s, name=utterance.id)
        except AudioError as error:
            if error.reason == "too_long" or (error.reason == "too_short" and utterance.duration_s >= MIN_DURATION_S):
                # The clip was selected because its duration in the index is within the bounds, so the index is wrong.
                indexed = f"the index lists {utterance.duration_s:.2f} s; correct the index"
                raise AudioError("duration_differs", f"{error}; {indexed}") from error
            raise
        duration_s = len(waveform) / SAMPLE_RATE
        if abs(duration_s - utterance.duration_s) > max(0.5, 0.1 * utterance.duration_s):
            raise AudioError(
                "duration_differs",
                f"{utterance.id} lasts {duration_s:.2f} s, but the index lists {utterance.duration_s:.2f} s; "
                "correct the index, because it determines the batches",
            )
        return waveform


@dataclass(frozen=True, eq=False)
class Clips(Sequence[Clip]):
    """n clips of one or more sources, stored as columns. A :class:`Clip` is created when it is accessed."""

    sets: tuple[tuple[str, Source, Sequence[Utterance]], ...]
    """Name, source and all utterances of each data set."""
    members: np.ndarray
    """``[n]`` int32: for each clip, the index of its set in ``sets``."""
    rows: np.ndarray
    """``[n]`` int64: for each clip, the index of its utterance in the set."""
    durations_s: np.ndarray
    """``[n]`` float64: duration of each clip."""
    groups: np.ndarray | None
    """``[n]`` int64: group of each clip. Clips of one group, such as a row group of a parquet file, are fetched
    together. If None, each clip is fetched alone."""
    weights: np.ndarray | None
    """``[n]`` float64: average number of occurrences of each clip in an epoch. If None, each clip occurs once."""
    target_text: TargetText
    """Rewrites the transcripts of the clips."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> Clips: ...
    def __getitem__(self, index: int | slice) -> Clip | Clips:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        name, source, utterances = self.sets[self.members[index]]
        utterance = utterances[int(self.rows[index])]
        if not self.target_text.changes_nothing:
            utterance = replace(utterance, text=self.target_text(utterance.text))
        return Clip(source, utterance, f"{name}/{utterance.id}")

    def text_before(self, index: int, column: str) -> str:
        """Return the target text of the utterance that precedes a clip in its set.

        The text is empty if the clip's utterance is the first of its set. It is also empty if the two utterances have
        different values, or no value, in the metadata column ``column``, such as ``chapter``.
        """
        row, (_, _, utterances) = int(self.rows[index]), self.sets[self.members[index]]
        if row == 0:
            return ""
        own, before = utterances[row], utterances[row - 1]
        value = own.metadata.get(column)
        return self.target_text(before.text) if value is not None and before.metadata.get(column) == value else ""

    def metadata(self) -> Iterator[Mapping[str, str]]:
        """Yield the metadata of each clip, without reading the transcripts."""
        for run in runs(self.members):
            _, _, utterances = self.sets[self.members[run.start]]
            yield from (origin.metadata for origin in origins_of(utterances, self.rows[run]))

    def take(self, chosen: np.ndarray) -> Clips:
        """Return the clips with the indices ``chosen`` (``[m]``), in this order."""
        groups = None if self.groups is None else self.groups[chosen]
        weights = None if self.weights is None else self.weights[chosen]
        return replace(
            self,
            members=self.members[chosen],
            rows=self.rows[chosen],
            durations_s=self.durations_s[chosen],
            groups=groups,
            weights=weights,
        )

    def plan(
        self,
        config: BatchingConfig,
        seed: int,
        epoch: int,
        augmentation: AugmentationConfig | None = None,
        max_duration_s: float = math.inf,
    ) -> EpochPlan:
        """Plan an epoch; see :func:`tiny_audio.data.order.plan_epoch`.

        Args:
            augmentation: if given, batches are planned with the durations after this augmentation.
            max_duration_s: the augmentation ``silence`` does not make a clip longer than this.
        """
        augmented_s = None
        if augmentation is not None and augmentation.changes_durations:
            augmented_s = partial(self._augmented_s, augmentation, max_duration_s, seed, epoch)
        return plan_epoch(
            self.durations_s,
            config,
            seed,
            epoch,
            groups=self.groups,
            weights=self.weights,
            augmented_s=augmented_s,
        )

    def _augmented_s(
        self,
        augmentation: AugmentationConfig,
        max_duration_s: float,
        seed: int,
        epoch: int,
        clips: np.ndarray,
        repeats: np.ndarray,
    ) -> np.ndarray:
        """Return durations after augmentation; see :data:`tiny_audio.data.order.AugmentedDurations`."""
        occurrences = zip(self.durations_s[clips].tolist(), self._ids(clips), repeats.tolist(), strict=True)
        augmented = (
            augmentation.duration_s(duration_s, clip_seed(seed, epoch, clip_id, repeat), max_duration_s)
            for duration_s, clip_id, repeat in occurrences
        )
        return np.fromiter(augmented, np.float64, len(clips))

    def _ids(self, chosen: np.ndarray) -> Iterator[str]:
        """Yield :attr:`Clip.id` of the clips with the indices ``chosen`` (``[m]``), without reading transcripts."""
        members, rows = self.members[chosen], self.rows[chosen]
        for run in runs(members):
            name, _, utterances = self.sets[members[run.start]]
            yield from (f"{name}/{own}" for own in ids_of(utterances, rows[run]))


@dataclass(frozen=True)
class ClipSet:
    """The usable clips of several sources, the dropped clips, and a hash of all sources."""

    clips: Clips
    dropped: tuple[Dropped, ...]
    fingerprint: str
    max_duration_s: float
    """Maximum duration of a clip, which is checked again when the clip is loaded."""

    def fingerprint_with(self, columns: Sequence[str]) -> str:
        """Return a hash of all sources, and of the usable clips' values in the metadata columns ``columns``."""
        if not columns:
            return self.fingerprint
        digest = hashlib.sha256(self.fingerprint.encode())
        for metadata in self.clips.metadata():
            digest.update(json.dumps([metadata.get(column) for column in columns]).encode() + b"\n")
        return digest.hexdigest()

    @classmethod
    def gather(
        cls,
        sources: Mapping[str, Source],
        min_duration_s: float,
        max_duration_s: float,
        text: TargetTextChoice = "none",
        *,
        keep_empty: bool = False,
    ) -> ClipSet:
        """Select the usable clips of all sources. No audio is decoded.

        Args:
            sources: the sources, by the name of the set.
            min_duration_s, max_duration_s: the duration bounds, both inclusive.
            text: how transcripts are rewritten. If rewriting makes a transcript empty, the clip is kept here, but
                :class:`TargetEncoder` may reject it later.
            keep_empty: whether to keep clips with an empty transcript, in which nobody speaks.
        """
        dropped, digest = [], hashlib.sha256()
        sets, rows, durations, groups, weights = [], [], [], [], []
        for name, source in sources.items():
            index = source.index()
            digest.update(f"{name}={index.fingerprint};".encode())
            dropped += [Dropped(f"{name}/{drop.id}", drop.reason, drop.detail) for drop in index.dropped]
            every = index.durations_s
            if every is None:
                every = np.array([utterance.duration_s for utterance in index.utterances], dtype=np.float64)
            inside = (min_duration_s <= every) & (every <= max_duration_s)
            for row in np.flatnonzero(~inside).tolist():
                dropped.append(_out_of_bounds(name, index.utterances[row], min_duration_s, max_duration_s))
            if not keep_empty:
                empty = inside & index.without_text()
                for row in np.flatnonzero(empty).tolist():
                    dropped.append(Dropped(f"{name}/{index.utterances[row].id}", "text_missing", _EMPTY))
                inside &= ~empty
            kept = np.flatnonzero(inside)
            sets.append((name, source, index.utterances))
            rows.append(kept)
            durations.append(every[kept])
            groups.append(None if index.groups is None else index.groups[kept])
            weights.append(None if index.weights is None else index.weights[kept])
        clips = Clips(
            tuple(sets),
            np.repeat(np.arange(len(sets), dtype=np.int32), [len(kept) for kept in rows]),
            np.concatenate(rows),
            np.concatenate(durations),
            _joined_groups(groups, rows),
            _joined_weights(weights, rows),
            TargetText.of(text),
        )
        return cls(clips, tuple(dropped), digest.hexdigest(), max_duration_s)

    def check_any(self, place: str) -> None:
        """Check that there is a usable clip.

        Args:
            place: field of the recipe, such as ``data.train``.

        Raises:
            UserError: there is no usable clip. The message has the number of dropped clips and the first reason.
        """
        if self.clips:
            return
        why = f"; {len(self.dropped)} dropped, the first: {self.dropped[0].detail}" if self.dropped else ""
        raise UserError(
            f"{place} has no usable clip{why}; check the data, and data.min_duration_s and data.max_duration_s"
        )

    @property
    def num_inside(self) -> int:
        """Number of usable clips, plus the number of clips that were dropped for a reason other than their duration."""
        return len(self.clips) + sum(drop.reason not in BOUNDS for drop in self.dropped)

    @property
    def texts(self) -> Iterator[str]:
        """All transcripts, rewritten by ``target_text``."""
        clips = self.clips
        for run in runs(clips.members):
            utterances = clips.sets[clips.members[run.start]][2]
            yield from map(clips.target_text, texts_of(utterances, clips.rows[run]))

    @property
    def duration_s(self) -> float:
        """Total duration of the clips in seconds."""
        return float(self.clips.durations_s.sum())


def _out_of_bounds(name: str, utterance: Utterance, min_duration_s: float, max_duration_s: float) -> Dropped:
    reason = "too_short" if utterance.duration_s < min_duration_s else "too_long"
    bounds = f"{min_duration_s:g} to {max_duration_s:g} s"
    detail = f"lasts {utterance.duration_s:.2f} s; {bounds} are allowed"
    return Dropped(f"{name}/{utterance.id}", reason, detail)


def _joined_groups(groups: Sequence[np.ndarray | None], rows: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the groups of the clips of all sets, or None if no set has groups.

    The groups are renumbered, so that clips of different sets are in different groups. In a set without groups, each
    clip becomes a group.
    """
    if all(group is None for group in groups):
        return None
    joined, first = [], 0
    for group, kept in zip(groups, rows, strict=True):
        own = np.arange(len(kept)) if group is None else group
        joined.append(own + first)
        first += int(own.max(initial=-1)) + 1
    return np.concatenate(joined)


def _joined_weights(weights: Sequence[np.ndarray | None], rows: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the weights of the clips of all sets, or None if no set has weights."""
    if all(weight is None for weight in weights):
        return None
    return np.concatenate(
        [np.ones(len(kept)) if weight is None else weight for weight, kept in zip(weights, rows, strict=True)]
    )
