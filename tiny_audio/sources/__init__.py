"""The Source contract: something that yields utterances, indexed without decoding a single clip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tiny_audio.config import Config
from tiny_audio.registry import Registry
from tiny_audio.sources._address import AudioAddress, HubFile, ParquetCell

__all__ = [
    "SOURCES",
    "AudioAddress",
    "ColumnarUtterances",
    "Dropped",
    "HubFile",
    "Index",
    "ParquetCell",
    "Source",
    "SourceConfig",
    "SourceContext",
    "Utterance",
    "runs",
    "texts_of",
]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One clip and what is said in it, as the index knows it."""

    id: str
    """Unique within its source and the same on every machine; seeds the clip's augmentation."""
    duration_s: float
    text: str
    audio: AudioAddress | None = field(compare=False)
    """Where the clip lies. None if only the source itself can read it."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Further columns, such as ``speaker`` and ``sex``."""

    def audio_file(self) -> Path:
        """The clip's file, for sources whose clips are files on disk."""
        assert self.audio is not None
        assert isinstance(self.audio.file, Path)
        return self.audio.file


class ColumnarUtterances(Sequence[Utterance]):
    """Utterances that are kept as columns, of which transcripts can be read without the rest."""

    @abstractmethod
    def texts(self, rows: np.ndarray) -> Iterator[str]:
        """Transcripts of the numbers ``[m]``, in their order."""


def texts_of(utterances: Sequence[Utterance], rows: np.ndarray) -> Iterator[str]:
    """Transcripts of the numbers ``[m]``, in their order, by the fastest way there is."""
    if isinstance(utterances, ColumnarUtterances):
        return utterances.texts(rows)
    return (utterances[row].text for row in rows.tolist())


def runs(members: np.ndarray) -> Iterator[slice]:
    """Places of ``[m]`` that hold the same number one after another."""
    ends = [*(np.flatnonzero(np.diff(members)) + 1).tolist(), len(members)]
    return (slice(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A clip that is not used, and why; every one ends up in ``dropped.jsonl``."""

    id: str
    reason: str
    """A short code to count by, such as ``undecodable`` or ``text_missing``."""
    detail: str


@dataclass(frozen=True, slots=True)
class Index:
    """All that a source has, and what it had to leave out.

    n utterances
    """

    utterances: Sequence[Utterance]
    """May be read only where they are asked for: a corpus has millions."""
    dropped: Sequence[Dropped]
    fingerprint: str
    """Hash of ids, durations, texts: equal where the same training data would be seen."""
    durations_s: np.ndarray | None = field(default=None, compare=False)
    """``[n]`` float64, where the source has them as a column; None: as the utterances say."""
    groups: np.ndarray | None = field(default=None, compare=False)
    """``[n]`` int64: which clips are fetched together, such as those of a row group; None: each by itself."""
    weights: np.ndarray | None = field(default=None, compare=False)
    """``[n]`` float64: how often each clip comes in an epoch on average; None: once."""


class SourceConfig(Config):
    """Base of every source's config."""

    name: str


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What surrounds a source."""

    cache_dir: Path
    """Where a source may keep what it made or fetched; safe to delete between runs."""
    commits: dict[str, str] = field(default_factory=dict)
    """Commits that branches stand for: a source keeps to those that are here, and adds what it looked up. A run keeps
    them, so that it sees the same data when the cache folder is gone and the branch has moved on."""


class Source(ABC):
    """Utterances, and the way to their audio."""

    @abstractmethod
    def index(self) -> Index:
        """List everything without decoding audio.

        Raises:
            UserError: the data is not there, or is not what the config says.
        """

    @abstractmethod
    def encoded(self, utterance: Utterance) -> Path | bytes:
        """The clip's encoded audio: a file, or its bytes. Called in loader processes: must pickle."""


SOURCES: Registry[SourceConfig, Source] = Registry(
    "source", SourceConfig, package=__name__, entry_points="tiny_audio.sources"
)
"""Registered sources; builders take ``(config, context: SourceContext)``."""
