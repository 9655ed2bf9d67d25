"""The Source contract: a source yields utterances and is indexed without decoding audio."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiny_audio.config import Config
from tiny_audio.registry import Registry
from tiny_audio.sources._address import AudioAddress, HubFile, NotCachedError, ParquetCell

__all__ = [
    "SOURCES",
    "AudioAddress",
    "ColumnarUtterances",
    "Dropped",
    "HubFile",
    "Index",
    "NotCachedError",
    "Origin",
    "ParquetCell",
    "Source",
    "SourceConfig",
    "SourceContext",
    "Utterance",
    "origins_of",
    "runs",
    "texts_of",
]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One clip and its transcript, as listed in the index."""

    id: str
    """Unique within its source, and the same on every machine. It seeds the augmentation of the clip."""
    duration_s: float
    text: str
    """The transcript. Empty if nobody speaks."""
    audio: AudioAddress | None = field(compare=False)
    """Location of the clip's audio. None if only the source can read it."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Further columns, such as ``speaker`` and ``sex``."""

    def audio_file(self) -> Path:
        """Return the clip's file. This works only for sources whose clips are files on disk."""
        assert self.audio is not None
        assert isinstance(self.audio.file, Path)
        return self.audio.file


class Origin(NamedTuple):
    """The origin of a clip. The fields are those of :class:`Utterance`."""

    audio: AudioAddress | None
    metadata: Mapping[str, str]


class ColumnarUtterances(Sequence[Utterance]):
    """Utterances stored as columns. One column can be read without the others."""

    @abstractmethod
    def texts(self, rows: np.ndarray) -> Iterator[str]:
        """Yield the transcripts of the rows ``[m]``, in the order of ``rows``."""

    @abstractmethod
    def origins(self, rows: np.ndarray) -> Iterator[Origin]:
        """Yield the addresses and metadata of the rows ``[m]``, in the order of ``rows``."""


def texts_of(utterances: Sequence[Utterance], rows: np.ndarray) -> Iterator[str]:
    """Yield the transcripts of the rows ``[m]``, in the order of ``rows``. Columnar utterances are read by column."""
    if isinstance(utterances, ColumnarUtterances):
        return utterances.texts(rows)
    return (utterances[row].text for row in rows.tolist())


def origins_of(utterances: Sequence[Utterance], rows: np.ndarray) -> Iterator[Origin]:
    """Yield the origins of the rows ``[m]``, in the order of ``rows``. Columnar utterances are read by column."""
    if isinstance(utterances, ColumnarUtterances):
        return utterances.origins(rows)
    return (Origin(utterance.audio, utterance.metadata) for utterance in (utterances[row] for row in rows.tolist()))


def runs(members: np.ndarray) -> Iterator[slice]:
    """Yield a slice for each run of equal consecutive values in ``[m]``."""
    ends = [*(np.flatnonzero(np.diff(members)) + 1).tolist(), len(members)]
    return (slice(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A clip that is not used, and the reason. All dropped clips are listed in ``dropped.jsonl``."""

    id: str
    reason: str
    """A short code for counting, such as ``undecodable`` or ``text_missing``."""
    detail: str


@dataclass(frozen=True, slots=True)
class Index:
    """The n utterances of a source, and the clips that it dropped."""

    utterances: Sequence[Utterance]
    """The sequence may create utterances on access, because a corpus can have millions of utterances."""
    dropped: Sequence[Dropped]
    fingerprint: str
    """Hash of ids, durations and texts. Equal fingerprints mean equal training data."""
    durations_s: np.ndarray | None = field(default=None, compare=False)
    """``[n]`` float64. If None, the durations of the utterances are used."""
    groups: np.ndarray | None = field(default=None, compare=False)
    """``[n]`` int64. Clips with the same value, such as those of one row group, are fetched together. If None, each
    clip is fetched alone."""
    weights: np.ndarray | None = field(default=None, compare=False)
    """``[n]`` float64: average number of times that each clip occurs in an epoch. If None, each clip occurs once."""
    empty: np.ndarray | None = field(default=None, compare=False)
    """``[n]`` bool: whether the transcript is empty. If None, :meth:`without_text` checks the utterances."""

    def without_text(self) -> np.ndarray:
        """Return ``[n]`` bool: whether the transcript is empty.

        If ``empty`` is None, only utterances in a tuple or list are checked. Otherwise, all values are False.
        """
        if self.empty is not None:
            return self.empty
        if isinstance(self.utterances, tuple | list):
            return np.array([not utterance.text for utterance in self.utterances], dtype=bool)
        return np.zeros(len(self.utterances), dtype=bool)


class SourceConfig(Config):
    """Base of every source's config."""

    name: str


@dataclass(frozen=True, slots=True)
class SourceContext:
    """The environment of a source."""

    cache_dir: Path
    """Folder for data that a source has generated or fetched. It may be deleted between runs."""
    commits: dict[str, str] = field(default_factory=dict)
    """Commits of branches on the hub. A source uses the given commits, and adds each commit that it looks up. A run
    stores them, so that its data stays the same even if the cache folder is deleted and a branch has new commits."""
    keep_empty: bool = False
    """Whether clips that the corpus marks as not speech get an empty transcript. Otherwise, the source drops them. True
    only for training clips with ``data.keep_empty``, because these clips are never scored."""


class Source(ABC):
    """Utterances and their audio."""

    @abstractmethod
    def index(self) -> Index:
        """List all clips without decoding audio.

        Raises:
            UserError: the data does not exist or does not match the config.
        """

    @abstractmethod
    def encoded(self, utterance: Utterance) -> Path | bytes:
        """Return the clip's encoded audio, as a file or as bytes.

        Processes that load clips call this, so a source must be picklable.
        """


SOURCES: Registry[SourceConfig, Source] = Registry(
    "source", SourceConfig, package=__name__, entry_points="tiny_audio.sources"
)
"""Registered sources. Builders take ``(config, context: SourceContext)``."""
