"""Source ``librispeech``: LibriSpeech, 960 hours of read English (Panayotov et al., ICASSP 2015)."""

from __future__ import annotations

from typing import Literal, Self

from tiny_audio.sources import SOURCES, Source, SourceContext
from tiny_audio.sources._columns import Columns
from tiny_audio.sources._hub.source import HubSourceConfig, hub_source

COLUMNS = Columns(audio="audio", text="text", duration=None, id="id", speaker="speaker_id", metadata=("chapter_id",))


class LibriSpeechConfig(HubSourceConfig):
    """LibriSpeech on the Hugging Face hub: audiobooks read by volunteers.

    Transcripts are those of the corpus: upper case, A to Z, spaces and apostrophes only. The corpus does not list
    durations, so indexing a split fetches all of its audio once (train.clean.100 is 6.6 GB). If `cache_gb` is less than
    the size of the split, training fetches audio again. Metadata: `speaker` and `chapter_id`.
    """

    name: Literal["librispeech"] = "librispeech"
    split: Literal[
        "train.clean.100",
        "train.clean.360",
        "train.other.500",
        "validation.clean",
        "validation.other",
        "test.clean",
        "test.other",
    ] = "train.clean.100"
    """One of the seven splits of the corpus."""

    @classmethod
    def tiny(cls) -> Self:
        """Return a config for tests. The tests use a local server instead of the hub."""
        return cls(split="validation.clean")


@SOURCES.register
def build_librispeech(config: LibriSpeechConfig, context: SourceContext) -> Source:
    """Return the source of a split of the corpus."""
    return hub_source(config, "openslr/librispeech_asr", "all", config.split, COLUMNS, context)
