"""The interface of sources. A source lists the clips of a dataset, and returns the encoded audio of a clip.

Encoded audio is the content of an audio file, such as FLAC or MP3.
"""

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
    "ids_of",
    "origins_of",
    "runs",
    "texts_of",
]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One clip and its transcript, as listed in the index."""

    id: str
    """Unique within its source, and the same on every machine. The random seed of the clip's augmentation depends on
    the id."""
    duration_s: float
    text: str
    """The transcript. Empty if nobody speaks in the clip."""
    audio: AudioAddress | None = field(compare=False)
    """Location of the clip's audio. None if the audio can be read only by :meth:`Source.encoded`."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Further columns of the dataset, such as ``speaker`` and ``sex``."""

    def audio_file(self) -> Path:
        """Return the clip's file. This works only for sources whose clips are files on disk."""
        assert self.audio is not None
        assert isinstance(self.audio.file, Path)
        return self.audio.file


class Origin(NamedTuple):
    """The address and the metadata of a clip, as in :class:`Utterance`."""

    audio: AudioAddress | None
    metadata: Mapping[str, str]


class ColumnarUtterances(Sequence[Utterance]):
    """Utterances stored as columns. One column can be read without the others."""

    @abstractmethod
    def texts(self, rows: np.ndarray) -> Iterator[str]:
        """Yield the transcripts of the utterances with the indices ``rows`` (``[m]``), in this order."""

    @abstractmethod
    def ids(self, rows: np.ndarray) -> Iterator[str]:
        """Yield the ids of the utterances with the indices ``rows`` (``[m]``), in this order."""

    @abstractmethod
    def origins(self, rows: np.ndarray) -> Iterator[Origin]:
        """Yield the origins of the utterances with the indices ``rows`` (``[m]``), in this order."""


def texts_of(utterances: Sequence[Utterance], rows: np.ndarray) -> Iterator[str]:
    """Yield the transcripts of the utterances with the indices ``rows`` (``[m]``), in this order.

    If the utterances are stored as columns, only the column of transcripts is read.
    """
    if isinstance(utterances, ColumnarUtterances):
        return utterances.texts(rows)
    return (utterances[row].text for row in rows.tolist())


def ids_of(utterances: Sequence[Utterance], rows: np.ndarray) -> Iterator[str]:
    """Yield the ids of the utterances with the indices ``rows`` (``[m]``), in this order."""
    if isinstance(utterances, ColumnarUtterances):
        return utterances.ids(rows)
    return (utterances[row].id for row in rows.tolist())


def origins_of(utterances: Sequence[Utterance], rows: np.ndarray) -> Iterator[Origin]:
    """Yield the origins of the utterances with the indices ``rows`` (``[m]``), in this order."""
    if isinstance(utterances, ColumnarUtterances):
        return utterances.origins(rows)
    return (Origin(utterance.audio, utterance.metadata) for utterance in (utterances[row] for row in rows.tolist()))


def runs(members: np.ndarray) -> Iterator[slice]:
    """Yield the slice of each run of equal neighboring values: for ``[7, 7, 3]``, ``slice(0, 2)`` and ``slice(2, 3)``.

    Args:
        members: the values, ``[m]``.
    """
    ends = [*(np.flatnonzero(np.diff(members)) + 1).tolist(), len(members)]
    return (slice(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A clip that is not used, and the reason. A run lists all dropped clips in ``dropped.jsonl``."""

    id: str
    reason: str
    """A short code for counting, such as ``undecodable`` or ``text_missing``."""
    detail: str


@dataclass(frozen=True, slots=True)
class Index:
    """The n utterances of a source, and the clips that the source dropped."""

    utterances: Sequence[Utterance]
    """The sequence may create utterances on access, so that millions of utterances need not be in memory."""
    dropped: Sequence[Dropped]
    fingerprint: str
    """Hash of the ids, durations and transcripts, in the order of the utterances. A source may include more in the
    hash, such as the commit of a dataset. The audio itself is not included."""
    durations_s: np.ndarray | None = field(default=None, compare=False)
    """``[n]`` float64: duration of each utterance. If None, durations are read from the utterances."""
    groups: np.ndarray | None = field(default=None, compare=False)
    """``[n]`` int64. Clips with the same value are fetched together, for example the clips of one row group of a
    parquet file. If None, each clip is fetched alone."""
    weights: np.ndarray | None = field(default=None, compare=False)
    """``[n]`` float64: average number of times that each clip occurs in an epoch. If None, each clip occurs once."""
    empty: np.ndarray | None = field(default=None, compare=False)
    """``[n]`` bool: whether each transcript is empty. If None, see :meth:`without_text`."""

    def without_text(self) -> np.ndarray:
        """Return ``[n]`` bool: whether each transcript is empty.

        If ``empty`` is None, the transcripts of a tuple or a list are checked. For other sequences, all values are
        False. Such a sequence may create utterances on access, so a check could create millions of them.
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
    """What a source needs in addition to its config: a cache folder and settings of the run."""

    cache_dir: Path
    """Folder for data that a source has generated or fetched. It may be deleted between runs."""
    commits: dict[str, str] = field(default_factory=dict)
    """For each dataset split on the Hugging Face hub, the commit to read. A key has the form
    ``repository/config/split@revision``, such as ``owner/dataset/config/train@main``. If the split of a source is
    missing here, the source looks up the commit and adds it. A run stores all commits, so that its data stays the
    same."""
    keep_empty: bool = False
    """Whether a source keeps clips that the corpus marks as not speech. If true, these clips get an empty transcript.
    If false, the source drops them. Training data uses the value of ``data.keep_empty``. For evaluation data, the value
    is false, because such clips are never scored."""


class Source(ABC):
    """Base class of sources."""

    @abstractmethod
    def index(self) -> Index:
        """List all clips without decoding audio.

        Raises:
            UserError: the data does not exist or does not match the config.
        """

    @abstractmethod
    def encoded(self, utterance: Utterance) -> Path | bytes:
        """Return the clip's encoded audio, as a file or as bytes.

        The worker processes of the data loader call this method, so a source must be picklable.
        """


SOURCES: Registry[SourceConfig, Source] = Registry(
    "source", SourceConfig, package=__name__, entry_points="tiny_audio.sources"
)
"""Registered sources. Builders take ``(config, context: SourceContext)``, and read no data."""
