"""Source ``mix``: several sources as one, with weights and caps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self, overload

import numpy as np
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

from tiny_audio.config import Config, UserError
from tiny_audio.sources import (
    SOURCES,
    ColumnarUtterances,
    Dropped,
    Index,
    Origin,
    Source,
    SourceConfig,
    SourceContext,
    Utterance,
    ids_of,
    origins_of,
    runs,
    texts_of,
)

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class MixedConfig(Config):
    """A source in a mix."""

    # Build pydantic's schema only when it is first needed. By then, all sources are registered, including this one.
    model_config = ConfigDict(defer_build=True)

    source: Annotated[SourceConfig, SOURCES]
    """Any source, with its own fields."""
    weight: PositiveFloat = 1.0
    """Average number of times that each clip of the source occurs in an epoch of training. 2 means twice per epoch, and
    0.5 means once in two epochs. If the source has weights itself, they are multiplied by this weight."""
    max_hours: PositiveFloat | None = None
    """Maximum number of hours to use from the source."""
    max_clips: PositiveInt | None = None
    """Maximum number of clips to use from the source."""


class MixConfig(SourceConfig):
    """Several sources as one, each with a weight and an optional cap.

    A cap (`max_hours` or `max_clips`) keeps a random part of a source. The part is the same in every epoch and on every
    machine. A larger cap keeps everything that a smaller cap keeps. If clips are stored in row groups, as on the hub, a
    cap keeps whole row groups, except for a part of the last one. The other row groups need not be fetched. A cap also
    counts clips that `data.min_duration_s` and `data.max_duration_s` exclude later. Dropped clips are listed in
    proportion: if a cap keeps a tenth of a source's clips, about a tenth of the source's dropped clips are listed. The
    ids of a source's clips begin with the key of the source in `sources`. If the clips have no metadata column
    `source`, the key is also stored in a new column of this name.
    """

    model_config = ConfigDict(defer_build=True)

    name: Literal["mix"] = "mix"
    sources: dict[_Name, MixedConfig] = Field(min_length=1)
    """Sources by keys of your choice, such as
    `{read: {source: {name: librispeech}, weight: 2}, wild: {source: {name: gigaspeech}, max_hours: 500}}`."""
    seed: NonNegativeInt = 0
    """Seed for the random part of a source that a cap keeps."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests. The tests write `manifest.jsonl` and `clips.parquet` to the current folder."""
        read = SOURCES.parse({"name": "manifest", "path": "manifest.jsonl"})
        wild = SOURCES.parse({"name": "parquet", "path": "clips.parquet"})
        mixed = {"read": MixedConfig(source=read), "wild": MixedConfig(source=wild, weight=0.5, max_clips=2)}
        return cls(sources=mixed)


@dataclass(frozen=True, slots=True)
class Mixed:
    """A source in a mix, built from its ``config``."""

    name: str
    source: Source
    config: MixedConfig

    def rows(self, index: Index, durations_s: np.ndarray, seed: int) -> np.ndarray:
        """Return the sorted indices ``[k]`` of the clips that the caps keep.

        The clips are shuffled, and the caps keep the clips at the start of the shuffled list. If the clips have groups
        (``Index.groups``), the clips of a group are neighbors in this list.

        Raises:
            UserError: the source has no clips, or ``max_hours`` is less than the duration of the first clip in the
                list.
        """
        if len(durations_s) == 0:
            raise UserError(f"source {self.name!r} of the mix has no clips; remove it from the mix, or give it clips")
        order, max_hours, max_clips = np.arange(len(durations_s)), self.config.max_hours, self.config.max_clips
        if max_hours is None and max_clips is None:
            return order
        digest = hashlib.sha256(self.name.encode()).digest()
        rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
        if index.groups is None:
            drawn = rng.permutation(len(order))
        else:
            _, groups = np.unique(index.groups, return_inverse=True)
            drawn = np.lexsort((rng.permutation(len(order)), rng.permutation(groups.max() + 1)[groups]))
        count = len(drawn)
        if max_hours is not None:
            # Round to microseconds, because sums of floats are inexact.
            seconds = np.round(np.cumsum(durations_s[drawn]), 6)
            count = int(np.searchsorted(seconds, max_hours * 3600, side="right"))
        if max_clips is not None:
            count = min(count, max_clips)
        if count == 0:
            raise UserError(
                f"max_hours {max_hours:g} of {self.name!r} is less than the duration of the first clip drawn "
                f"({durations_s[drawn[0]]:.1f} s); increase max_hours"
            )
        return np.sort(drawn[:count])


@dataclass(frozen=True, slots=True)
class MixSource(Source):
    """The clips of several sources, one source after another."""

    mixed: tuple[Mixed, ...]
    seed: int

    def index(self) -> Index:
        """See :meth:`Source.index`."""
        parts: list[_Part] = []
        durations, groups, weights, empty = [], [], [], []
        dropped: list[Dropped] = []
        digest = hashlib.sha256()
        num_groups = 0
        grouped = False
        for mixed in self.mixed:
            index = mixed.source.index()
            seconds = _durations(index)
            rows = mixed.rows(index, seconds, self.seed)
            parts.append(_Part(mixed.name, index.utterances, rows))
            dropped += _dropped(mixed.name, index.dropped, len(rows) / len(seconds), self.seed)
            durations.append(seconds[rows])
            grouped = grouped or index.groups is not None
            own = np.arange(len(seconds)) if index.groups is None else np.asarray(index.groups, np.int64)
            groups.append(num_groups + own[rows])
            num_groups += int(own.max()) + 1
            own_weights = np.ones(len(seconds)) if index.weights is None else index.weights
            weights.append(mixed.config.weight * own_weights[rows])
            empty.append(index.without_text()[rows])
            settings = (mixed.config.weight, mixed.config.max_hours, mixed.config.max_clips)
            digest.update(json.dumps([mixed.name, index.fingerprint, *settings, self.seed]).encode())
        return Index(
            utterances=_Utterances(parts),
            dropped=tuple(dropped),
            fingerprint=digest.hexdigest(),
            durations_s=np.concatenate(durations),
            groups=np.concatenate(groups) if grouped else None,
            weights=np.concatenate(weights),
            empty=np.concatenate(empty),
        )

    def encoded(self, utterance: Utterance) -> Path | bytes:
        """See :meth:`Source.encoded`."""
        name, id_ = utterance.id.split("/", 1)
        source = next(mixed.source for mixed in self.mixed if mixed.name == name)
        return source.encoded(replace(utterance, id=id_))


@dataclass(frozen=True)
class _Part:
    """The clips that the mix uses from one source."""

    name: str
    utterances: Sequence[Utterance]
    """All utterances of the source."""
    rows: np.ndarray
    """Indices of the utterances that the caps keep."""

    def __getitem__(self, index: int) -> Utterance:
        utterance = self.utterances[int(self.rows[index])]
        return replace(
            utterance,
            id=f"{self.name}/{utterance.id}",
            metadata={"source": self.name, **utterance.metadata},
        )


class _Utterances(ColumnarUtterances):
    """The utterances of all parts, created on access."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part.rows) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> Utterance: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Utterance]: ...

    def __getitem__(self, index: int | slice) -> Utterance | Sequence[Utterance]:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        row = range(len(self))[index]
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self._parts[part][row - int(self._ends[part])]  # this index is negative: it counts from the part's end

    def __iter__(self) -> Iterator[Utterance]:
        return (part[row] for part in self._parts for row in range(len(part.rows)))

    def texts(self, rows: np.ndarray) -> Iterator[str]:
        """See :meth:`ColumnarUtterances.texts`."""
        for part, own in self._by_part(rows):
            yield from texts_of(part.utterances, own)

    def ids(self, rows: np.ndarray) -> Iterator[str]:
        """See :meth:`ColumnarUtterances.ids`."""
        for part, own in self._by_part(rows):
            yield from (f"{part.name}/{utterance_id}" for utterance_id in ids_of(part.utterances, own))

    def origins(self, rows: np.ndarray) -> Iterator[Origin]:
        """See :meth:`ColumnarUtterances.origins`."""
        for part, own in self._by_part(rows):
            for audio, metadata in origins_of(part.utterances, own):
                yield Origin(audio, {"source": part.name, **metadata})

    def _by_part(self, rows: np.ndarray) -> Iterator[tuple[_Part, np.ndarray]]:
        """Split ``rows`` wherever the part changes. For each piece, yield the part, and the indices of its clips in
        ``part.utterances``."""
        members = np.searchsorted(self._ends, rows, side="right")
        for run in runs(members):
            index = int(members[run.start])
            part = self._parts[index]
            first = int(self._ends[index]) - len(part.rows)
            yield part, part.rows[rows[run] - first]


@SOURCES.register
def build_mix(config: MixConfig, context: SourceContext) -> Source:
    """Return the source of a mix."""
    mixed = tuple(Mixed(name, SOURCES.build(part.source, context), part) for name, part in config.sources.items())
    return MixSource(mixed, config.seed)


def _durations(index: Index) -> np.ndarray:
    if index.durations_s is not None:
        return np.asarray(index.durations_s, np.float64)
    return np.fromiter((utterance.duration_s for utterance in index.utterances), np.float64, len(index.utterances))


def _dropped(name: str, dropped: Sequence[Dropped], share: float, seed: int) -> Iterator[Dropped]:
    """Yield a random part of the dropped clips, with the name of the source in their ids.

    Args:
        share: probability that a dropped clip is yielded.
    """
    for drop in dropped:
        drawn = hashlib.sha256(f"{seed}/{name}/{drop.id}".encode()).digest()
        if int.from_bytes(drawn[:8], "big") < share * 2**64:
            yield replace(drop, id=f"{name}/{drop.id}")
